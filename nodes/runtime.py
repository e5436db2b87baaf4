"""What all nodes share: ComfyUI's progress, preview, cancelling and memory management around the core."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management as management
import comfy.utils
import folder_paths
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..letstalk_core.errors import InputError
from .types import LoadedModel

if TYPE_CHECKING:
    from ..letstalk_core.pipeline import LetsTalkPipeline
    from ..letstalk_core.render.estimate import RenderEstimate
    from ..letstalk_core.video.clips import SamplingSettings

PREVIEW_SIDE = 512
PACK = Path(__file__).resolve().parent.parent


class Progress:
    """A progress bar of a node that counts denoising steps over all clips, with a preview of the latest frame.

    It is a rendering's observer too (letstalk_core.render.render.Observer); the estimate goes onto the node.
    ComfyAPI's execution.set_progress would tell browsers only: clients of the API that follow a prompt need the
    "progress" events, and the previews without metadata, which this bar sends as well.
    """

    def __init__(
        self, pipeline: LetsTalkPipeline, frames: int, settings: SamplingSettings, node: str | None = None,
        speakers: int = 1,
    ):  # fmt: skip
        self.length = pipeline.config.transformer.clip_frames
        self.steps = speakers * (settings.steps or pipeline.config.sampling.steps)
        self.clip, self.node = 0, node
        self.bar = comfy.utils.ProgressBar(max(1, math.ceil(frames / self.length) * self.steps))

    def check(self) -> None:
        """Raises when the user cancelled."""
        management.throw_exception_if_processing_interrupted()

    def begin(self, estimate: RenderEstimate) -> None:
        self.clip = estimate.done // self.length
        kept = os.path.join("output", os.path.relpath(estimate.work, folder_paths.get_output_directory()))
        tell(self.node, f"{estimate}. Until it is whole, finished parts are kept in {kept}.")

    def step(self, step: int, steps: int, x0: Tensor) -> None:
        """After each denoising step; raises when the user cancelled."""
        self.check()
        self.bar.update_absolute(self.clip * self.steps + step)

    def advance(self, frames: int, picture: Tensor) -> None:
        """Show that so many frames are made, with the latest one, uint8 [H,W,3]; raises when the user cancelled."""
        self.check()
        self.clip = math.ceil(frames / self.length)
        preview = ("JPEG", Image.fromarray(picture.cpu().numpy()), PREVIEW_SIDE)
        self.bar.update_absolute(self.clip * self.steps, preview=preview)


def tell(node: str | None, sentence: str) -> None:
    """Shows a sentence on a node."""
    if node is not None:
        PromptServer.instance.send_progress_text(sentence, node)


@contextlib.contextmanager
def showing_warnings(node: str | None):
    """The pack's own warnings, once each, go into ComfyUI's log and onto the node; other libraries' stay unsaid."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        yield
    own = (w for w in told if w.category is UserWarning and Path(w.filename).resolve().is_relative_to(PACK))
    for sentence in dict.fromkeys(str(warning.message) for warning in own):
        logging.warning("LetsTalk: %s", sentence)
        tell(node, sentence)


def show_progress(done: int, total: int) -> None:
    """Show the progress of a node that takes long without denoising; raises when the user cancelled."""
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
                "The graphics card has too little memory free: close other programs, choose a smaller size, or "
                "precision bf16 or fp16 in Load Model, or start ComfyUI with --cpu."
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
