"""A driving video's frames one at a time, each with its time: phones and screen recorders keep no even rate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from ..errors import InputError
from ..files import check_file
from .reader import open_video


def driving_frames(
    source: str | Path | BytesIO,
    start: float = 0.0,
    duration: float = 0.0,
    advance: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds, frame): the middle of each frame, counted from the beginning of the first, and its pixels uint8
    [H,W,3], upright. They are decoded one by one, and none is kept.

    source: a file, or what one holds. start, duration: the part in seconds that is taken; a duration of 0 is all that
    comes after start. advance is called with (frames taken, frames in all, about) and cancels by raising. InputError
    where the source is damaged or no video.
    """
    with _opened(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        period, first = period_of(stream), None
        length = duration or (container.duration or 0) / av.time_base - start
        for taken, (seconds, frame) in enumerate(rising(_part(container, stream, start, duration), period), 1):
            first = seconds if first is None else first
            if advance is not None:
                advance(taken, max(taken, round(length / period)))
            yield float(seconds - first + period / 2), _upright(frame)


def period_of(stream: av.VideoStream) -> Fraction:
    """Seconds from frame to frame, on average; 25 frames a second where a stream does not say it."""
    return 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))


def rising(frames: Iterable[av.VideoFrame], period: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Yield (seconds on the file's clock, frame). A frame without a time comes a period after the last one; those
    whose time does not rise are left out, as players do."""
    last = None
    for frame in frames:
        expected = Fraction(0) if last is None else last + period
        seconds = expected if frame.pts is None else frame.pts * frame.time_base
        if last is None or seconds > last:
            yield seconds, frame
            last = seconds


def _part(container, stream, start: float, duration: float) -> Iterator[av.VideoFrame]:
    begin, end = (int(seconds / stream.time_base) for seconds in (start, start + duration))
    if begin:
        container.seek(begin, stream=stream)  # to the frame before it that can be decoded alone
    for frame in container.decode(stream):
        if duration and frame.pts is not None and frame.pts >= end:
            return
        if frame.pts is None or frame.pts >= begin or not begin:  # without a start, times below 0 count too
            yield frame


def _upright(frame: av.VideoFrame) -> np.ndarray:
    quarter_turns = round(getattr(frame, "rotation", 0) / 90)  # phones store turned pictures
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))


@contextlib.contextmanager
def _opened(source: str | Path | BytesIO):
    if not isinstance(source, BytesIO):
        with open_video(check_file(source, "video")) as container:
            yield container
        return
    source.seek(0)
    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise InputError("The driving video has no picture; choose another.")
            yield container
    except av.FFmpegError as error:
        raise InputError(
            f"The driving video cannot be decoded ({error.strerror or error}): it is damaged or not a video; export it "
            "again."
        ) from error
