"""What one clip of a long video hands to the next: the last M latents, and nothing that grows (paper, Section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import LetsTalkConfig
from ..diffusion.samplers import clip_generator


def to_model_space(latents: Tensor, portrait: Tensor, config: LetsTalkConfig) -> Tensor:
    """Latents [B,F,C,h,w] as the transformer sees them: with relative_latents, minus the portrait's [B,C,h,w].

    A departure from the paper: what does not move is then zero, which a small model keeps still and sharp.
    """
    return (latents - portrait[:, None]) * config.relative_scale if config.relative_latents else latents


def from_model_space(latents: Tensor, portrait: Tensor, config: LetsTalkConfig) -> Tensor:
    """The inverse of to_model_space."""
    return latents / config.relative_scale + portrait[:, None] if config.relative_latents else latents


@dataclass(frozen=True)
class MemoryBank:
    """The state between two clips.

    latents: [1,M,C,h,w] on the CPU, in the transformer's space. The first clip remembers the portrait M times.
    frames: how many frames have been made before the next clip.
    """

    latents: Tensor
    frames: int = 0

    @classmethod
    def of_portrait(cls, portrait: Tensor, config: LetsTalkConfig) -> MemoryBank:
        """Before the first clip; portrait [1,C,h,w]."""
        repeated = portrait.float().cpu()[:, None].expand(-1, config.memory_frames, -1, -1, -1)
        return cls(to_model_space(repeated, portrait.float().cpu(), config).contiguous())

    def after(self, clip: Tensor) -> MemoryBank:
        """After a clip of latents [1,F,C,h,w] in the transformer's space."""
        kept = self.latents.shape[1]
        both = torch.cat([self.latents, clip.float().cpu()], dim=1)
        return MemoryBank(both[:, both.shape[1] - kept :].clone(), self.frames + clip.shape[1])

    def noisy(self, sigma: float, seed: int, clip_index: int) -> Tensor:
        """The memory with the small noise that training regularised it with; [1,M,C,h,w]."""
        if sigma == 0:
            return self.latents
        noise = torch.randn(self.latents.shape, generator=clip_generator(seed, clip_index, "memory"))
        return self.latents + sigma * noise
