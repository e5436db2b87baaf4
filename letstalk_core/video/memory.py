"""What one clip of a long video hands to the next: the last M latents, and nothing that grows (paper, Section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import LetsTalkConfig
from ..diffusion.samplers import clip_generator
from ..model.latents import to_model_space


@dataclass(frozen=True)
class MemoryBank:
    """The state between two clips.

    latents: [1,M,C,h,w] on the CPU, in the transformer's space, one for the next clip's border where M is 0. The first
        clip remembers the portrait M times.
    frames: how many frames have been made before the next clip.
    """

    latents: Tensor
    frames: int = 0

    @classmethod
    def of_portrait(cls, portrait: Tensor, config: LetsTalkConfig, frames: int = 0) -> MemoryBank:
        """The memory of a first clip, which begins at frame `frames`: M times the portrait's latents [1,C,h,w]."""
        portrait = portrait.float().cpu()
        repeated = portrait[:, None].expand(-1, max(1, config.transformer.memory_frames), -1, -1, -1)
        return cls(to_model_space(repeated, portrait, config).contiguous(), frames)

    @classmethod
    def joined(cls, banks: Sequence[MemoryBank]) -> MemoryBank:
        """Those of several speakers at the same frame as one, [n,M,C,h,w]."""
        return cls(torch.cat([bank.latents for bank in banks]), banks[0].frames)

    def of(self, speaker: int) -> MemoryBank:
        """That of one of several."""
        return MemoryBank(self.latents[speaker, None], self.frames)

    def after(self, clip: Tensor) -> MemoryBank:
        """The memory after a clip of latents [1,F,C,h,w] in the transformer's space: the last M, on the CPU."""
        kept = self.latents.shape[1]
        both = torch.cat([self.latents, clip.float().cpu()], dim=1)
        return MemoryBank(both[:, both.shape[1] - kept :].clone(), self.frames + clip.shape[1])

    def seen(self, scale: float, sigma: float, seed: int, clip_index: int) -> Tensor:
        """The latents as the next clip sees them, [1,M,C,h,w]: scaled, with the small noise of its training added.

        scale: config.Departures.memory_scale; below 1, what a small model gets wrong dies out instead of adding up.
        sigma: the noise's deviation (Section 3.4).
        """
        latents = scale * self.latents
        if sigma == 0:
            return latents
        return latents + sigma * torch.randn(latents.shape, generator=clip_generator(seed, clip_index, "memory"))
