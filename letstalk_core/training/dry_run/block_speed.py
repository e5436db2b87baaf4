"""How fast the hardware at hand is at a training, from a few seconds of one block of the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import torch
from torch.utils._pytree import tree_leaves, tree_map

from ...config import LetsTalkConfig
from ...errors import InputError
from ...model.transformer import LetsTalkTransformer
from ..loop import native_precision
from ..training_config import TransformerTraining
from .counting import DTYPES, Watch, Work

MEASURED_SECONDS = 1.5  # that one run of the measured block may take
USUAL_SHARE = 0.3  # of a large product's rate: what is expected of a block before it is measured


@dataclass(frozen=True)
class Speed:
    """FLOP/s that a block reached forward and backward, and a large product of matrices; and on what."""

    block: float
    product: float
    device: str
    shape: str  # of what the block was given


def measure_speed(config: TransformerTraining, model: LetsTalkConfig, step: Work, side: int) -> Speed:
    """Run one block of the model for a few seconds on the device that a training would use now.

    step: one batch of the whole model; side: of its latents. The block is given less than a batch where that does not
    fit or would take long.
    """
    device = training_device(config)
    cuda, dtype = device.type == "cuda", DTYPES[native_precision(config.precision, config.device)]
    product = _product_rate(device, dtype)
    depth = model.transformer.depth
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    full, patch = (config.batch_size, model.transformer.clip_frames, side), model.transformer.patch_size
    flops, held = step.flops / depth, step.activations / depth + step.working  # of a block, about
    for shape in _smaller(*full, patch):
        share = math.prod(shape) / math.prod(full)
        too_much = flops * share > USUAL_SHARE * product * MEASURED_SECONDS or 2 * held * share > free
        if too_much and shape != (1, 1, patch):
            continue
        try:
            rate = _block_rate(model, config.gradient_checkpointing, shape, side, device, dtype)
        except torch.cuda.OutOfMemoryError:
            continue
        threads = torch.get_num_threads()
        name = torch.cuda.get_device_name() if cuda else f"the CPU, {threads} thread{'s' if threads > 1 else ''}"
        return Speed(rate, product, name, _said(shape, full, patch))
    raise InputError("Not even a small block fits into the graphics card's free memory; close what uses it.")


def training_device(config: TransformerTraining) -> torch.device:
    """The device that a training would use now."""
    return torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")


def _said(shape: tuple[int, int, int], full: tuple[int, int, int], patch: int) -> str:
    clips = f"{shape[0]} clip{'s' if shape[0] > 1 else ''} of {shape[1]} frame{'s' if shape[1] > 1 else ''}"
    if shape == full:
        return clips
    rows = f", {shape[2] // patch} of {full[2] // patch} rows" if shape[2] < full[2] else ""
    return f"{clips}{rows} (instead of {full[0]} of {full[1]}: that would not fit, or take too long)"


def _smaller(batch: int, frames: int, rows: int, patch: int) -> Iterator[tuple[int, int, int]]:
    """Shapes to try, from the full one to the smallest: fewer clips, then frames, then rows of latents."""
    while True:
        yield batch, frames, rows
        if batch > 1:
            batch //= 2
        elif frames > 1:
            frames //= 2
        elif rows // 2 >= patch:
            rows = rows // 2 // patch * patch
        else:
            return


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product of matrices."""
    size = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _seconds(lambda: matrix @ matrix, device, 0.3)


def _block_rate(
    model: LetsTalkConfig, checkpointing: str, shape: tuple[int, int, int], side: int, device: torch.device, dtype
) -> float:
    """FLOP/s of one block, forward and backward, as it is called inside a model of one block.

    checkpointing: "selective" costs time but hardly a FLOP, so it is measured; what "full" adds has a block's own rate.
    """
    (batch, frames, rows), remembered = shape, model.transformer.memory_frames
    transformer = LetsTalkTransformer(model.with_changes(depth=1)).to(device)
    transformer.gradient_checkpointing = checkpointing
    inputs = []
    transformer.blocks[0].register_forward_pre_hook(lambda block, given: inputs.append(given))
    latents = torch.randn(batch, frames, model.transformer.latent_channels, rows, side, device=device)
    memory = torch.randn(batch, remembered, *latents.shape[2:], device=device) if remembered else None
    audio = torch.randn(batch, frames, model.audio.tokens, model.audio.width, device=device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), autocast:
        transformer(latents, latents.new_ones(batch), portrait=latents[:, 0], audio_tokens=audio, memory=memory)
    given = tree_map(lambda x: x.detach().requires_grad_() if isinstance(x, torch.Tensor) else x, inputs[0])

    def run() -> None:
        with autocast:
            outputs = [x for x in tree_leaves(transformer.blocks[0](*given)) if isinstance(x, torch.Tensor)]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
        transformer.zero_grad()

    with Watch() as watch:
        run()
    return watch.flops / _seconds(run, device, 0.5)


def _seconds(run: Callable[[], object], device: torch.device, least: float) -> float:
    """Seconds of one run: the mean of as many as `least` seconds hold, at least one, after one that is not counted."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    run()
    wait()
    began, runs = time.perf_counter(), 0
    while not runs or time.perf_counter() - began < least:
        run()
        wait()
        runs += 1
    return (time.perf_counter() - began) / runs
