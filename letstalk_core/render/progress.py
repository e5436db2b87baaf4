"""A rendering on the terminal: the estimate, a bar of clips, and what is kept when it ends early."""

from __future__ import annotations

import contextlib
import glob
import signal
import threading
import time
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError
from ..files import short_name
from .estimate import RenderEstimate, duration
from .render import Observer
from .segments import find_leftovers

# What ends a rendering; Windows has no SIGHUP.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
LOG_SECONDS = 60  # between two lines, where the output is no terminal


class ProgressBar(Observer):
    """Prints the estimate, then shows clip i of n, the rate, and the time left.

    Ctrl-C, or another of STOPS, that arrives inside PyAV's resampler is lost there (seen with 18.1), so it is
    remembered until `close`.
    """

    def __init__(self, output: Path):
        self.output, self.made, self.told = output, 0, time.monotonic()
        self.bar: tqdm | None = None
        self.estimate: RenderEstimate | None = None
        self._interrupted, self._handlers = False, {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._interrupt) for number in STOPS}

    def _interrupt(self, *_) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def check(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def step(self, *_) -> None:
        self.check()

    def begin(self, estimate: RenderEstimate) -> None:
        self.estimate = estimate
        print(f"{self.output}: {estimate}", flush=True)
        done = estimate.done // estimate.clip_frames
        self.bar = tqdm(total=estimate.clips, initial=done, unit="clip", desc=self.output.name, disable=None)

    def advance(self, frames: int, picture) -> None:
        self.made = frames - self.estimate.done
        self.bar.update(-(-frames // self.estimate.clip_frames) - self.bar.n)
        if self.bar.disable and time.monotonic() - self.told > LOG_SECONDS:  # into a file: no bar, but a line at times
            self.told = time.monotonic()
            print(f"{self.output}: {frames} of {self.estimate.frames} frames", flush=True)

    def close(self) -> None:
        """End the bar, and leave Ctrl-C to whoever handled it before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.bar:
            self.bar.close()

    def summary(self, frames: int, fps: float, seconds: float) -> str:
        """One line about a finished video of `frames` frames that took `seconds`."""
        rate = f"{seconds * fps / self.made:.2f} s per second of video" if self.made else "all of it was there"
        return f"{self.output}: {frames} frames, {frames / fps:.1f} s, made in {duration(seconds)} ({rate})"

    def kept(self) -> str:
        """A sentence about what is kept of a video that ended early; empty where nothing is."""
        if self.estimate:
            folders, advice = [self.estimate.work], "; the same command goes on from there"
        else:  # it has not got as far as that: an earlier run may have left something
            name = f"{glob.escape(short_name(self.output.name))}.work-*"
            folders, advice = sorted(self.output.parent.glob(name)), ""
        with contextlib.suppress(OSError, InputError):
            for found in (leftover for folder in folders for leftover in find_leftovers(folder)):
                if found.done:
                    return f"{found.done:.1f} s of the video are kept in {found.path}{advice}."
        return ""
