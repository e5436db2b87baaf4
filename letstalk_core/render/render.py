"""A video file of any length: estimated, rendered segment by segment, resumed after a crash, joined at the end."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import torch
from torch import Tensor

from ..audio.encoder import FeatureStream
from ..audio.recording import Recording, SampleReader
from ..diffusion.samplers import check_sampler
from ..errors import InputError
from ..files import cannot_write, create_part, move_into_place
from ..picture.paste_back import PasteBack
from ..picture.portrait import Portrait
from ..video.clips import SamplingSettings
from ..video.writer import FORMATS, VideoWriter
from .estimate import Estimate, check_disk, measure
from .segments import WorkFolder, work_folder_of

if TYPE_CHECKING:
    from ..pipeline import LetsTalkPipeline

JOB_FORMAT = 1  # raised when the same inputs begin to give other frames, so that old segments are not gone on with
SEGMENT_SECONDS = 8.0  # at most this much is lost by a crash; each begins with a key frame, which can be seen


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
class VideoJob:
    """Everything that decides a video: who speaks what, and how it is sampled.

    portrait: the crop that speaks. paste_back: puts each frame into the picture that the crop is from; None: the square
    as it is.
    """

    pipeline: LetsTalkPipeline
    portrait: Portrait
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

    @property
    def segment_frames(self) -> int:
        """A whole number of clips, so that a segment ends with a memory."""
        config = self.pipeline.config
        return max(1, round(SEGMENT_SECONDS * config.fps / config.clip_frames)) * config.clip_frames

    @functools.cached_property
    def features(self) -> FeatureStream:
        return self.pipeline.stream_audio(self.recording)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The same for the same frames and sound, whatever the files are called.

        Versions are in it, too: another encoder's packets must not be joined with these.
        """
        decides = {
            "format": [JOB_FORMAT, torch.__version__, av.__version__, str(av.library_versions)],
            "models": self.pipeline.digest,
            "portrait": hashlib.sha256(self.portrait.image.contiguous().numpy()).hexdigest(),
            "audio": [self.recording.digest, self.recording.rate, self.recording.channels],
            "settings": dataclasses.asdict(self.settings),
            "picture": self.paste_back and self.paste_back.digest,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def pictures(self, frames: Tensor) -> Tensor:
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
            # The latents of the first run, too: a graphics card may round them differently the next time.
            portrait = job.pipeline.encode_portrait(job.portrait) if folder.portrait is None else folder.portrait
            portrait = portrait.to(job.pipeline.device)
            observer.begin(measure(job, portrait, folder, output, observer.check))
            _render_segments(job, portrait, folder, observer)
        _join(job, folder, output, observer)
        folder.finished = not keep_work
    return job.frames


def _check_output(output: Path) -> None:
    """Raises InputError now rather than after hours."""
    if output.suffix.lower() not in FORMATS:
        raise InputError(f"{output} does not end in {', '.join(FORMATS)}; name the video file .mp4.")
    create_part(output).unlink()


def _render_segments(job: VideoJob, portrait: Tensor, folder: WorkFolder, observer: Observer) -> None:
    fps, sound = job.pipeline.config.fps, SampleReader(job.recording.blocks())
    while folder.frames < job.frames:
        first, last = folder.frames, min(folder.frames + job.segment_frames, job.frames)
        sound.skip(job.recording.sample_of(first, fps) - sound.position)
        samples = sound.read(job.recording.sample_of(last, fps) - sound.position)
        audio = (samples, sound.rate) if samples.shape[1] else None  # a frame's sound may round to nothing
        memory = folder.memory
        with VideoWriter(folder.next_segment, *job.size, fps, audio) as writer:
            for chunk in job.pipeline.render(portrait, job.features, job.settings, first, last, memory, observer.step):
                memory = chunk.memory
                for frame in chunk.frames.split(1):  # a large picture sixteen times would fill the memory
                    picture = job.pictures(frame)
                    writer.write(picture)
                observer.advance(first + writer.frames, picture[0])
        folder.add(memory, portrait, last)


def _join(job: VideoJob, folder: WorkFolder, output: Path, observer: Observer) -> None:
    """All segments as one file, with the whole sound, in its place."""
    size = sum(segment.stat().st_size for segment in folder.segments)
    check_disk(folder, size, output, size)
    joined = folder.path / f"joined{output.suffix}"
    with VideoWriter(joined, *job.size, job.pipeline.config.fps, job.recording) as writer:
        for segment in folder.segments:
            observer.check()
            writer.copy(segment)
    try:
        move_into_place(joined, output)
    except OSError as error:
        raise cannot_write(output, error) from error
