"""The nodes that make frames: two samplers, and the one that puts frames back into the picture."""

from __future__ import annotations

import dataclasses
import os
import secrets
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import InputImpl, io

from ..letstalk_core.config import MOST_GUIDANCE, SAMPLERS, TIMESTEPS
from ..letstalk_core.errors import InputError
from ..letstalk_core.video.h264 import ENCODERS
from .load import CATEGORY
from .runtime import Progress, check_same_model, on_device, show_progress, tell
from .types import (
    AudioSocket,
    EncodedAudio,
    EncodedPortrait,
    LoadedModel,
    Memory,
    MemorySocket,
    ModelSocket,
    MotionSocket,
    PortraitSocket,
)  # fmt: skip

DEFAULT_SAMPLER = "as the model says"
SAMPLER_NAMES = [DEFAULT_SAMPLER, *SAMPLERS]
PICTURES = ("crop", "full picture")
BACKGROUNDS = ("keep", "colour", "transparent")
MEMORY_NOISE = 0.0  # the core's default
MOST_SIZE = 1024  # render.MOST_SIZE


def encoded_inputs() -> list[io.Input]:
    """What both samplers take from the nodes before them."""
    return [
        ModelSocket.Input("letstalk_model", tooltip="From LetsTalk Load Model."),
        PortraitSocket.Input("letstalk_portrait", tooltip="From LetsTalk Encode Portrait."),
        AudioSocket.Input("letstalk_audio", tooltip="From LetsTalk Encode Audio."),
    ]


