"""A rendering on the terminal: the estimate, a bar of clips, and what is kept when it ends early."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from .files import short_name
from .render import Estimate, Observer, duration
from .segments import find_leftovers


class ProgressBar(Observer):
    """Prints the estimate, then shows clip i of n, the rate, and the time left."""

    def __init__(self, output: Path):
        self.output, self.made = output, 0
        self.bar: tqdm | None = None
        self.estimate: Estimate | None = None

    def begin(self, estimate: Estimate) -> None:
        self.estimate = estimate
        print(f"{self.output}: {estimate}", flush=True)
        done = estimate.done // estimate.clip_frames
        self.bar = tqdm(total=estimate.clips, initial=done, unit="clip", desc=self.output.name, disable=None)

    def advance(self, frames: int, picture) -> None:
        self.made = frames - self.estimate.done
        self.bar.update(-(-frames // self.estimate.clip_frames) - self.bar.n)

    def close(self) -> None:
        if self.bar:
            self.bar.close()

    def summary(self, frames: int, fps: float, seconds: float) -> str:
        """What was made, in a line."""
        rate = f"{seconds * fps / self.made:.2f} s per second of video" if self.made else "all of it was there"
        return f"{self.output}: {frames} frames, {frames / fps:.1f} s, made in {duration(seconds)} ({rate})"

    def kept(self) -> str:
        """A sentence about what is finished of the video, or nothing."""
        name = f"{short_name(self.output.name)}.work-*"
        folders = [self.estimate.work] if self.estimate else sorted(self.output.parent.glob(name))
        for found in (leftover for folder in folders if folder.is_dir() for leftover in find_leftovers(folder)):
            if found.done:
                return f"{found.done:.1f} s of the video are kept in {found.path}; the same command goes on from there."
        return ""
