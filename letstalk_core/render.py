"""A video file of any length: estimated, rendered segment by segment, resumed after a crash, joined at the end."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from torch import Tensor

from .audio import FeatureStream
from .errors import InputError
from .files import create_part
from .long_video import SamplingSettings
from .paste_back import PasteBack
from .recording import Recording, SampleReader
from .sampling import check_sampler
from .segments import WorkFolder, megabytes, work_folder_of
from .video_io import AAC_BITS, FORMATS, VideoWriter, packet_sizes

if TYPE_CHECKING:
    from .pipeline import LetsTalkPipeline

JOB_FORMAT = 1  # raised when the same inputs begin to give other frames, so that old segments are not gone on with
SEGMENT_SECONDS = 4.0  # at most this much is lost by a crash
INDEX_BYTES = 130  # of memory for each frame and packet of sound while the segments are joined


class Observer:
    """What a rendering tells while it goes on. Any method cancels by raising."""

    def begin(self, estimate: Estimate) -> None:
        """Once, before the first frame is made."""

    def check(self) -> None:
        """Often, while the estimate is measured."""

    def step(self, step: int, steps: int, x0: Tensor) -> None:
        """After each denoising step of the video."""

    def advance(self, frames: int, picture: Tensor) -> None:
        """When so many frames are made: the latest one, uint8 [H,W,3]."""


@dataclass(frozen=True)
class Estimate:
    """What a rendering will take: `frames` in all, of which `done` are there from an earlier run, in clips of
    `clip_frames`; seconds of time; bytes of disk (the segments and the video itself) and of memory, at its peak."""

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
    """Such as "3 h 5 min", "12 min" or "40 s"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


@dataclass(frozen=True)
class VideoJob:
    """Everything that decides a video: who speaks what, and how it is sampled.

    portrait: latents [1,C,h,w]. paste_back: puts each frame into the picture that the portrait is from; None: the
    square as it is.
    """

    pipeline: LetsTalkPipeline
    portrait: Tensor
    recording: Recording
    settings: SamplingSettings
    paste_back: PasteBack | None = None

    @property
    def frames(self) -> int:
        return self.recording.frames(self.pipeline.config.fps)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.paste_back.portrait.original_size if self.paste_back else (self.pipeline.config.image_size,) * 2

    @functools.cached_property
    def features(self) -> FeatureStream:
        return self.pipeline.stream_audio(self.recording)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The same for the same frames and sound, whatever the files are called."""
        decides = {
            "format": JOB_FORMAT,
            "models": self.pipeline.digest,
            "portrait": _digest(self.portrait),
            "audio": [self.recording.digest, self.recording.rate],
            "settings": dataclasses.asdict(self.settings),
            "picture": self.paste_back and self.paste_back.digest,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def pictures(self, frames: Tensor):
        """Frames [1,3,H,W] in -1..1 -> uint8 [1,H,W,3] as they go into the file."""
        pasted = self.paste_back(frames) if self.paste_back else frames.add(1).div(2).clamp(0, 1).permute(0, 2, 3, 1)
        return pasted.mul(255).round().byte()


def render_video(
    job: VideoJob,
    output: str | Path,
    observer: Observer | None = None,
    work: Path | None = None,
    resume: bool = True,
    keep_work: bool = False,
) -> int:
    """Make the file `output` and return its number of frames.

    Segments are kept in the folder `work` (default: beside the output, with the fingerprint in its name) until the
    video is whole; rendering the same job again goes on after the last of them and gives the same frames as one run
    would. resume False begins anew. The folder is removed at the end unless keep_work. InputError where something is
    wrong with the inputs or the output, or the disk or the memory cannot hold the video; then, as after any exception,
    finished segments stay, and no file appears.
    """
    output, observer = Path(output), observer or Observer()
    config = job.pipeline.config
    check_sampler(job.settings.sampler or config.default_sampler, config.objective)
    _check_output(output)
    work = work or work_folder_of(output, job.fingerprint)
    about = {"output": output.name, "frames": job.frames, "fps": config.fps}
    with WorkFolder(work, job.fingerprint, about) as folder:
        if not resume:
            folder.clear()
        if folder.frames < job.frames:
            observer.begin(measure(job, folder, output, observer))
            _render_segments(job, folder, observer)
        joined = folder.path / f"joined{output.suffix}"
        with folder.sentences(), VideoWriter(joined, *job.size, config.fps, job.recording) as writer:
            for segment in folder.segments:
                writer.copy(segment)
        folder.finish(joined, output)
        if not keep_work:
            folder.remove()
    return job.frames


def _check_output(output: Path) -> None:
    """Raises InputError now rather than after hours."""
    if output.suffix.lower() not in FORMATS:
        raise InputError(f"{output} does not end in {', '.join(FORMATS)}; name the video file .mp4.")
    create_part(output).unlink()


def segment_frames(job: VideoJob) -> int:
    """A whole number of clips, so that a segment ends with a memory."""
    config = job.pipeline.config
    return max(1, round(SEGMENT_SECONDS * config.fps / config.clip_frames)) * config.clip_frames


def _render_segments(job: VideoJob, folder: WorkFolder, observer: Observer) -> None:
    config = job.pipeline.config
    sound = SampleReader(job.recording.blocks())
    sound.skip(_sample_at(job, folder.frames))
    while folder.frames < job.frames:
        first, last = folder.frames, min(folder.frames + segment_frames(job), job.frames)
        samples = sound.read(_sample_at(job, last) - _sample_at(job, first))
        memory = folder.memory
        with (
            folder.sentences(),
            VideoWriter(folder.next_segment, *job.size, config.fps, (samples, sound.rate)) as writer,
        ):
            for chunk in job.pipeline.render(
                job.portrait, job.features, job.settings, first, last, memory, observer.step
            ):
                memory = chunk.memory
                for frame in chunk.frames.split(1):  # a large picture sixteen times would fill the memory
                    picture = job.pictures(frame)
                    writer.write(picture)
                observer.advance(first + writer.frames, picture[0])
        folder.add(memory, last)


def _sample_at(job: VideoJob, frame: int) -> int:
    """The first sample of a frame, of the recording's; at the end the number of samples."""
    return min(math.floor(frame * job.recording.rate / job.features.fps), job.recording.samples)


