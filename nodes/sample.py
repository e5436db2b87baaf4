"""The nodes that make frames: two samplers, and the one that puts frames back into the picture."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
import torch
from comfy_api.latest import InputImpl, io

from ..letstalk_core.errors import InputError
from ..letstalk_core.video.h264 import ENCODERS
from .load import CATEGORY
from .runtime import Progress, check_same_model, on_device, show_progress, tell
from .sampling import articulation_input, encoded_inputs, last_inputs, sampling_inputs, sampling_settings
from .types import (
    EncodedAudio,
    EncodedPortrait,
    LoadedModel,
    Memory,
    MemorySocket,
    PortraitSocket,
    SpeakersSocket,
    TalkingFace,
)  # fmt: skip

if TYPE_CHECKING:
    from ..letstalk_core.picture.cutout import Background
    from ..letstalk_core.picture.paste_back import PasteBack
    from ..letstalk_core.picture.portrait import Portrait
    from ..letstalk_core.pipeline import LetsTalkPipeline
    from ..letstalk_core.render.job import Speaker

COLOUR = "#00b140"  # chroma key green
PICTURES = ("crop", "full picture")
BACKGROUNDS = ("keep", "colour", "transparent")


def _length(model: LoadedModel, audio: EncodedAudio) -> tuple[int, float]:
    """Frames of the whole recording, and how many of them a second has."""
    fps = model.pipeline.config.fps
    return audio.recording.frames(fps), fps


class LetsTalkSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetsTalkSampler",
            display_name="LetsTalk Sampler",
            category=CATEGORY,
            description="A stretch of talking video as images. For long recordings take LetsTalk Long Video.",
            search_aliases=["talking head sampler", "lip sync", "animate portrait"],
            inputs=[
                *encoded_inputs(),
                io.Int.Input(
                    "start_frame",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="First frame to make, of the recording's. With a memory it is where that one ends.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="How many frames to make, 25 a second; 0 goes to the end of the recording.",
                ),
                *sampling_inputs(),
                MemorySocket.Input(
                    "letstalk_memory", optional=True, tooltip="Of an earlier sampler: goes on where that one ended."
                ),
                *last_inputs(),
                articulation_input(),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The frames, 25 a second."),
                MemorySocket.Output("letstalk_memory", tooltip="For a sampler that goes on from here."),
            ],
        )

    @classmethod
    def execute(
        cls, letstalk_model, letstalk_portrait, letstalk_audio, start_frame: int, frames: int,
        letstalk_memory: Memory | None = None, size: int = 0, letstalk_motion=None, **sampling,
    ) -> io.NodeOutput:  # fmt: skip
        from ..letstalk_core.pixels import images_to_pictures, pictures_to_pixels
        from ..letstalk_core.video.clips import ClipSampler

        check_same_model(letstalk_model, portrait=letstalk_portrait, audio=letstalk_audio, memory=letstalk_memory)
        settings = sampling_settings(*_length(letstalk_model, letstalk_audio), letstalk_motion, **sampling)
        made, first = [], letstalk_memory.next_frame if letstalk_memory else start_frame
        with on_device(letstalk_model) as pipeline:
            features, latents = pipeline.stream_audio(letstalk_audio.recording), letstalk_portrait.latents
            last = first + frames if frames else len(features)
            before = first % pipeline.config.transformer.clip_frames  # made again, but not handed out
            progress = Progress(pipeline, before + last - first, settings)
            sampler = ClipSampler(pipeline.model, latents.to(pipeline.device), features, settings, progress.step)
            decode = pipeline.decoder(letstalk_portrait.portrait, size or None)
            bank = letstalk_memory and letstalk_memory.bank
            for chunk in sampler.chunks(decode, first, last, bank, size or None):
                made.append(images_to_pictures(chunk.frames).cpu().contiguous())
                before += len(chunk.frames)
                progress.advance(before, pictures_to_pixels(made[-1][-1]))
        return io.NodeOutput(torch.cat(made), Memory(chunk.memory, last, letstalk_model.name))


class MemoryBankLongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MemoryBankLongVideo",
            display_name="LetsTalk Long Video",
            category=CATEGORY,
            description="A talking video of the whole recording, with its sound: any length, in constant memory. "
            "Cancelled or crashed, the same graph goes on where it was.",
            search_aliases=["talking head video", "long video", "memory bank", "lip sync video", "audio to video"],
            inputs=[
                *encoded_inputs(),
                io.Combo.Input(
                    "picture",
                    options=list(PICTURES),
                    default="full picture",
                    tooltip="full picture: the face speaks in its picture. crop: the square around the face.",
                ),
                *sampling_inputs(),
                io.Combo.Input(
                    "encoder",
                    options=list(ENCODERS),
                    default="x264",
                    optional=True,
                    advanced=True,
                    tooltip="x264 works everywhere. The others need a graphics card or chip with an encoder.",
                ),
                *last_inputs(),
                SpeakersSocket.Input(
                    "letstalk_speakers",
                    optional=True,
                    tooltip="From LetsTalk Speaker: more faces of the picture, each with its own sound.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default=BACKGROUNDS[0],
                    optional=True,
                    tooltip="Behind the person. transparent gives a WebM (VP9), whatever the encoder, for LetsTalk "
                    "Save Video.",
                ),
                io.String.Input(
                    "background_colour",
                    display_name="background colour",
                    default=COLOUR,
                    optional=True,
                    tooltip="For the background 'colour': as #00b140 or white.",
                ),
                articulation_input(),
            ],
            outputs=[io.Video.Output("video", display_name="video", tooltip="For Save Video. A file, not images.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, background: str | None = "keep", background_colour: str | None = COLOUR) -> bool | str:
        if None in (background, background_colour):  # linked: known when it runs
            return True
        try:
            _behind(background, background_colour)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, letstalk_model, letstalk_portrait, letstalk_audio, picture: str, encoder: str = "x264", size: int = 0,
        letstalk_motion=None, letstalk_speakers: tuple[TalkingFace, ...] = (), background: str = "keep",
        background_colour: str = COLOUR, **sampling,
    ) -> io.NodeOutput:  # fmt: skip
        from ..letstalk_core.render.job import VideoJob
        from ..letstalk_core.render.render import render_video
        from ..letstalk_core.video.file_format import encoder_of

        faces = (TalkingFace(letstalk_portrait, letstalk_audio, letstalk_motion), *letstalk_speakers)
        whole = picture != "crop"
        _check_one_picture(faces)
        for face in faces:
            check_same_model(letstalk_model, portrait=face.portrait, audio=face.audio)
        behind, transparent = _behind(background, background_colour), background == "transparent"
        name = f"letstalk_long_video_{secrets.token_hex(6)}.{'webm' if transparent else 'mp4'}"
        path = _in_folder(folder_paths.get_temp_directory(), name)
        encoder = encoder_of(Path(path), "x264" if transparent else encoder)
        with on_device(letstalk_model) as pipeline:
            if behind is not None:
                faces = _cut_out(pipeline, faces)
            speakers = _speakers(letstalk_model, faces, whole, sampling)
            job = VideoJob(pipeline, speakers, encoder, None if whole else size or None, background=behind)
            progress = Progress(pipeline, job.frames, job.settings[0], cls.hidden.unique_id, len(speakers))
            # Not in the temp folder, which is emptied when ComfyUI starts.
            work = _in_folder(folder_paths.get_output_directory(), "letstalk_work", job.fingerprint[:12])
            render_video(job, path, progress, Path(work))
        tell(cls.hidden.unique_id, f"{job.frames} frames, {job.frames / pipeline.config.fps:.1f} s.")
        return io.NodeOutput(InputImpl.VideoFromFile(path))


def _speakers(model: LoadedModel, faces: tuple[TalkingFace, ...], whole: bool, sampling: dict) -> tuple[Speaker, ...]:
    """For VideoJob; whole: they speak in their picture."""
    from ..letstalk_core.audio.dialogue import together
    from ..letstalk_core.picture.portrait import check_apart
    from ..letstalk_core.render.job import Speaker

    if len(faces) > 1 and not whole:
        raise InputError("Several faces speak in the whole picture; set picture to 'full picture'.")
    portraits, voices = [face.portrait.portrait for face in faces], [face.audio.recording for face in faces]
    check_apart(portraits)
    fps, speakers = model.pipeline.config.fps, []
    frames = together(voices).frames(fps)
    for number, face in enumerate(faces):
        settings = sampling_settings(frames, fps, face.motion, **sampling).of_speaker(number)
        paste_back = _paste_back(face.portrait, portraits) if whole else None
        speakers.append(Speaker(portraits[number], voices[number], settings, paste_back))
    return tuple(speakers)


def _check_one_picture(faces: tuple[TalkingFace, ...]) -> None:
    """Raises InputError where they are of several."""
    if not all(torch.equal(face.portrait.picture, faces[0].portrait.picture) for face in faces[1:]):
        raise InputError("Several speakers must be faces of one picture; connect the same to all of them.")


def _behind(background: str, colour: str) -> Background | None:
    """What the inputs ask for; None keeps the picture's own."""
    from ..letstalk_core.picture.cutout import Background

    return Background.parse(colour if background == "colour" else background)


