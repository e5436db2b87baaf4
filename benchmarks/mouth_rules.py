"""What the rules that make mouths of phonemes have in common with real mouths, and which changes bring them nearer.

    python benchmarks/mouth_rules.py FOLDER

FOLDER: videos of people who speak, and tracks.npz (letstalk_core/evaluation/speakers.py). For each way to change the
openings of 220 clips of synthetic speech, a ridge regression from windows of log-mel features is fitted to them and
asked for the openings of the real people. Prints, as medians over the people: r at one lag a person, r at lag 0, and r
with another's sound. "other people": fitted, for each, to the other real people: what such a regression can learn.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.audio.mel import mel_features
from letstalk_core.audio.recording import SAMPLE_RATE
from letstalk_core.data.ridge import ridge
from letstalk_core.data.speech.spoken_clips import FPS, random_speech
from letstalk_core.data.speech.visemes import Style, mouth_track
from letstalk_core.evaluation.measures import envelope
from letstalk_core.evaluation.speakers import RIDGE, Speaker, follow, load_speakers

CLIPS, SECONDS, REACH = 220, 4.0, 5  # REACH: frames of a window on both sides


def windows(waveform: torch.Tensor, frames: int) -> np.ndarray:
    """Mono samples [S] -> the log-mel windows of each frame, [F,(2 * REACH + 1) * 80], normalised over the clip."""
    mel = mel_features(waveform, frames).numpy().mean(1)
    mel = (mel - mel.mean(0)) / (mel.std(0) + 1e-3)
    padded = np.pad(mel, ((REACH, REACH), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + frames] for i in range(2 * REACH + 1)], 1)


def synthetic(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A spoken clip: windows, openings [F] by the rules, and its level [F] beside its own loud parts."""
    speech, frames = random_speech(np.random.default_rng((number, 77)), "train", 0.0, SECONDS), int(SECONDS * FPS)
    opening = mouth_track(speech, frames, FPS, Style.draw(np.random.default_rng(number)))[:, 0]
    level = envelope(speech.waveform, SAMPLE_RATE, frames, FPS)
    return windows(torch.from_numpy(speech.waveform), frames), opening, level / (np.percentile(level, 90) + 1e-6)


def smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values [F] under a Gaussian of `sigma` frames, ends repeated: the inertia of a jaw."""
    weights = np.exp(-0.5 * (np.arange(-8, 9) / sigma) ** 2)
    return np.convolve(np.pad(values, 8, mode="edge"), weights / weights.sum(), mode="valid")


def changed(sigma: float = 0.0, later: int = 0, power: float = 0.0) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A change of openings [F] at levels [F]: times level^power, then smoothed, then `later` frames later."""

    def change(opening: np.ndarray, level: np.ndarray) -> np.ndarray:
        opening = opening * level.clip(0, 1.5) ** power
        return np.roll(smoothed(opening, sigma) if sigma else opening, later)

    return change


WAYS = {
    "as they are": changed(),
    **{f"smoothed, {sigma} frames": changed(sigma) for sigma in (1, 2, 3)},
    **{f"smoothed 1, {later:+d} frames later": changed(1, later) for later in (-2, -1, 1, 2)},
    "smoothed 1.5, level^0.6": changed(1.5, power=0.6),
    "smoothed 1.5, level^1": changed(1.5, power=1.0),
    "smoothed 1.5, +1 later, level^0.6": changed(1.5, 1, 0.6),
    "smoothed 2, +1 later, level^1": changed(2, 1, 1.0),
}


def fit(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    weights, level = ridge(np.concatenate(x), np.concatenate(y), RIDGE)
    return lambda given: given @ weights + level


def of_other_people(speakers: Sequence[Speaker], heard: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The openings of each speaker as a regression gives them that is fitted to all the others, in equal deviations."""
    lengths = [min(len(x), len(speaker.opening)) for x, speaker in zip(heard, speakers, strict=True)]
    truths = [(s.opening[:n] - s.opening[:n].mean()) / s.opening[:n].std() for s, n in zip(speakers, lengths)]
    kept = [x[:n] for x, n in zip(heard, lengths)]
    leave_out = [[j for j in range(len(speakers)) if j != i] for i in range(len(speakers))]
    return [fit([kept[j] for j in others], [truths[j] for j in others])(heard[i]) for i, others in enumerate(leave_out)]


def main(folder: Path) -> None:
    speakers = load_speakers(folder, FPS)
    heard = [windows(torch.cat(list(s.recording.mono_16k())), s.recording.frames(FPS)) for s in speakers]
    clips = [synthetic(number) for number in tqdm(range(CLIPS), desc="speech", disable=None)]
    for name, change in WAYS.items():
        learned = fit([x for x, _, _ in clips], [change(opening, level) for _, opening, level in clips])
        show(name, [learned(x) for x in heard], speakers)
    show("other people", of_other_people(speakers, heard), speakers)


def show(name: str, openings: Sequence[np.ndarray], speakers: Sequence[Speaker]) -> None:
    found = follow(openings, speakers)["median"]
    numbers = " ".join(f"{found[key]:6.3f}" for key in ("r", "r_at_lag_0", "r_of_anothers_sound"))
    print(f"{name:36s} {numbers}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
