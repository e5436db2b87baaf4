"""The blinks of a portrait: a schedule from the seed, for models that take the eyelid closure as a condition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.samplers import clip_generator

BLINK_SLOT = 3.75  # seconds: one blink falls somewhere in each, which makes 16 a minute
# Eyelid closure from frame to frame at 25 fps: closing is faster than opening.
BLINK_SHAPE = (0.35, 0.9, 1.0, 1.0, 0.75, 0.4, 0.12)


def blink_schedule(seed: int, start: int, count: int, fps: float) -> Tensor:
    """Eyelid closure [count] in 0..1 of frames start .. start + count - 1; each depends on the seed alone."""
    slot_frames = BLINK_SLOT * fps
    frames = torch.arange(start, start + count, dtype=torch.float64)
    closure = torch.zeros(count)
    shape = torch.tensor((0.0, *BLINK_SHAPE, 0.0))
    for slot in range(max(0, int(start / slot_frames) - 1), int((start + count) / slot_frames) + 1):
        place = torch.rand((), generator=clip_generator(seed, slot, "blink"), dtype=torch.float64)
        begin = (slot + 0.1 + 0.7 * place) * slot_frames
        at = ((frames - begin) * 25 / fps).clamp(0, len(shape) - 1)
        low = at.floor().long().clamp(max=len(shape) - 2)
        share = (at - low).float()
        closure = torch.maximum(closure, shape[low] * (1 - share) + shape[low + 1] * share)
    return closure
