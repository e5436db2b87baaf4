"""Synthetic speech whose phonemes and their times are known.

By espeak-ng (many languages), flite (recorded voices) and the neural voices of natural.py.

Times are seconds from the start of the waveform. Symbols are IPA throughout (flite's ARPAbet is translated); `PAUSE`
is silence and `RELEASE` the burst and breath of a stop after its closure, so that the interval of a p, b or t is the
closure itself: lips or tongue are shut exactly within it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import wave
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from . import natural
from .espeak import INSTALL_HINT, EspeakError, EspeakServer, find_library

SAMPLE_RATE = 16000
PAUSE = ""
RELEASE = "ʰ"

TRAIN_LANGUAGES = (
    *("en-us", "en", "en-gb-scotland", "de", "fr", "es", "es-419", "it", "pt-br", "pl", "ru", "tr", "hi"),
    *("ja", "cmn-latn-pinyin", "ko", "fi", "cs"),
)
HELDOUT_LANGUAGES = ("nl", "sv")
TRAIN_VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f4", "f5", "Andy", "Annie", "Denis", "Gene", "Jacky", "Lee"),
    *("Marco", "Mario", "Michael", "adam", "aunty", "edward", "linda", "max", "steph", "travis", "zac"),
)
HELDOUT_VARIANTS = ("m6", "f3", "Alicia", "Diogo")
TRAIN_FLITE, HELDOUT_FLITE = ("slt", "rms"), ("awb",)  # kal16 is left out: its phone times run 1 % slow
KOKORO_LANGUAGES, KOKORO_MIXES = ("en-us", "en-gb", "es", "fr", "it", "pt-br"), 12
NEURAL = ("kokoro", "hibari")
NEURAL_INSTALL_HINT = "pip install -r requirements-train.txt"

ARPABET = {
    **{"aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "ay": "aɪ", "b": "b", "ch": "tʃ", "d": "d"},
    **{"dh": "ð", "dx": "ɾ", "eh": "ɛ", "el": "əl", "em": "m", "en": "n", "er": "ɝ", "ey": "eɪ", "f": "f", "g": "ɡ"},
    **{"hh": "h", "hv": "h", "ih": "ɪ", "iy": "i", "jh": "dʒ", "k": "k", "l": "l", "m": "m", "n": "n", "nx": "n"},
    **{"ng": "ŋ", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t", "th": "θ", "uh": "ʊ"},
    **{"uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ", "pau": PAUSE, "brth": PAUSE, "h#": PAUSE},
}
VOICELESS_STOPS, VOICED_STOPS = "ptkʈcq", "bdɡɖɟɢ"
LONGEST_CLOSURE = 0.08  # seconds of silence before a burst that count as its closure, even after a pause


class SpeechUnavailableError(RuntimeError):
    """The synthesiser is not installed or failed to speak."""


@dataclass(frozen=True)
class Voice:
    """One speaker: engine "espeak" (language and variant), "flite" (language "en-us", variant its voice name), or one
    of NEURAL, whose variants natural.py explains."""

    engine: str
    language: str
    variant: str

    @property
    def split(self) -> str:
        """ "heldout" where the language, variant or voice is kept out of training, else "train"."""
        held = HELDOUT_VARIANTS if self.engine == "espeak" else (*HELDOUT_FLITE, natural.KOKORO_HELDOUT_STYLE)
        return "heldout" if self.language in HELDOUT_LANGUAGES or self.variant in held else "train"


def _table() -> tuple[Voice, ...]:
    languages, variants = TRAIN_LANGUAGES + HELDOUT_LANGUAGES, TRAIN_VARIANTS + HELDOUT_VARIANTS
    espeak = [Voice("espeak", language, variant) for language in languages for variant in variants]
    flite = [Voice("flite", "en-us", name) for name in TRAIN_FLITE + HELDOUT_FLITE]
    timbres = [f"mix{number}" for number in range(KOKORO_MIXES)] + [natural.KOKORO_HELDOUT_STYLE]
    kokoro = [Voice("kokoro", language, timbre) for language in KOKORO_LANGUAGES for timbre in timbres]
    hibari = [Voice("hibari", "en-us", name) for name in natural.HIBARI_FORMANTS]
    return tuple(espeak + flite + kokoro + hibari)


VOICES = _table()


@lru_cache(maxsize=1)
def available_engines() -> tuple[str, ...]:
    """Which of "espeak", "flite" and NEURAL this machine has."""
    found = [("espeak", find_library() is not None), ("flite", shutil.which("flite") is not None)]
    return tuple(name for name, present in found if present) + natural.installed()


@dataclass(frozen=True)
class Speech:
    """A waveform float32 [S] at 16 kHz in -1..1 and its phonemes (IPA, start, end) in seconds, in order.

    Phonemes may reach outside the waveform after `crop`: what comes before and after still shapes the mouth.
    """

    waveform: np.ndarray
    phonemes: tuple[tuple[str, float, float], ...]

    @property
    def duration(self) -> float:
        """Length of the waveform in seconds."""
        return len(self.waveform) / SAMPLE_RATE

    def crop(self, start: float, seconds: float) -> Speech:
        """The part from `start` (seconds, may be negative) that is `seconds` long, padded with silence."""
        first, count = round(start * SAMPLE_RATE), round(seconds * SAMPLE_RATE)
        waveform = np.zeros(count, np.float32)
        source = self.waveform[max(first, 0) : max(first + count, 0)]
        offset = max(-first, 0)
        waveform[offset : offset + len(source)] = source
        begin, context = first / SAMPLE_RATE, 0.5
        kept = tuple(
            (symbol, a - begin, b - begin)
            for symbol, a, b in self.phonemes
            if b > begin - context and a < begin + seconds + context
        )
        return Speech(waveform, kept)


def join(parts: list[Speech], gaps: list[float]) -> Speech:
    """`parts` one after the other with `gaps[i]` seconds of silence after part i (len(gaps) >= len(parts) - 1)."""
    waveforms, phonemes, position = [], [], 0
    for index, part in enumerate(parts):
        shift = position / SAMPLE_RATE
        phonemes += [(symbol, a + shift, b + shift) for symbol, a, b in part.phonemes]
        waveforms.append(part.waveform)
        position += len(part.waveform)
        if index + 1 < len(parts):
            count = round(gaps[index] * SAMPLE_RATE)
            phonemes.append((PAUSE, position / SAMPLE_RATE, (position + count) / SAMPLE_RATE))
            waveforms.append(np.zeros(count, np.float32))
            position += count
    return Speech(np.concatenate(waveforms), tuple(phonemes))


def synthesize(
    text: str, voice: Voice, rate: int = 160, pitch: int = 50, pitch_range: int = 50, seed: int = 0
) -> Speech:
    """Speak `text`. The same arguments give the same samples.

    Args:
        text: in the language of `voice`, any script espeak-ng reads in it (kana for ja, pinyin for cmn-latn-pinyin).
        voice: see `VOICES`.
        rate: words a minute, 80..300.
        pitch: 0..100, espeak only; other voices speak as recorded (`augment.change_speed_pitch` changes both).
        pitch_range: 0..100, from monotone to lively, espeak only.
        seed: of what a neural voice draws at random.

    Raises:
        ValueError: rate, pitch or pitch_range out of range.
        SpeechUnavailableError: the synthesiser is not installed, or gave no sound.
    """
    if not 80 <= rate <= 300:
        raise ValueError(f"rate must be 80..300 words a minute, got {rate}")
    if not (0 <= pitch <= 100 and 0 <= pitch_range <= 100):
        raise ValueError(f"pitch and pitch_range must be 0..100, got {pitch} and {pitch_range}")
    if voice.engine not in available_engines():
        hint = NEURAL_INSTALL_HINT if voice.engine in NEURAL else INSTALL_HINT
        raise SpeechUnavailableError(f"{voice.engine} is not installed: {hint}")
    if voice.engine in NEURAL:
        return _neural(text, voice, rate, seed)
    if voice.engine == "flite":
        return _flite(text, voice.variant, rate)
    return _espeak(text, f"{voice.language}+{voice.variant}", int(rate), int(pitch), int(pitch_range))


def _espeak(text: str, name: str, rate: int, pitch: int, pitch_range: int) -> Speech:
    try:
        sample_rate, data, events = EspeakServer.current().speak(text, name, rate, pitch, pitch_range)
    except EspeakError as error:
        raise SpeechUnavailableError(str(error)) from error
    # Names in brackets announce another language for a word written in it; they are not sounds.
    events = [(symbol, sample) for symbol, sample in events if not symbol.startswith("(")]
    samples = np.frombuffer(data, np.int16).astype(np.float32) / 32768
    if not len(samples) or not any(symbol for symbol, _ in events):
        raise SpeechUnavailableError(f"espeak-ng spoke nothing for {text!r} with voice {name}")
    ends = [sample for _, sample in events[1:]] + [len(samples)]
    spans = [(PAUSE, 0, events[0][1])] if events[0][1] > 0 else []
    spans += [(symbol, start, end) for (symbol, start), end in zip(events, ends, strict=True) if end > start]
    spans = _find_closures(samples, [_glottal(samples, span) for span in spans], sample_rate)
    phonemes = tuple((symbol, start / sample_rate, end / sample_rate) for symbol, start, end in spans)
    return Speech(_to_16k(samples, sample_rate), phonemes)


def _glottal(samples: np.ndarray, span: tuple[str, int, int]) -> tuple[str, int, int]:
    """The span, a glottal stop where a nameless event is no silence but the creak between vowels: "happy apple"."""
    symbol, start, end = span
    if symbol == PAUSE and float(np.mean(np.square(samples[start:end]))) > 1e-4:
        return ("ʔ", start, end)
    return span


def _find_closures(samples: np.ndarray, spans: list, sample_rate: int) -> list:
    """Give stops their closures. espeak-ng reports a voiceless stop at its burst and counts the silence of the closure
    to the sound before; a voiced stop it reports at the closure, with the rise into the vowel as its last fifth."""
    longest, around = int(LONGEST_CLOSURE * sample_rate), int(0.15 * sample_rate)
    result: list[tuple[str, int, int]] = []
    for symbol, start, end in spans:
        if not symbol or symbol[0] not in VOICELESS_STOPS + VOICED_STOPS:
            result.append((symbol, start, end))
            continue
        limit = max(start - longest, (result[-1][1] + 1) if result else 0)
        # Some variants have an echo: silence is what is quiet beside its surroundings.
        peak = float(np.abs(samples[max(start - around, 0) : start + around]).max(initial=0.0))
        loud = np.flatnonzero(np.abs(samples[limit:start]) > max(0.004, 0.08 * peak))
        closure = limit + int(loud[-1]) + 1 if len(loud) else limit
        silent = start - closure > 0.02 * sample_rate
        if result and silent:
            result[-1] = (result[-1][0], result[-1][1], closure)
        hold = 0.0 if symbol[0] in VOICELESS_STOPS or silent else 0.8
        burst = start + int(hold * (end - start))
        begin = closure if silent else start
        if burst - begin < 0.015 * sample_rate:  # no closure to be seen, as in a cluster: the stop itself is short
            burst = min(end, begin + int(0.03 * sample_rate))
        result.append((symbol[0], begin, burst))
        if end > burst:
            result.append((symbol[1:] or RELEASE, burst, end))
    return result


def _flite(text: str, name: str, rate: int) -> Speech:
    with tempfile.TemporaryDirectory(prefix="letstalk_") as folder:
        path = os.path.join(folder, "speech.wav")
        stretch = f"duration_stretch={160 / rate:.3f}"
        command = ["flite", "-psdur", "-voice", name, "--setf", stretch, "-t", text, "-o", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not os.path.exists(path):
            raise SpeechUnavailableError(f"flite could not speak {text!r}: {done.stderr.strip()}")
        with wave.open(path) as file:
            sample_rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    phonemes, start = [], 0.0
    for item in done.stdout.split():
        phone, _, stamp = item.rpartition(":")
        end, symbol = float(stamp), ARPABET.get(phone, phone)
        if symbol and symbol[0] in VOICELESS_STOPS and end > start:
            burst = start + 0.65 * (end - start)  # measured on slt, rms and awb: the burst is at 0.60 to 0.75
            phonemes += [(symbol[0], start, burst), (symbol[1:] or RELEASE, burst, end)]
        elif end > start:
            phonemes.append((symbol, start, end))
        start = end
    return Speech(_to_16k(samples, sample_rate), tuple(phonemes))


STRESS, LENGTH = "ˈˌ", "ː "  # belong to the symbol after, and to the one before (a space between words is no pause)
SHORTEST_PAUSE = 0.09  # seconds; a comma that lasts less is spoken over


def _neural(text: str, voice: Voice, rate: int, seed: int) -> Speech:
    ipa = natural.to_ipa(text, voice.language)
    rng = np.random.default_rng((seed, zlib.crc32(ipa.encode())))
    spoken = natural.engine(voice.engine).speak(ipa, voice.variant, rate / 160, rng)
    phonemes: list[tuple[str, float, float]] = []
    begin = end = -spoken.lead
    for symbol, seconds in spoken.symbols:
        end += seconds
        silent = symbol == natural.BOUNDARY or symbol in natural.PUNCTUATION
        if symbol in STRESS:
            continue  # its time goes to the next: `begin` stays
        if symbol in LENGTH or (silent and symbol != natural.BOUNDARY and end - begin < SHORTEST_PAUSE):
            if phonemes:
                phonemes[-1] = (*phonemes[-1][:2], end)
        elif silent:
            phonemes.append((PAUSE, begin, end))
        elif symbol[0] in VOICELESS_STOPS + VOICED_STOPS:  # affricates, too
            burst = begin + (0.65 if symbol[0] in VOICELESS_STOPS else 0.8) * (end - begin)
            phonemes += [(symbol[0], begin, burst), (symbol[1:] or RELEASE, burst, end)]
        else:
            phonemes.append((symbol, begin, end))
        begin = end
    return Speech(_to_16k(spoken.samples, spoken.rate), tuple(phonemes))


def _to_16k(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    if sample_rate == SAMPLE_RATE:
        return samples
    with torch.inference_mode():
        return _resampler(sample_rate)(torch.from_numpy(samples)).numpy()


@lru_cache(maxsize=4)
def _resampler(sample_rate: int) -> torch.nn.Module:
    from torchaudio.transforms import Resample  # puppets know this file's mouths where torchaudio is not installed

    return Resample(sample_rate, SAMPLE_RATE, lowpass_filter_width=12)  # its filter takes longer to make than to use
