"""What all nodes share: ComfyUI's progress, preview, cancelling and memory management around the core."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import comfy.model_management as management
import comfy.utils
from PIL import Image
from torch import Tensor

from ..letstalk_core.errors import InputError
from .types import LoadedModel

if TYPE_CHECKING:
    from ..letstalk_core.long_video import SamplingSettings
    from ..letstalk_core.pipeline import LetsTalkPipeline

PREVIEW_SIDE = 512


class Progress:
    """A progress bar of a node that counts denoising steps over all clips, with a preview after each clip."""

    def __init__(self, pipeline: LetsTalkPipeline, first: int, last: int, settings: SamplingSettings):
        length = pipeline.config.clip_frames
        clips = math.ceil(last / length) - first // length
        self.steps, self.clip = settings.steps or pipeline.config.default_steps, 0
        self.bar = comfy.utils.ProgressBar(max(1, clips * self.steps))

    def step(self, step: int, steps: int, x0: Tensor) -> None:
        """After each denoising step; raises when the user cancelled."""
        management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(self.clip * self.steps + step)

    def show(self, frame: Tensor) -> None:
        """After each clip: its last frame [H,W,3] in 0..1."""
        self.clip += 1
        pixels = (frame.clamp(0, 1) * 255).round().byte().cpu().numpy()
        self.bar.update_absolute(self.clip * self.steps, preview=("JPEG", Image.fromarray(pixels), PREVIEW_SIDE))


def show_progress(done: int, total: int) -> None:
    """Of a node that takes long without denoising; raises when the user cancelled."""
    management.throw_exception_if_processing_interrupted()
    comfy.utils.ProgressBar(total).update_absolute(done)


@contextlib.contextmanager
def on_device(model: LoadedModel):
    """The model's weights on ComfyUI's device; running out of memory ends in a sentence that says what to lower."""
    try:
        management.load_models_gpu([model.patcher], force_full_load=True)
        yield model.pipeline
    except (RuntimeError, MemoryError) as error:
        if management.is_oom(error):
            management.unload_all_models()
            raise InputError(
                "The graphics card has too little memory free: close other programs, choose precision bf16 or fp16 in "
                "Load Model, or start ComfyUI with --cpu."
            ) from None
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            raise InputError(
                "The computer has too little memory free: make fewer frames, or take LetsTalk Long Video, which holds "
                "one clip at a time."
            ) from None
        raise


def check_same_model(model: LoadedModel, **parts) -> None:
    """Raises InputError where an input was encoded with, or comes from, another model."""
    for name, part in parts.items():
        if part is not None and part.model != model.name:
            raise InputError(
                f"The {name} was made with {part.model}, but the model here is {model.name}; connect both to the same "
                "Load Model node."
            )
