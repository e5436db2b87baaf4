"""How well a mouth follows real people: what a model makes of their sound against what their own mouths did.

A folder holds videos of people who speak, and `tracks.npz`: for each video, by its name without the suffix, float
[F,>=1], a row a frame, with the distance of the inner lips in the first column. The opening is judged twice: read from
the audio tokens alone by a linear map, which asks what the model hears, and read by the meter from the frames of drawn
people that it makes speak.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..audio.recording import Recording
from ..data.people.expressions import GAP
from ..data.ridge import ridge
from ..data.speech.spoken_clips import speech_clip
from ..errors import InputError
from ..files import check_file
from ..model.audio_projection import window_features
from ..picture.face import ALIGNED
from ..pipeline import LetsTalkPipeline
from ..video.reader import probe
from .measures import correlation, lagged_correlation

TRACKS = "tracks.npz"
WIDE_OPEN = float(GAP / (ALIGNED[1, 0] - ALIGNED[0, 0]))  # eye distances between the lips at an opening of 1
LAGS = 3  # frames that a clip's sound may lie off its picture, either way; one lag a clip
SPEAKING = 0.05  # standard deviation of the opening, in eye distances, below which nobody speaks
READ_OUT_CLIPS, READ_OUT_SECONDS = 60, 4.0  # spoken clips that the linear map is fitted to, and their length
RIDGE = 0.01  # of the variance of a token's channel

ReadOut = Callable[[Tensor], np.ndarray]  # features [F,L,E] -> opening [F]


@dataclass(frozen=True)
class Speaker:
    """A real person in a video: what was said, and how far the mouth was open, [F] at the asked-for frame rate."""

    name: str
    recording: Recording
    opening: np.ndarray


def load_speakers(folder: Path, fps: float) -> list[Speaker]:
    """The people in a folder who speak, by their names; openings at `fps` frames a second.

    Videos without sound, and those whose lips hardly move, are left out with a note. InputError where there is no
    folder or no readable tracks.npz, or fewer than two people are left: each is compared with another's sound, too.
    """
    path = check_file(folder / TRACKS, "tracks")
    try:
        with np.load(path) as file:
            tracks = {name: np.asarray(file[name], np.float64) for name in sorted(file.files)}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable .npz file ({error}); make it again.") from error
    speakers, left_out = [], []
    for name, track in tracks.items():
        if track.ndim != 2 or not track.size or not np.isfinite(track[:, 0]).all():
            raise InputError(f"{path}: {name} is not a table [frames,columns] of finite openings; make it again.")
        video = next(iter(sorted(p for p in folder.glob(f"{name}.*") if p.suffix != ".npz")), None)
        found = None if video is None else probe(video)
        if found is None or not found.audio_samples:
            left_out.append(f"{name} (no {'video' if found is None else 'sound'})")
        elif track[:, 0].std() < SPEAKING:
            left_out.append(f"{name} (the lips hardly move)")
        else:
            recording = Recording(video, len(track) / found.fps)
            speakers.append(Speaker(name, recording, at_frame_rate(track[:, 0], found.fps, fps)))
    if left_out:
        warnings.warn(f"Left out of the speakers: {', '.join(left_out)}.", stacklevel=2)
    if len(speakers) < 2:
        raise InputError(f"{folder} has {len(speakers)} people who speak; two at least are compared with one another.")
    return speakers


def at_frame_rate(track: np.ndarray, fps: float, wanted: float) -> np.ndarray:
    """A track [F] of frames at `fps` -> [F * wanted / fps], each frame's value at the frame's middle."""
    count = int(len(track) / fps * wanted)
    return np.interp((np.arange(count) + 0.5) / wanted, (np.arange(len(track)) + 0.5) / fps, track)


# What the model hears -------------------------------------------------------------------------------------------------


def audio_tokens(pipeline: LetsTalkPipeline, features: Tensor) -> np.ndarray:
    """All audio tokens of each frame in a row, [F,K*A], of features [F,L,E]; the eyes are open."""
    windows = window_features(features, pipeline.config.audio.window)[None].to(pipeline.device)
    with torch.inference_mode():
        return pipeline.model.audio_projection(windows)[0].flatten(1).float().cpu().numpy()


def fit_read_out(pipeline: LetsTalkPipeline, clips: int = READ_OUT_CLIPS) -> ReadOut:
    """The linear map from a frame's audio tokens to the opening that fits synthetic speech best (ridge regression).

    It is fitted to training voices: real people's mouths are only judged with it. Needs espeak-ng.
    """
    tokens, openings = [], []
    for number in tqdm(range(clips), desc="read-out", disable=None):
        waveform, mouth = speech_clip(np.random.default_rng((number, 12)), "train", READ_OUT_SECONDS)
        tokens.append(audio_tokens(pipeline, pipeline.encode_audio(torch.from_numpy(waveform)[None], 16000)))
        openings.append(mouth[: len(tokens[-1]), 0])
    x, y = np.concatenate(tokens).astype(np.float64), np.concatenate(openings).astype(np.float64)
    weights, level = ridge(x, y, RIDGE)
    return lambda features: audio_tokens(pipeline, features) @ weights + level


# Numbers --------------------------------------------------------------------------------------------------------------


def follow(openings: Sequence[np.ndarray], speakers: Sequence[Speaker]) -> dict:
    """How openings [F], one a speaker, follow the speakers' own mouths.

    For each: r at the best lag of -LAGS..LAGS frames, that lag (positive: ours comes later), r at lag 0, the median of
    r, at each one's best lag, where the sound is another speaker's, and how far ours deviates, in eye distances. And
    the medians over the speakers.
    """
    rows = {}
    for own, speaker in zip(openings, speakers, strict=True):
        r, lag = _best(own, speaker.opening)
        others = [_best(other, speaker.opening)[0] for other in openings if other is not own]
        length = min(len(own), len(speaker.opening))
        rows[speaker.name] = {
            "r": r,
            "lag": lag,
            "r_at_lag_0": correlation(own[:length], speaker.opening[:length]),
            "r_of_anothers_sound": float(np.median(others)),
            "deviation": WIDE_OPEN * float(own.std()),
        }
    names = ("r", "r_at_lag_0", "r_of_anothers_sound", "deviation")
    return {"speakers": rows, "median": {n: float(np.median([row[n] for row in rows.values()])) for n in names}}


def _best(own: np.ndarray, truth: np.ndarray) -> tuple[float, int]:
    length = min(len(own), len(truth))
    return lagged_correlation(own[:length], truth[:length], LAGS)


def speakers_table(report: dict[str, dict]) -> str:
    """What `follow` says, by what the opening was read from, as lines of text: a row a speaker, the medians last."""
    lines = [f"{'opening, r':32}" + "".join(f"{kind:>10} {'lag':>4} {'another':>8}" for kind in report)]
    for name in next(iter(report.values()))["speakers"]:
        rows = [follows["speakers"][name] for follows in report.values()]
        cells = (f"{row['r']:10.2f} {row['lag']:+4d} {row['r_of_anothers_sound']:8.2f}" for row in rows)
        lines.append(f"{name[:32]:32}" + "".join(cells))
    medians = [follows["median"] for follows in report.values()]
    cells = (f"{median['r']:10.2f} {'':4} {median['r_of_anothers_sound']:8.2f}" for median in medians)
    return "\n".join([*lines, f"{'median':32}" + "".join(cells)])


def draw_speakers(
    speakers: Sequence[Speaker], ours: dict[str, Sequence[np.ndarray]], report: dict[str, dict], fps: float, path: Path
) -> None:
    """Write a plot with a panel for each speaker: the true opening and ours over time, all in units of their deviation.

    ours, report: by what the opening was read from; the openings of all speakers, and what `follow` says of them.
    """
    from matplotlib.figure import Figure

    figure = Figure((12, 1.6 * len(speakers) + 0.5), layout="constrained")
    for index, (axes, speaker) in enumerate(zip(figure.subplots(len(speakers), 1, squeeze=False)[:, 0], speakers)):
        curves = {"the speaker": speaker.opening, **{kind: made[index] for kind, made in ours.items()}}
        for kind, values in curves.items():
            values = values[: len(speaker.opening)]
            axes.plot(
                np.arange(len(values)) / fps, (values - values.mean()) / max(values.std(), 1e-6), lw=0.9, label=kind
            )
        told = [f"{kind} r = {report[kind]['speakers'][speaker.name]['r']:.2f}" for kind in ours]
        axes.set_title(f"{speaker.name}: {', '.join(told)}", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=7, loc="upper right")
    figure.supxlabel("seconds", fontsize=8)
    figure.savefig(path, dpi=90)
