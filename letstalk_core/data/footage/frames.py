"""The pictures of a video at another frame rate, in time with the sound."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np

from ...errors import InputError
from ...video.driving_video import period_of, rising

Picture = tuple[av.VideoFrame, Fraction | None]  # as decoded, and the width of a pixel over its height
T = TypeVar("T")


@contextlib.contextmanager
def _decoding(path: Path, kind: str) -> Iterator:
    """The opened file and its first stream of a kind, "video" or "audio"; InputError where it fails."""
    try:
        with av.open(f"file:{path}") as container:  # a name with a colon is no protocol
            streams = getattr(container.streams, kind)
            if not streams:
                raise InputError(f"{path} has no {'picture' if kind == 'video' else 'sound'}.")
            yield container, streams[0]
    except av.FFmpegError as error:
        raise InputError(f"{path} cannot be decoded ({error.strerror or error}): it is damaged.") from error


def audio_start(path: Path) -> Fraction:
    """The time of the first sample that a Recording gives, in seconds on the file's clock."""
    with _decoding(path, "audio") as (container, stream):
        first = next(container.decode(stream), None)
        return Fraction(0) if first is None or first.pts is None else first.pts * first.time_base


def timed_frames(path: Path, start: float = 0.0) -> Iterator[tuple[Fraction, Picture]]:
    """Yield (seconds on the file's clock, picture) of a video, the seconds rising. InputError where it is damaged.

    start: seconds; decoding begins at the last picture before it that can be decoded alone.
    """
    with _decoding(path, "video") as (container, stream):
        stream.thread_type = "AUTO"
        ratio = stream.sample_aspect_ratio
        if start > 0:
            container.seek(int(start / stream.time_base), stream=stream)
        for seconds, frame in rising(container.decode(stream), period_of(stream)):
            yield seconds, (frame, ratio)


def resample(pictures: Iterator[tuple[Fraction, T]], rate: Fraction, origin: Fraction) -> Iterator[tuple[int, T]]:
    """Yield (f, picture nearest in time to origin + f / rate) for every f >= 0 from the first picture to the last."""
    last, before, number, gap = None, None, 0, Fraction(0)
    for time, picture in pictures:
        position = (time - origin) * rate  # in frames of the result
        if last is None:
            number = max(0, math.ceil(position - Fraction(1, 2)))
        else:
            gap = position - last
            while number <= (last + position) / 2:
                yield number, before
                number += 1
        last, before = position, picture
    while last is not None and number <= last + max(gap, Fraction(1)) / 2:
        yield number, before
        number += 1


def to_rgb(picture: Picture, most: int | None = None) -> np.ndarray:
    """A decoded picture as RGB uint8 [H, W, 3], upright and with square pixels; most: pixels of its shorter side, to
    which a larger one is reduced."""
    frame, ratio = picture
    width, height = round(frame.width * ratio) if ratio else frame.width, frame.height
    if most is not None and min(width, height) > most:
        scale = most / min(width, height)
        width, height = round(width * scale), round(height * scale)
    pixels = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    quarter_turns = round(getattr(frame, "rotation", 0) / 90)  # phones store turned pictures
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))
