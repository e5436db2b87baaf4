"""Spoken clips to train on: a waveform as recorded, and the mouth that spoke it. One seed, one clip, any process."""

from __future__ import annotations

import math

import numpy as np

from .augment import augment, change_speed_pitch
from .background import music
from .sentences import random_sentence
from .synthesis import (
    HELDOUT_LANGUAGES,
    NEURAL,
    SAMPLE_RATE,
    VOICES,
    Speech,
    Voice,
    available_engines,
    join,
    synthesize,
)
from .utterances import COUNT, KeptUtterances
from .visemes import MOUTH, Style, mouth_track

FPS = 25
SECONDS = 8.0  # length of the clips that training hears
SILENT_SHARE = 0.12  # share of clips in which nobody speaks: half of them music, half noise
MUSIC_SHARE = 0.12  # share of training clips with music under the speech
NEURAL_SHARES = {"kokoro": 0.4, "hibari": 0.25}  # of clips, where utterances are kept
FLITE_SHARE = 0.06  # share of clips with recorded voices: few, slow to make, and English only
ENGLISH_SHARE = 0.4  # share of the other training clips that are English
BABBLE_SHARE = 0.08  # share of training clips with other speech in the background
MOST_SENTENCES = 40  # sentences that are spoken for one clip, at most


def clip_rng(number: int) -> np.random.Generator:
    """What decides on a numbered clip."""
    return np.random.default_rng((number, 4))


def pick_neural_voice(rng: np.random.Generator, split: str) -> Voice | None:
    """A random neural voice of the split, or None: then it is another engine's turn."""
    kind, passed = rng.random(), 0.0
    for engine, share in NEURAL_SHARES.items():
        passed += share
        if kind < passed:
            own = [voice for voice in VOICES if voice.engine == engine and voice.split == split]
            return own[int(rng.integers(len(own)))] if own and engine in available_engines() else None
    return None


def pick_voice(rng: np.random.Generator, split: str) -> Voice:
    """A random voice of espeak-ng or flite of the split. Held out: a new language half of the time, else a new voice in
    a known language."""
    own = [voice for voice in VOICES if voice.split == split and voice.engine in available_engines()]
    flite = [voice for voice in own if voice.engine == "flite"]
    espeak = [voice for voice in own if voice.engine == "espeak"]
    if flite and (not espeak or rng.random() < FLITE_SHARE):
        return flite[int(rng.integers(len(flite)))]
    kind = rng.random()
    if split == "heldout":
        pool = [voice for voice in espeak if (voice.language in HELDOUT_LANGUAGES) == (kind < 0.5)]
    else:
        pool = [voice for voice in espeak if voice.language.startswith("en") == (kind < ENGLISH_SHARE)]
    if not pool:
        # synthesize() says what is missing and how to install it.
        return Voice("espeak", "en-us", "m1")
    return pool[int(rng.integers(len(pool)))]


def random_speech(
    rng: np.random.Generator, split: str, start: float, seconds: float, utterances: KeptUtterances | None = None
) -> Speech:
    """`seconds` of one speaker's sentences with pauses between them, from `start` s on (before 0: silence first).

    utterances: gives neural voices their share; without them espeak-ng and flite speak.
    """
    voice = (pick_neural_voice(rng, split) if utterances else None) or pick_voice(rng, split)
    factor = float(rng.uniform(0.9, 1.12)) if voice.engine == "espeak" else float(rng.uniform(0.85, 1.25))
    rate, pitch, pitch_range = int(rng.integers(110, 231)), int(rng.integers(15, 86)), int(rng.integers(25, 86))
    if voice.engine == "flite":
        rate = int(rng.integers(130, 200))
    parts: list[Speech] = []
    gaps: list[float] = []
    length = 0.0
    while length < (start + seconds) * factor and len(parts) < MOST_SENTENCES:
        if voice.engine in NEURAL:
            parts.append(utterances(voice, int(rng.integers(COUNT[voice.engine]))))
        else:
            text = random_sentence(rng, voice.language, split)
            parts.append(synthesize(text, voice, rate, pitch, pitch_range))
        gaps.append(float(rng.uniform(0.4, 1.5)) if rng.random() < 0.25 else float(rng.uniform(0.0, 0.3)))
        length += parts[-1].duration + gaps[-1]
    # Cut before changing the speed: only what is used is computed. The last crop rounds to the sample.
    part = join(parts, gaps).crop(start * factor, seconds * factor)
    return change_speed_pitch(part, factor).crop(0.0, seconds)


def _background(rng: np.random.Generator, split: str, silent: bool, count: int) -> np.ndarray | None:
    """What else is to be heard in a clip of `count` samples: music, other speech, or nothing (None)."""
    kind = rng.random()
    if silent:
        return music(count, rng) if kind < 0.5 else None
    if split != "train":
        return None
    if kind < MUSIC_SHARE:
        return music(count, rng)
    return random_speech(rng, split, 0.0, 2.0).waveform if kind < MUSIC_SHARE + BABBLE_SHARE else None


def speech_clip(
    rng: np.random.Generator,
    split: str = "train",
    seconds: float = 4.0,
    augmented: bool = True,
    utterances: KeptUtterances | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A spoken clip: (waveform float32 [S] at 16 kHz, mouth float32 [F, 7]), F = ceil(S / 16000 * 25).

    The columns of the mouth are `visemes.MOUTH`.

    Args:
        rng: decides everything; the same state gives the same clip.
        split: "train", or "heldout": languages, voices and sentences training never meets, and mild augmentation.
        seconds: length; S = round(seconds * 16000).
        augmented: False for the clean recording.
        utterances: where neural voices keep theirs; None for espeak-ng and flite alone.

    Raises:
        ValueError: unknown split, or seconds not positive.
        SpeechUnavailableError: espeak-ng or flite is not installed.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f'split must be "train" or "heldout", got {split!r}')
    if seconds <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    count = round(seconds * SAMPLE_RATE)
    frames = math.ceil(count * FPS / SAMPLE_RATE)
    style = Style.draw(rng)
    silent = rng.random() < SILENT_SHARE
    if silent:
        speech = Speech(np.zeros(count, np.float32), ())
    else:
        start = -float(rng.uniform(0.0, 1.0)) if rng.random() < 0.3 else float(rng.uniform(0.0, 1.2))
        speech = random_speech(rng, split, start, seconds, utterances)
    mouth = mouth_track(speech, frames, FPS, style)
    waveform = speech.waveform
    if augmented:
        waveform = augment(waveform, rng, _background(rng, split, silent, count), mild=split == "heldout")
    return waveform, mouth


__all__ = ["FPS", "MOUTH", "pick_voice", "random_speech", "speech_clip"]
