"""LetsTalkSampler, MemoryBankLongVideo and LetsTalkPasteBack."""

from __future__ import annotations

import os
import secrets

import comfy.model_management as management
import folder_paths
import torch
from comfy_api.latest import InputImpl, io

from ..letstalk_core.errors import InputError
from .load import CATEGORY
from .runtime import Progress, check_same_model, on_device, show_progress
from .types import AudioSocket, Memory, MemorySocket, ModelSocket, PortraitSocket

DEFAULT_SAMPLER = "as the model says"
SAMPLER_NAMES = [DEFAULT_SAMPLER, "euler", "dpm++", "ddim", "ddpm"]
PICTURES = ("crop", "full picture")


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
            max=1000,
            tooltip="Denoising steps of each clip; 0 takes the model's own number (4 for the bundled one).",
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
            max=20.0,
            step=0.1,
            tooltip="How strongly the speech moves the mouth; 0 takes the model's own (2 for the bundled one), 1 is "
            "neutral and twice as fast.",
        ),
    ]


def _settings(seed: int, steps: int, sampler: str, cfg: float):
    from ..letstalk_core.long_video import SamplingSettings

    return SamplingSettings(seed, steps or None, None if sampler == DEFAULT_SAMPLER else sampler, cfg or None)


def _to_image(frames: torch.Tensor) -> torch.Tensor:
    """[n,3,H,W] in -1..1 -> ComfyUI's IMAGE [n,H,W,3] in 0..1."""
    return frames.add(1).div(2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


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
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The frames, 25 a second."),
                MemorySocket.Output("letstalk_memory", tooltip="For a sampler that goes on from here."),
            ],
        )

    @classmethod
    def execute(
        cls, letstalk_model, letstalk_portrait, letstalk_audio, start_frame: int, frames: int, seed: int, steps: int,
        sampler: str, cfg: float, letstalk_memory: Memory | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        check_same_model(letstalk_model, portrait=letstalk_portrait, audio=letstalk_audio, memory=letstalk_memory)
        settings = _settings(seed, steps, sampler, cfg)
        first = letstalk_memory.next_frame if letstalk_memory else start_frame
        last = first + frames if frames else len(letstalk_audio.features)
        made = []
        with on_device(letstalk_model) as pipeline:
            progress = Progress(pipeline, first, last, settings)
            for chunk in pipeline.render(
                letstalk_portrait.latents.to(pipeline.device), letstalk_audio.features, settings, first, last,
                letstalk_memory and letstalk_memory.bank, progress.step,
            ):  # fmt: skip
                made.append(_to_image(chunk.frames))
                end = Memory(chunk.memory, last, letstalk_model.name)
                progress.show(made[-1][-1])
        return io.NodeOutput(torch.cat(made), end)


class MemoryBankLongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MemoryBankLongVideo",
            display_name="LetsTalk Long Video",
            category=CATEGORY,
            description="A talking video of the whole recording, with its sound, written while it is made: any length.",
            search_aliases=["talking head video", "long video", "memory bank", "lip sync video"],
            inputs=[
                *encoded_inputs(),
                io.Combo.Input(
                    "picture",
                    options=list(PICTURES),
                    default="crop",
                    tooltip="crop: the square around the face. full picture: the face pasted back into the original.",
                ),
                *sampling_inputs(),
            ],
            outputs=[io.Video.Output("video", display_name="video", tooltip="For Save Video. A file, not images.")],
        )

    @classmethod
    def execute(
        cls, letstalk_model, letstalk_portrait, letstalk_audio, picture: str, seed: int, steps: int, sampler: str,
        cfg: float,
    ) -> io.NodeOutput:  # fmt: skip
        from ..letstalk_core.video_io import VideoWriter

        check_same_model(letstalk_model, portrait=letstalk_portrait, audio=letstalk_audio)
        settings, config = _settings(seed, steps, sampler, cfg), letstalk_model.pipeline.config
        finish = _paste_back(letstalk_portrait) if picture == "full picture" else _to_image
        width, height = (
            letstalk_portrait.portrait.original_size if picture == "full picture" else (config.image_size,) * 2
        )
        path = os.path.join(folder_paths.get_temp_directory(), f"letstalk_{secrets.token_hex(6)}.mp4")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        sound = (letstalk_audio.waveform, letstalk_audio.sample_rate)
        with (
            on_device(letstalk_model) as pipeline,
            VideoWriter(path, width, height, config.fps, sound) as writer,
        ):
            progress = Progress(pipeline, 0, len(letstalk_audio.features), settings)
            for frames, _ in pipeline.render(
                letstalk_portrait.latents.to(pipeline.device), letstalk_audio.features, settings, callback=progress.step
            ):
                for frame in frames.split(1):  # a large picture sixteen times would fill the memory
                    management.throw_exception_if_processing_interrupted()
                    image = finish(frame)
                    writer.write((image * 255).round().byte())
                progress.show(image[0])
        return io.NodeOutput(InputImpl.VideoFromFile(path))


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
        paste = _paste_back(letstalk_portrait)
        pictures = torch.empty(len(images), *letstalk_portrait.picture.shape)
        for index, image in enumerate(images):
            pictures[index] = paste(image[None, ..., :3].permute(0, 3, 1, 2) * 2 - 1)[0]
            show_progress(index + 1, len(images))
        return io.NodeOutput(pictures)


def _paste_back(portrait):
    from ..letstalk_core.paste_back import PasteBack

    return PasteBack(portrait.picture, portrait.portrait, portrait.reconstruction)