def sampling_inputs() -> list[io.Input]:
    """Inputs that both samplers share."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Blinks, gaze and head motion. The same seed gives the same frames.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=TIMESTEPS,
            tooltip="Denoising steps of each clip; 0 takes the model's own number (2 for the bundled one).",
        ),
        io.Combo.Input(
            "sampler",
            options=SAMPLER_NAMES,
            default=DEFAULT_SAMPLER,
            advanced=True,
            tooltip="How noise becomes latents; euler goes with the bundled model, the others with the paper's.",
        ),
        io.Float.Input(
            "cfg",
            display_name="guidance scale",
            default=0.0,
            min=0.0,
            max=MOST_GUIDANCE,
            step=0.1,
            tooltip="How strongly the speech moves the mouth; 0 takes the model's own (1 for the bundled one), which "
            "is neutral and twice as fast as any other.",
        ),
        io.Float.Input(
            "memory_noise",
            display_name="memory noise",
            default=MEMORY_NOISE,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Noise on what a clip remembers of the one before, as in training: against errors that add up. "
            "The bundled model has no memory.",
        ),
        # Optional, so that prompts that were saved before these inputs still run.
        io.Float.Input(
            "blinks",
            default=16.0,
            min=0.0,
            max=60.0,
            step=1.0,
            optional=True,
            tooltip="Blinks a minute.",
        ),
        io.Float.Input(
            "head_motion",
            display_name="head motion",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.1,
            optional=True,
            tooltip="Of head, brows and gaze: 0 still, 1 as people do. For models that know it.",
        ),
        io.Float.Input(
            "expression",
            default=0.0,
            min=-1.0,
            max=1.0,
            step=0.1,
            optional=True,
            tooltip="-1 sad to 1 smiling, beside what the portrait has. For models that know it.",
        ),
    ]


def last_inputs() -> list[io.Input]:
    """What came later: at the end, so that widgets that were saved before keep their places."""
    return [
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=MOST_SIZE,
            step=8,
            optional=True,
            advanced=True,
            tooltip="Side of the square frames in pixels; 0 is the model's own (256). Larger frames are as sharp as "
            "the picture. A full picture has its own size.",
        ),
        MotionSocket.Input(
            "letstalk_motion",
            optional=True,
            tooltip="From LetsTalk Motion; it comes before blinks, head motion and expression.",
        ),
    ]


def _settings(
    frames: int,
    fps: float,
    motion,
    seed: int,
    steps: int,
    sampler: str,
    cfg: float,
    memory_noise: float,
    **asked: float,
):
    """For a recording of so many frames; motion: from LetsTalk Motion, or None."""
    from ..letstalk_core.video.clips import SamplingSettings
    from ..letstalk_core.video.controls import AskedFor

    named = None if sampler == DEFAULT_SAMPLER else sampler
    wanted = AskedFor(**asked)
    if motion is not None:
        wanted = motion.added_to(wanted, frames, fps)
    return SamplingSettings(seed, steps or None, named, cfg or None, memory_noise, wanted)


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
        settings = _settings(*_length(letstalk_model, letstalk_audio), letstalk_motion, **sampling)
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
                    default="#00b140",
                    optional=True,
                    tooltip="For the background 'colour': as #00b140 or white.",
                ),
            ],
            outputs=[io.Video.Output("video", display_name="video", tooltip="For Save Video. A file, not images.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, background: str = "keep", background_colour: str = "") -> bool | str:
        try:
            _behind(background, background_colour)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, letstalk_model, letstalk_portrait, letstalk_audio, picture: str, encoder: str = "x264", size: int = 0,
        letstalk_motion=None, background: str = "keep", background_colour: str = "", **sampling,
    ) -> io.NodeOutput:  # fmt: skip
        from ..letstalk_core.render.job import Speaker, VideoJob
        from ..letstalk_core.render.render import render_video
        from ..letstalk_core.video.file_format import encoder_of

        check_same_model(letstalk_model, portrait=letstalk_portrait, audio=letstalk_audio)
        settings = _settings(*_length(letstalk_model, letstalk_audio), letstalk_motion, **sampling)
        behind, whole = _behind(background, background_colour), picture == "full picture"
        name = f"letstalk_long_video_{secrets.token_hex(6)}.{'webm' if background == 'transparent' else 'mp4'}"
        path = _in_folder(folder_paths.get_temp_directory(), name)
        encoder = encoder_of(Path(path), "x264" if background == "transparent" else encoder)
        with on_device(letstalk_model) as pipeline:
            if behind is not None:
                letstalk_portrait = _cut_out(pipeline, letstalk_portrait)
            paste_back = _paste_back(letstalk_portrait) if whole else None
            speaker = Speaker(letstalk_portrait.portrait, letstalk_audio.recording, settings, paste_back)
            job = VideoJob(pipeline, (speaker,), encoder, None if whole else size or None, background=behind)
            progress = Progress(pipeline, job.frames, settings, cls.hidden.unique_id)
            # Not in the temp folder, which is emptied when ComfyUI starts.
            work = _in_folder(folder_paths.get_output_directory(), "letstalk_work", job.fingerprint[:12])
            render_video(job, path, progress, Path(work))
        tell(cls.hidden.unique_id, f"{job.frames} frames, {job.frames / pipeline.config.fps:.1f} s.")
        return io.NodeOutput(InputImpl.VideoFromFile(path))


def _behind(background: str, colour: str):
    """The Background that the inputs name; None keeps the picture's own."""
    from ..letstalk_core.picture.cutout import Background

    return Background.parse(colour if background == "colour" else background)


def _cut_out(pipeline, encoded: EncodedPortrait) -> EncodedPortrait:
    """The same with the person cut out of portrait and picture."""
    from ..letstalk_core.picture.cutout import person_of

    picture, matte = encoded.picture if encoded.transparent is None else encoded.transparent, encoded.matte
    person = person_of(picture.numpy(), None if matte is None else matte.numpy())
    portrait = encoded.portrait.cut_out_of(person)
    reconstruction = pipeline.decoder(portrait)(encoded.latents.to(pipeline.device))[0].cpu()
    return dataclasses.replace(
        encoded, portrait=portrait, picture=torch.from_numpy(person), reconstruction=reconstruction
    )


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


def _paste_back(portrait):
    from ..letstalk_core.picture.paste_back import PasteBack

    return PasteBack(portrait.picture, portrait.portrait, portrait.reconstruction)
