"""Reading of video files: what they hold, and their frames one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..audio.decoding import audio_blocks
from ..errors import InputError
from ..files import check_file


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds; durations in seconds. The audio fields are 0 where it has no sound."""

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    audio_samples: int
    audio_rate: int
    audio_channels: int
    audio_duration: float


def probe(path: str | Path) -> VideoInfo:
    """Count a video's frames and samples exactly (sound is decoded); InputError where it is no video."""
    path = check_file(path, "video")
    with open_video(path) as container:
        stream = container.streams.video[0]
        fps = stream.average_rate or stream.guessed_rate or Fraction(25)
        width, height = stream.width, stream.height
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        has_sound = bool(container.streams.audio)
    samples = rate = channels = 0
    if has_sound:
        for block, rate in audio_blocks(path):  # noqa: B007 (rate is used below)
            channels, samples = block.shape[0], samples + block.shape[1]
    return VideoInfo(
        frames, float(fps), width, height, float(frames / fps), samples, rate, channels, samples / rate if rate else 0.0
    )


def packet_sizes(path: str | Path) -> list[int]:
    """Bytes of each encoded picture, in the order of the file; the first can be decoded alone."""
    with open_video(check_file(path, "video")) as container:
        return [packet.size for packet in container.demux(container.streams.video[0]) if packet.size]


def iter_video_frames(path: str | Path, transparent: bool = False) -> Iterator[np.ndarray]:
    """Yield a video's frames uint8 [H, W, 3], upright, one at a time; InputError where it is damaged or no video.

    transparent: [H, W, 4] of one that is (is_transparent).
    """
    if transparent:
        yield from _transparent_frames(path)
        return
    with open_video(check_file(path, "video")) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            quarter_turns = round(getattr(frame, "rotation", 0) / 90)  # phones store turned pictures
            yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))


def is_transparent(path: str | Path) -> bool:
    """Does a file say of its pictures that they have alpha, as a .webm of ours does?"""
    with open_video(check_file(path, "video")) as container:
        tags = container.streams.video[0].metadata.items()
        return any(key.lower() == "alpha_mode" and text == "1" for key, text in tags)


def _transparent_frames(path: str | Path) -> Iterator[np.ndarray]:
    """By libvpx: ffmpeg's own decoder of VP9 passes over alpha."""
    with open_video(check_file(path, "video")) as container:
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        for packet in container.demux(video=0):
            for frame in decoder.decode(packet):
                yield frame.to_ndarray(format="rgba")


def read_video_frames(path: str | Path) -> np.ndarray:
    """All frames of a short video, uint8 [n, H, W, 3]."""
    return np.stack(list(iter_video_frames(path)))


@contextlib.contextmanager
def open_video(path: Path):
    """A context with PyAV's container of a file with a picture; InputError where it is damaged or no video."""
    try:
        with av.open(f"file:{path}") as container:  # a name with a colon is no protocol
            if not container.streams.video:
                raise InputError(f"{path} has no picture; choose a video file.")
            yield container
    except av.FFmpegError as error:
        raise InputError(
            f"{path} cannot be decoded ({error.strerror or error}): it is damaged or not a video; export it again."
        ) from error
