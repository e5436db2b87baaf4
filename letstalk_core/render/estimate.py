"""What a video will take, before its first frame: time, disk and memory, from a short measurement."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import Tensor

from ..audio.encoder import WINDOW_SECONDS
from ..errors import InputError
from ..video.reader import packet_sizes
from ..video.sound_track import SOUND_BITS
from .job import VideoJob
from .segments import WorkFolder, megabytes

INDEX_BYTES = 60  # memory for each frame and packet of sound while the segments are joined; 44 were measured
MEASURED_STEPS = 4  # denoising steps that are measured, at most


@dataclass(frozen=True)
class RenderEstimate:
    """What a rendering will take: `frames` in all, of which `done` are there from an earlier run, in clips of
    `clip_frames`; seconds of time; bytes of disk (the segments and the video itself) and of memory, at its peak.

    work: the folder of the segments. str() gives a line for people.
    """

    frames: int
    done: int
    clip_frames: int
    fps: float
    seconds: float
    disk: int
    memory: int
    work: Path

    @property
    def clips(self) -> int:
        return math.ceil(self.frames / self.clip_frames)

    def __str__(self) -> str:
        length = f"{self.frames} frames ({self.frames / self.fps:.1f} s) in {self.clips} clips"
        there = f", {self.done / self.fps:.1f} s of them there already" if self.done else ""
        return (
            f"{length}{there}: about {duration(self.seconds)}, {megabytes(self.disk)} on the disk and "
            f"{megabytes(self.memory)} of memory"
        )


def duration(seconds: float) -> str:
    """Seconds as text for people: "3 h 5 min", "12 min" or "40 s"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def estimate_rendering(
    job: VideoJob,
    portraits: Tensor,
    folder: WorkFolder,
    output: Path,
    check: Callable[[], None],
    memory: int = 0,
    copies: int = 1,
) -> RenderEstimate:
    """Estimate what a rendering will take, from sampling one clip in few steps, decoding and encoding it.

    portraits: latents [n,C,h,w], from VideoJob.encode. check is called after every step and cancels by raising. memory:
    bytes that the process held at its peak before, as while a huge picture was read. copies: of the whole video that
    the disk holds at its end; 2 while one is signed. InputError where the disk or the memory cannot hold the video.
    """
    steps, at = job.settings[0].steps or job.pipeline.config.sampling.steps, []
    few = min(max(steps, 2), MEASURED_STEPS)

    def stepped(step: int, steps: int, x0: Tensor) -> None:
        check()
        x0.flatten()[0].item()  # waits for a graphics card
        if step <= few:  # of the first speaker
            at.append(time.monotonic())

    last = min(folder.frames + job.clip_frames, job.frames)
    trial = folder.path / f"trial{folder.suffix}"
    with PeakMemory() as peak, job.writer(trial) as writer:
        began = time.monotonic()
        for features in job.features:
            _ = features[folder.frames : last]
        heard = time.monotonic() - began
        for frames, _ in job.chunks(portraits, folder.frames, last, folder.memory, stepped, few):
            for pixels in job.pixels(frames):
                writer.write(pixels)
        drawn = time.monotonic() - at[-1]
    sizes = packet_sizes(trial)
    if job.transparent:  # alpha lies beside the packets, of which it is no part
        sizes = [size * trial.stat().st_size / sum(sizes) for size in sizes]
    trial.unlink()

    left, rest = job.frames - folder.frames, sizes[1:] or sizes
    others = (len(job.speakers) - 1) * (steps - few)  # steps that what was drawn in has not
    per_clip = (at[-1] - at[0]) / (len(at) - 1) * (steps + others) + drawn
    windows = math.ceil(left / job.fps / WINDOW_SECONDS)
    sound = SOUND_BITS / 8 * min(job.recording.channels, 8) / job.fps
    if job.encoder == "png":  # it is not compressed
        sound = 2 * job.recording.rate * job.recording.channels / job.fps
    picture = sizes[0] / job.segment_frames + sum(rest) / len(rest)  # bytes of a frame
    if folder.segments:  # better known from what is there
        picture, sound = sum(path.stat().st_size for path in folder.segments) / folder.frames, 0
    joined = int((picture + sound) * job.frames)
    ahead = peak.bytes + int(INDEX_BYTES * job.frames * (1 + job.recording.rate / 1024 / job.fps))
    estimate = RenderEstimate(
        frames=job.frames,
        done=folder.frames,
        clip_frames=job.clip_frames,
        fps=job.fps,
        seconds=per_clip * math.ceil(left / job.clip_frames) + heard * windows,
        disk=joined * copies + int((picture + sound) * left),
        memory=max(memory, ahead),
        work=folder.path,
    )
    check_disk(folder, estimate.disk, output, joined)
    _check_memory(ahead)
    return estimate


class PeakMemory:
    """A context whose `bytes` is the most memory that this process held inside it."""

    def __enter__(self) -> PeakMemory:
        self._process, self._done = psutil.Process(), threading.Event()
        self.bytes = self._process.memory_info().rss
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_) -> None:
        self._done.set()
        self._watcher.join()


def check_disk(folder: WorkFolder, need: int, output: Path, joined: int) -> None:
    """Raises InputError where less than `need` bytes are free for the work folder, or, if the output lies on another
    file system, less than `joined` bytes there."""
    needs = {folder.path: need}
    if os.stat(output.parent).st_dev != os.stat(folder.path).st_dev:
        needs[output.parent] = joined
    for place, need in needs.items():
        free = shutil.disk_usage(place).free
        if need > free:
            raise InputError(
                f"The video needs about {megabytes(need)} on the disk of {place}, and {megabytes(free)} are free; free "
                "some, or choose another place for the output."
            )


def _check_memory(need: int) -> None:
    there = psutil.Process().memory_info().rss + psutil.virtual_memory().available
    if need > there:
        raise InputError(
            f"The video needs about {megabytes(need)} of memory, and {megabytes(there)} are there; close other "
            "programs, or make it in parts."
        )
