"""The clips that `evaluate` compares: pairs of videos from two folders, or what a model makes of prepared footage."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..audio.recording import SAMPLE_RATE, Recording
from ..data.footage.shard_index import ShardEntry, find_shards, index_shard
from ..data.preparation.video_sources import find_videos
from ..errors import InputError
from ..pipeline import LetsTalkPipeline
from ..pixels import pixels_to_images
from ..video.clips import SamplingSettings
from ..video.reader import VideoInfo, iter_video_frames, probe
from .report import frames_of, whole_portrait

GENERATED, TRUTH, STILL, ANOTHER = "generated", "the truth", "still first frame", "another's sound"
LEAST_FRAMES = 16  # of a clip: a window of FVD
LEAST_CLIPS = 2  # intervals draw clips, and Fréchet distances need a spread
RATES_ALIKE = 0.01  # frames a second


@dataclass(frozen=True)
class Clip:
    """A real clip and what was made of it.

    real: uint8 [F,H,W,3]. made: videos of that shape, by what made them. waveform: float32 [S], 16 kHz mono, of the F
    frames; None where there is no sound.
    """

    name: str
    real: np.ndarray
    made: dict[str, np.ndarray]
    fps: float
    waveform: np.ndarray | None


@dataclass(frozen=True)
class ClipSet:
    """Clips that are alike in frame rate and size, read or made one at a time. clip_frames: of the model's clips."""

    names: list[str]
    rows: list[str]  # what made the videos
    fps: float
    size: tuple[int, int]  # H, W that is measured
    resized: str  # how frames came to that size
    clip_frames: int
    _read: list = field(repr=False)  # called for each clip

    def clips(self) -> Iterator[Clip]:
        for read in self._read:
            yield read()


def with_rungs(made: dict[str, np.ndarray], real: np.ndarray) -> dict[str, np.ndarray]:
    """What a measure has to tell apart, beside what was made: the truth itself, and its first frame standing still."""
    return {**made, TRUTH: real, STILL: np.broadcast_to(real[:1], real.shape)}


# Two folders ----------------------------------------------------------------------------------------------------------


