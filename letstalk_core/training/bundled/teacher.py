"""The teacher: what the latents of a frame are, told from those of the portrait and from what moves.

It is trained with the autoencoder (train_portrait_autoencoder.py), which decodes half of the pictures from what the
teacher tells and whose latents are drawn to that. So latents come to hold movements that are everybody's, and the
portrait's features what is each person's own; without a teacher latents hold that as well, and a transformer learns
its people by heart. Then it teaches the transformer clips that nobody has to render (told_clips.py).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.people.puppet import CONTROLS
from ...weights import write_weights

WIDTH, BLOCKS = 192, 6


class Block(nn.Module):
    """[n,c,h,w] -> the same shape, under what moves [n,c]; nothing at first."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.modulation = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, moved: Tensor) -> Tensor:
        scale, shift = self.modulation(moved)[:, :, None, None].chunk(2, 1)
        normal = F.rms_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
        return x + self.second(F.silu(self.first(normal * (1 + scale) + shift)))


class Teacher(nn.Module):
    """Portraits' latents and controls to the latents of frames.

    Args:
        channels, side: of the latents.
        controls: some of those that it will see, float32 [n,21], whose mean and deviation it keeps.
    """

    def __init__(self, channels: int, side: int, controls: Tensor | None = None, width: int = WIDTH):
        super().__init__()
        controls = torch.zeros(2, len(CONTROLS)) if controls is None else controls
        self.register_buffer("mean", controls.mean(0))
        self.register_buffer("deviation", controls.std(0) + 1e-3)
        self.from_latents = nn.Conv2d(channels, width, 1)
        self.places = nn.Parameter(0.5 * torch.randn(1, width, side, side))
        self.from_controls = nn.Linear(2 * len(CONTROLS), width)
        self.mix = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.to_latents = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.to_latents.weight)
        nn.init.zeros_(self.to_latents.bias)

    def forward(self, portraits: Tensor, controls: Tensor) -> Tensor:
        """What is added to the portraits' latents [n,C,h,w] for frames with controls [n,2,21]: the frame's and the
        portrait's."""
        frame, portrait = controls.unbind(1)
        told = torch.cat([(frame - self.mean) / self.deviation, (frame - portrait) / self.deviation], -1)
        moved = self.from_controls(told)
        moved = F.silu(moved + self.mix(F.silu(moved)))
        x = self.from_latents(portraits) + self.places
        for block in self.blocks:
            x = block(x, moved)
        return self.to_latents(x)

    def inner_weights(self) -> list[nn.Parameter]:
        """Those that Muon trains."""
        return [conv.weight for block in self.blocks for conv in (block.first, block.second)]

    def save(self, path: Path) -> None:
        """In half precision."""
        write_weights(path, {name: value.half() for name, value in self.state_dict().items()}, {})

    @classmethod
    def load(cls, path: Path) -> Teacher:
        weights = load_file(path)
        _, width, side, _ = weights["places"].shape
        teacher = cls(weights["to_latents.bias"].numel(), side, width=width)
        teacher.load_state_dict(weights)
        return teacher.eval().requires_grad_(False)
