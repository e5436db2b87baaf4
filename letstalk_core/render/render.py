"""A video file of any length: estimated, rendered segment by segment, resumed after a crash, joined at the end."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..audio.dialogue import Channel, together
from ..audio.recording import Recording, SampleReader, Sound
from ..defaults import LEAST_SIZE, MOST_SIZE
from ..diffusion.samplers import check_sampler
from ..errors import InputError
from ..files import cannot_write, create_part, move_into_place
from ..picture.cutout import Background, opaque, person_of
from ..picture.paste_back import PasteBack
from ..picture.picture_file import read_with_alpha, without_alpha
from ..picture.portrait import Portrait, check_apart
from ..pipeline import LetsTalkPipeline
from ..video.clips import SamplingSettings
from ..video.file_format import encoder_of, format_of
from ..video.motion_keys import Motion
from ..video.picture_folder import check_folder, move_folder, write_pictures
from ..video.signing import Signature, check_signing, sign_video
from ..video.writer import check_encoder
from .behind import Behind
from .estimate import PeakMemory, RenderEstimate, check_disk, estimate_rendering
from .job import Speaker, VideoJob
from .segments import JOINED, WorkFolder, work_folder_of

Voice = str | Path | tuple[str | Path, str | int]  # a file, or one channel of it: "left", "right" or a number


class Observer:
    """What a rendering calls while it goes on. Any method cancels it by raising."""

    def begin(self, estimate: RenderEstimate) -> None:
        """Called once, before the first frame is made."""

    def check(self) -> None:
        """Called often while the estimate is measured and while segments are joined."""

    def step(self, step: int, steps: int, x0: Tensor) -> None:
        """Called after denoising step `step` of the `steps` of each clip; x0: the latents that are predicted then."""

    def advance(self, frames: int, picture: Tensor) -> None:
        """Called when `frames` frames are made; picture: the latest one, uint8 [H,W,3]."""


def write_video(
    pipeline: LetsTalkPipeline,
    portrait: str | Path,
    audio: Voice | Mapping[str | int, Voice],
    output: str | Path,
    settings: SamplingSettings | None = None,
    *,
    face: str | int = "largest",
    max_seconds: float | None = None,
    audio_track: int | None = None,
    encoder: str = "x264",
    size: int | None = None,
    full_picture: bool = False,
    motion: Motion | None = None,
    label: str = "",
    background: str = "keep",
    sign: tuple[str | Path, str | Path] | None = None,
    observer: Observer | None = None,
    resume: bool = True,
    keep_work: bool = False,
) -> int:
    """Make a talking video of any length from the files of a picture and a recording; returns its number of frames.

    audio: a file, (file, channel), or for several speakers a mapping from each one's face to its sound; the picture
    is whole then, and each listens while another speaks. face: which one of the picture (portrait.crop_portrait),
    where one speaks. max_seconds: only the beginning of the recording. audio_track: which of several (Recording).
    encoder: of the pictures, one of video.h264.ENCODERS. size: of the square video in pixels, LEAST_SIZE to
    MOST_SIZE; None is the model's own. full_picture: the video has the picture's size and all that is in it, and
    the face speaks in its place. motion: of head and face over time, before what `settings` asks for. label: a text
    in the lower left corner of every frame. background: "keep", "transparent" (a .webm, or a folder of PNG
    pictures) or a colour (Background.parse), behind the person. sign: the files of a private key and its
    certificate, for a C2PA manifest whose ingredient is the portrait. The other arguments are render_video's.
    Raises InputError for anything wrong with the inputs or the output, and for an encoder, a label or a signature
    that cannot be used here.
    """
    voices = audio if isinstance(audio, Mapping) else {face: audio}
    full_picture = full_picture or isinstance(audio, Mapping)
    for source in (portrait, *(_file_and_channel(voice)[0] for voice in voices.values())):
        if os.path.exists(output) and os.path.exists(source) and os.path.samefile(output, source):
            raise InputError(f"The output {output} is one of the inputs; give it another name.")
    if size is not None and (full_picture or not LEAST_SIZE <= size <= MOST_SIZE):
        what = (
            "the whole picture has its own: leave one of the two out"
            if full_picture
            else f"choose one between {LEAST_SIZE} and {MOST_SIZE}"
        )
        raise InputError(f"The size of the video is {size} pixels; {what}.")
    output, behind = Path(output), Background.parse(background)
    encoder = encoder_of(output, encoder, behind is not None and behind.transparent)
    sounds = [read_voice(voice, max_seconds, audio_track) for voice in voices.values()]
    with PeakMemory() as reading:
        faces = _find_faces(pipeline, portrait, list(voices), full_picture, behind is not None)
    settings, fps = settings or SamplingSettings(), pipeline.config.fps
    if motion is not None:
        frames = together(sounds).frames(fps)
        settings = dataclasses.replace(settings, asked=motion.added_to(settings.asked, frames, fps))
    speakers = [
        Speaker(square, sound, settings.of_speaker(number), paste)
        for number, ((square, paste), sound) in enumerate(zip(faces, sounds, strict=True))
    ]
    job = VideoJob(pipeline, tuple(speakers), encoder, size, label, behind)
    signature = Signature(*sign, portrait) if sign else None
    return render_video(job, output, observer, None, resume, keep_work, reading.bytes, signature)


def _find_faces(
    pipeline: LetsTalkPipeline, file: str | Path, faces: Sequence[str | int], whole: bool, cut_out: bool
) -> list[tuple[Portrait, PasteBack | None]]:
    """The faces of a picture, each with what puts it back if the whole picture is wanted."""
    read = read_with_alpha(file)
    picture = without_alpha(read, file)
    portraits = [pipeline.crop(picture, face) for face in faces]
    check_apart(portraits)
    if cut_out:
        picture = person_of(read)
        portraits = [portrait.cut_out_of(picture) for portrait in portraits]
    if not whole:
        return [(portrait, None) for portrait in portraits]
    return [(portrait, paste_into(pipeline, picture, portrait, portraits)) for portrait in portraits]


def read_voice(voice: Voice, max_seconds: float | None = None, track: int | None = None) -> Sound:
    """The sound of one speaker; the other arguments are Recording's."""
    file, channel = _file_and_channel(voice)
    recording = Recording(file, max_seconds, track)
    return recording if channel is None else Channel(recording, channel)