def paired_folders(
    generated: Path, real: Path, seconds: float | None, size: int | None, rungs: bool, clip_frames: int
) -> ClipSet:
    """The videos of two folders that bear the same names (without the suffix), checked before all is decoded.

    seconds: of each clip that are measured, from its start; None for all. size: pixels of the side that frames, which
    must be square then, are resized to; None where both have the same size. InputError where a folder is empty, names
    do not match, or two videos, or two clips, differ in length, frame rate or size.
    """
    sides = [_by_name(folder) for folder in (generated, real)]
    for have, lack, folder in ((0, 1, real), (1, 0, generated)):
        missing = sorted(sides[have].keys() - sides[lack].keys())
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(
                f"{folder} has no video named {', '.join(missing[:3])}{more}; give both folders the same names."
            )
    names = sorted(sides[0])
    if len(names) < LEAST_CLIPS:
        raise InputError(
            f"{generated} has {len(names)} video; intervals and Fréchet distances need at least {LEAST_CLIPS}."
        )
    infos = {name: _checked_pair(*(side[name] for side in sides), size) for name in names}
    first = infos[names[0]]
    for name, info in infos.items():
        if abs(info.fps - first.fps) > RATES_ALIKE or (not size and _sides(info) != _sides(first)):
            raise InputError(
                f"{names[0]} has {_told(first)} and {name} {_told(info)}; give clips of one frame rate, and of one "
                "size or --size."
            )
    measured = _sides(first) if size is None else (size, size)
    resized = "not resized" if size is None else f"resized to {size}x{size}, by areas where smaller, else bicubic"

    def reader(name: str):
        return lambda: _read_pair(name, *(side[name] for side in sides), infos[name], seconds, size, rungs)

    rows = [GENERATED, *([TRUTH, STILL] if rungs else [])]
    return ClipSet(names, rows, first.fps, measured, resized, clip_frames, [reader(name) for name in names])


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in find_videos(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{found[name]} and {path} have one name; keep one of them.")
        found[name] = path
    return found


def _sides(info: VideoInfo) -> tuple[int, int]:
    return info.height, info.width


def _probe_upright(path: Path) -> VideoInfo:
    """What a video holds, with the sides that its frames are decoded to: phones store turned pictures."""
    for frame in iter_video_frames(path):
        return replace(probe(path), height=frame.shape[0], width=frame.shape[1])
    raise InputError(f"{path} has no frame that can be decoded; export it again.")


def _told(info: VideoInfo) -> str:
    return f"{info.width}x{info.height} pixels at {info.fps:g} frames a second"


def _checked_pair(generated: Path, real: Path, size: int | None) -> VideoInfo:
    """What the real video holds; InputError where the generated one is no counterpart of it."""
    made, true = _probe_upright(generated), _probe_upright(real)
    if abs(made.fps - true.fps) > RATES_ALIKE:
        raise InputError(
            f"{generated} has {made.fps:g} frames a second and {real} {true.fps:g}; convert one to the other's rate."
        )
    if made.frames != true.frames:
        raise InputError(f"{generated} has {made.frames} frames and {real} {true.frames}; cut both to the same length.")
    if true.frames < LEAST_FRAMES:
        raise InputError(f"{real} has {true.frames} frames; a clip that is measured has at least {LEAST_FRAMES}.")
    for path, info in ((generated, made), (real, true)):
        if size is not None and info.width != info.height:
            raise InputError(f"{path} is {info.width}x{info.height} and not square; crop it before --size resizes it.")
    if size is None and _sides(made) != _sides(true):
        raise InputError(
            f"{generated} has {made.width}x{made.height} pixels and {real} {true.width}x{true.height}; give --size."
        )
    return true


def _read_pair(
    name: str, generated: Path, real: Path, info: VideoInfo, seconds: float | None, size: int | None, rungs: bool
) -> Clip:
    count = info.frames if seconds is None else min(info.frames, max(LEAST_FRAMES, round(seconds * info.fps)))
    frames, truth = (_read_frames(path, count, size) for path in (generated, real))
    sounding = next((path for path in (generated, real) if probe(path).audio_samples), None)
    waveform = None if sounding is None else _read_sound(sounding, count / info.fps)
    made = {GENERATED: frames}
    return Clip(name, truth, with_rungs(made, truth) if rungs else made, info.fps, waveform)


def _read_frames(path: Path, count: int, size: int | None) -> np.ndarray:
    """The first frames of a video, uint8 [count,H,W,3]; InputError where fewer can be decoded."""
    found = []
    for frame in iter_video_frames(path):
        if size is not None:
            way = cv2.INTER_AREA if size < len(frame) else cv2.INTER_CUBIC
            frame = cv2.resize(frame, (size, size), interpolation=way)
        found.append(frame)
        if len(found) == count:
            return np.stack(found)
    raise InputError(f"{path} is damaged: {len(found)} of its frames can be decoded, not {count}; export it again.")


def _read_sound(path: Path, seconds: float) -> np.ndarray:
    return torch.cat(list(Recording(path, seconds).mono_16k())).numpy()[: round(seconds * SAMPLE_RATE)]


# A model and shards ---------------------------------------------------------------------------------------------------


def of_model(pipeline: LetsTalkPipeline, shards: Path, seconds: float, size: int | None, rungs: bool) -> ClipSet:
    """What a model makes of the first frame and the features of prepared footage: shards/eval where there is such a
    folder, else all of it.

    seconds: of each stretch, at most. rungs: the truth, its first frame, and the first frame with the sound of the next
    stretch, too. InputError where the shards do not fit the model, or there are fewer than two stretches.
    """
    folder = shards / "eval" if (shards / "eval").is_dir() else shards
    entries = [entry for path in find_shards(folder) for entry in index_shard(path)]
    kept = [entry for entry in entries if entry.frames >= LEAST_FRAMES]
    if len(kept) < len(entries):
        warnings.warn(
            f"{len(entries) - len(kept)} of {len(entries)} stretches have fewer than {LEAST_FRAMES} frames; they are "
            "left out.",
            stacklevel=2,
        )
    if len(kept) < LEAST_CLIPS:
        raise InputError(
            f"{folder} has {len(kept)} stretches of at least {LEAST_FRAMES} frames; intervals and Fréchet distances "
            f"need at least {LEAST_CLIPS}."
        )
    for entry in kept:
        _check_fits(entry, pipeline)
    side = size or pipeline.config.image_size

    def reader(i: int):
        return lambda: _make(pipeline, kept[i], kept[(i + 1) % len(kept)], seconds, side, rungs, seed=i)

    rows = [GENERATED, *([TRUTH, STILL, ANOTHER] if rungs else [])]
    resized = "first frame and truth resized to the model's size by areas where smaller, else bicubic"
    if side != pipeline.config.image_size:
        resized += f", then everything to {side}x{side}"
    names, clip_frames = [entry.title for entry in kept], pipeline.config.transformer.clip_frames
    read = [reader(i) for i in range(len(kept))]
    return ClipSet(names, rows, pipeline.config.fps, (side, side), resized, clip_frames, read)


def _check_fits(entry: ShardEntry, pipeline: LetsTalkPipeline) -> None:
    config = pipeline.config
    if "mp4" not in entry.members:
        raise InputError(f"{entry.title} has only latents; evaluation needs footage prepared with its frames kept.")
    shape, needed = entry.arrays["features.npy"].shape[1:], (config.audio.blocks, config.audio.channels)
    if shape != needed or entry.audio_encoder != config.audio.encoder:
        raise InputError(
            f"{entry.title} has features of {entry.audio_encoder} {shape}, but the model needs {config.audio.encoder} "
            f"{needed}; prepare the footage with the model's audio encoder."
        )
    if abs(entry.fps - config.fps) > RATES_ALIKE:
        raise InputError(
            f"{entry.title} has {entry.fps:g} frames a second, the model makes {config.fps:g}; prepare it at that rate."
        )
    if entry.size[0] != entry.size[1]:
        raise InputError(f"{entry.title} is {entry.size[1]}x{entry.size[0]} and not square; prepare it as a square.")


def _make(
    pipeline: LetsTalkPipeline, entry: ShardEntry, other: ShardEntry, seconds: float, side: int, rungs: bool, seed: int
) -> Clip:
    count = min(entry.frames, max(LEAST_FRAMES, round(seconds * entry.fps)))
    pixels = entry.pixels(0, count).permute(0, 2, 3, 1).numpy()
    real = _resized(pixels, pipeline.config.image_size)
    portrait, settings = whole_portrait(pixels_to_images(real[0])), SamplingSettings(seed=seed)

    def frames(features: Tensor) -> np.ndarray:
        return _resized(frames_of(pipeline, portrait.image, features, settings), side)

    made, real = {GENERATED: frames(_features(entry, count))}, _resized(real, side)
    if rungs:
        made = {**with_rungs(made, real), ANOTHER: frames(_features(other, count))}
    sound = entry.sound()
    waveform = None if sound is None else sound[: round(count / entry.fps * SAMPLE_RATE)]
    return Clip(entry.title, real, made, entry.fps, waveform)


def _resized(frames: np.ndarray, side: int) -> np.ndarray:
    if frames.shape[1] == side:
        return frames
    way = cv2.INTER_AREA if side < frames.shape[1] else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (side, side), interpolation=way) for frame in frames])


def _features(entry: ShardEntry, count: int) -> Tensor:
    """Features [count,L,E] from the first frame on; a shorter stretch is played again from its start."""
    features = entry.rows("features.npy", entry.context, entry.context + min(count, entry.frames))
    return features[torch.arange(count) % len(features)]