def measure(job: VideoJob, folder: WorkFolder, output: Path, observer: Observer) -> Estimate:
    """What the whole will take, from sampling one clip in two steps, decoding and encoding it.

    InputError where the disk or the memory cannot hold it.
    """
    config, at = job.pipeline.config, []

    def stepped(*_) -> None:
        observer.check()
        at.append(time.monotonic())

    few = dataclasses.replace(job.settings, steps=2)
    last = min(folder.frames + config.clip_frames, job.frames)
    trial = folder.path / "trial.mp4"
    with folder.sentences(), VideoWriter(trial, *job.size, config.fps) as writer:
        for chunk in job.pipeline.render(job.portrait, job.features, few, folder.frames, last, folder.memory, stepped):
            for frame in chunk.frames.split(1):
                writer.write(job.pictures(frame))
    drawn = time.monotonic() - at[-1]
    first, *others = packet_sizes(trial)
    trial.unlink()

    left, length = job.frames - folder.frames, segment_frames(job)
    per_clip = (at[1] - at[0]) * (job.settings.steps or config.default_steps) + drawn
    picture = first / length + (sum(others) / len(others) if others else first)  # bytes of a frame
    sound = AAC_BITS / 8 * min(job.recording.channels, 8) / config.fps
    joined = int((picture + sound) * job.frames)
    estimate = Estimate(
        frames=job.frames,
        done=folder.frames,
        clip_frames=config.clip_frames,
        fps=config.fps,
        seconds=per_clip * math.ceil(left / config.clip_frames),
        disk=joined + int((picture + sound) * left),
        memory=peak_memory() + int(INDEX_BYTES * job.frames * (1 + job.recording.rate / 1024 / config.fps)),
        work=folder.path,
    )
    _check_room(estimate, output, joined)
    return estimate


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _check_room(estimate: Estimate, output: Path, joined: int) -> None:
    needs = {estimate.work: estimate.disk}
    if os.stat(output.parent).st_dev != os.stat(estimate.work).st_dev:
        needs[output.parent] = joined
    for folder, need in needs.items():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise InputError(
                f"The video needs about {megabytes(need)} on the disk of {folder}, and {megabytes(free)} are free; "
                "free some, or choose another place for the output."
            )
    there = psutil.Process().memory_info().rss + psutil.virtual_memory().available
    if estimate.memory > there:
        raise InputError(
            f"The video needs about {megabytes(estimate.memory)} of memory, and {megabytes(there)} are there; close "
            "other programs, or make it in parts."
        )


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.detach().float().cpu().contiguous().numpy()).hexdigest()