def _file_and_channel(voice: Voice) -> tuple[str | Path, str | int | None]:
    return voice if isinstance(voice, tuple) else (voice, None)


def paste_into(
    pipeline: LetsTalkPipeline, picture: np.ndarray, portrait: Portrait, speaking: Sequence[Portrait] = ()
) -> PasteBack:
    """What puts frames of a portrait into the picture [H,W,3 or 4] that it was cropped from; speaking: all portraits
    that speak in it."""
    reconstruction = pipeline.decoder(portrait)(pipeline.encode_portrait(portrait))[0].cpu()
    others = [other for other in speaking if other is not portrait]
    return PasteBack(torch.from_numpy(picture), portrait, reconstruction, others)


def render_video(
    job: VideoJob,
    output: str | Path,
    observer: Observer | None = None,
    work: Path | None = None,
    resume: bool = True,
    keep_work: bool = False,
    memory: int = 0,
    signature: Signature | None = None,
) -> int:
    """Render a job into the file `output`; returns its number of frames.

    Segments are kept in the folder `work` (default: beside the output, with the fingerprint in its name) until the
    video is whole; rendering the same job again goes on after the last of them and gives the same frames as one run
    would. resume False begins anew. The folder is removed at the end unless keep_work. memory: bytes that preparing the
    job took at its peak, which the estimate counts. signature: what the whole video is signed with, at the very end; it
    is tried out before the first frame. InputError where something is wrong with the inputs or the output, the encoder
    or the signature cannot be used, or the disk or the memory cannot hold the video; then, as after any exception,
    finished segments stay, and no file appears.
    """
    output, observer = Path(output), observer or Observer()
    config = job.pipeline.config
    for speaker in job.speakers:
        check_sampler(speaker.settings.sampler or config.sampling.sampler, config.diffusion.objective)
    _check_output(output, job)
    check_encoder(job.encoder, *job.size, job.fps)
    if signature:
        check_signing(signature, output)
    work = work or work_folder_of(output, job.fingerprint)
    about = {"output": output.name, "frames": job.frames, "fps": job.fps}
    with WorkFolder(work, job.fingerprint, about, format_of(output).parts) as folder:
        if not resume:
            folder.clear()
        if folder.frames < job.frames:
            # The latents of the first run, too: a graphics card may round them differently the next time.
            portraits = (job.encode() if folder.portraits is None else folder.portraits).to(job.pipeline.device)
            copies = 2 if signature else 1
            observer.begin(estimate_rendering(job, portraits, folder, output, observer.check, memory, copies))
            _render_segments(job, portraits, folder, observer)
        _join(job, folder, output, observer, signature)
        folder.finished = not keep_work
    return job.frames


def _check_output(output: Path, job: VideoJob) -> None:
    """Raises InputError for an output that cannot be written: now rather than after hours."""
    if encoder_of(output, job.encoder, job.transparent) != job.encoder:
        raise InputError(f"{output} holds other pictures than the job's, of {job.encoder}; ask encoder_of for those.")
    if output.suffix:
        create_part(output).unlink()
    else:
        check_folder(output)


def _render_segments(job: VideoJob, portraits: Tensor, folder: WorkFolder, observer: Observer) -> None:
    """Add the missing segments to the folder; portraits: latents [n,C,h,w]."""
    sound = SampleReader(job.recording.blocks())
    while folder.frames < job.frames:
        first, last = folder.frames, min(folder.frames + job.segment_frames, job.frames)
        sound.skip(job.recording.sample_of(first, job.fps) - sound.position)
        samples = sound.read(job.recording.sample_of(last, job.fps) - sound.position)
        heard = samples.shape[1] and job.encoder != "png"  # a frame's sound may round to nothing
        audio, made = (samples, sound.rate) if heard else None, first
        with job.writer(folder.next_segment, audio) as writer, Behind(writer.write) as write:
            for frames, memory in job.chunks(portraits, first, last, folder.memory, observer.step):  # noqa: B007 (below)
                made += len(frames[0])
                for pixels in job.pixels(frames):
                    write(pixels)
                observer.advance(made, opaque(pixels[-1]))
        folder.add(memory, portraits, last)


def _join(job: VideoJob, folder: WorkFolder, output: Path, observer: Observer, signature: Signature | None) -> None:
    """Put all segments together as one file with the whole sound, sign it if asked for, and move it to `output`."""
    size = sum(segment.stat().st_size for segment in folder.segments)
    check_disk(folder, size * (2 if signature else 1), output, size)
    joined = folder.path / f"{JOINED}{output.suffix}"
    if not output.suffix:
        write_pictures(joined, folder.segments, job.recording, job.fps, job.source_type, observer.check)
        move_folder(joined, output)
        return
    with job.writer(joined, job.recording) as writer:
        for segment in folder.segments:
            observer.check()
            writer.copy(segment)
    if signature:
        sign_video(joined, signature, job.source_type, output.name)
    try:
        move_into_place(joined, output)
    except OSError as error:
        raise cannot_write(output, error) from error