def _cut_out(pipeline: LetsTalkPipeline, faces: tuple[TalkingFace, ...]) -> tuple[TalkingFace, ...]:
    """The faces of one picture, the first of which brings a matte if there is one, with everybody cut out of it."""
    from ..letstalk_core.picture.cutout import person_of

    first, made = faces[0].portrait, []
    picture = first.picture if first.transparent is None else first.transparent
    person = person_of(picture.numpy(), None if first.matte is None else first.matte.numpy())
    for face in faces:
        encoded = face.portrait
        portrait = encoded.portrait.cut_out_of(person)
        reconstruction = pipeline.decoder(portrait)(encoded.latents.to(pipeline.device))[0].cpu()
        changes = {"portrait": portrait, "picture": torch.from_numpy(person), "reconstruction": reconstruction}
        made.append(dataclasses.replace(face, portrait=dataclasses.replace(encoded, **changes)))
    return tuple(made)


def _in_folder(*parts: str) -> str:
    """A path whose folder is made."""
    path = os.path.join(*parts)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        raise InputError(f"{os.path.dirname(path)} cannot be made ({error.strerror}); check its permissions.") from None
    return path


class LetsTalkPasteBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetsTalkPasteBack",
            display_name="LetsTalk Paste Back",
            category=CATEGORY,
            description="Puts the frames of LetsTalk Sampler back into the picture that the portrait was cropped from. "
            "An upscaler or a face restorer fits in between.",
            search_aliases=["paste face", "composite face", "uncrop"],
            inputs=[
                io.Image.Input("images", tooltip="Square frames, of any size."),
                PortraitSocket.Input("letstalk_portrait", tooltip="From LetsTalk Encode Portrait."),
            ],
            outputs=[io.Image.Output("images", display_name="images", tooltip="The whole picture, frame by frame.")],
        )

    @classmethod
    def execute(cls, images, letstalk_portrait) -> io.NodeOutput:
        if images.shape[1] != images.shape[2]:
            raise InputError(
                f"The frames are {images.shape[2]}x{images.shape[1]}; connect the sampler's square frames."
            )
        from ..letstalk_core.pixels import pictures_to_images

        paste = _paste_back(letstalk_portrait)
        pictures = torch.empty(len(images), *letstalk_portrait.picture.shape)
        for index, image in enumerate(images):
            pictures[index] = paste(pictures_to_images(image[None, ..., :3]))[0]
            show_progress(index + 1, len(images))
        return io.NodeOutput(pictures)


def _paste_back(portrait: EncodedPortrait, speaking: Sequence[Portrait] = ()) -> PasteBack:
    """speaking: all portraits that speak in the picture."""
    from ..letstalk_core.picture.paste_back import PasteBack

    others = [other for other in speaking if other is not portrait.portrait]
    return PasteBack(portrait.picture, portrait.portrait, portrait.reconstruction, others)
