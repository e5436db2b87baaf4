"""How the portrait and the audio reach the frames (paper, Section 3.3 and Tables 3 and 4).

A fusion is chosen per condition by the configuration. It meets the transformer in three places and the block in none:

- `block_layer(config)`: what it adds to every block (a cross-attention), or None;
- `prepare(tokens, grid)`: everything that can be computed once per clip, whatever the timestep, but for what the
  layers in the blocks can; `precompute(prepared, layers)` does that too, for sampling;
- `join(streams, prepared)`: tokens that enter self-attention beside the frames' own.

`for_block(prepared, i)` is what layer i of `block_layer` receives. A new scheme is a new class and a line in a table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import LetsTalkConfig
from .layers import (
    CrossAttention,
    FeedForward,
    KeysValues,
    SpatialAttention,
    TemporalAttention,
    spatial_mixer,
    time_positions,
)


class Streams(NamedTuple):
    """The tokens that travel through the blocks; a tuple, so that sharded training finds the tensors in it."""

    frames: Tensor  # [B,F,N,D]
    memory: Tensor | None = None  # [B,M,N,D], seen by temporal attention only
    frame_conditions: Tensor | None = None  # [B,F,S,D], attend and are attended to within their frame
    clip_conditions: Tensor | None = None  # [B,1,S,D], one set a clip: every frame sees it, it sees only itself


class Fusion(nn.Module):
    """A scheme that adds nothing anywhere; the base of the others."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config

    def block_layer(self) -> nn.Module | None:
        return None

    def prepare(self, tokens: Tensor, grid: tuple[int, int]):
        """tokens: the portrait's [B,1,N,D] with positions, N = rows * columns of grid, or the audio's [B,F,K,A]."""
        return tokens

    def precompute(self, prepared, layers: list[nn.Module]):
        return prepared

    def join(self, streams: Streams, prepared) -> Streams:
        return streams

    def for_block(self, prepared, index: int):
        return None


class Direct(Fusion):
    """Cross-attention to the condition's tokens in every block; the paper's choice for audio."""

    def __init__(self, config: LetsTalkConfig, width: int):
        super().__init__(config)
        self.width = width

    def block_layer(self) -> CrossAttention:
        return CrossAttention(self.config, self.width)

    def prepare(self, tokens: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """What each block attends to, [B,F or 1,S,width]."""
        return [tokens] * self.config.depth

    def precompute(self, prepared: list[Tensor], layers: list[CrossAttention]) -> list[KeysValues]:
        return [layer.keys_values(tokens) for layer, tokens in zip(layers, prepared, strict=True)]

    def for_block(self, prepared: list, index: int) -> Tensor | KeysValues:
        return prepared[index]


class Siamese(Direct):
    """Cross-attention in block i to what layer i of a twin transformer makes of the condition alone."""

    def __init__(self, config: LetsTalkConfig, twin: nn.Module):
        super().__init__(config, config.width)
        self.twin = twin

    def prepare(self, tokens: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        return self.twin(tokens, grid)


class SymbioticPortrait(Fusion):
    """The paper's choice for the portrait: its tokens join the frame's own at the input, self-attention fuses them.

    With portrait_each_frame (the paper) every frame has its own copy of them; without, the clip has one set that
    attends only to itself and that every frame attends to, which halves the tokens to compute.
    """

    def join(self, streams: Streams, prepared: Tensor) -> Streams:
        """prepared: portrait tokens [B,1,N,D]."""
        if not self.config.portrait_each_frame:
            return streams._replace(clip_conditions=prepared)
        return _with_conditions(streams, prepared.expand(-1, streams.frames.shape[1], -1, -1))


class SymbioticAudio(Fusion):
    """The audio tokens of a frame, brought to the transformer's width, join the frame's own at the input."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__(config)
        self.enter = nn.Linear(config.audio_width, config.width)

    def prepare(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.enter(tokens)

    def join(self, streams: Streams, prepared: Tensor) -> Streams:
        """prepared: [B,F,K,D]."""
        return _with_conditions(streams, prepared)


def _with_conditions(streams: Streams, tokens: Tensor) -> Streams:
    others = [] if streams.frame_conditions is None else [streams.frame_conditions]
    return streams._replace(frame_conditions=torch.cat([*others, tokens], dim=2))


class TwinBlock(nn.Module):
    """A block of a twin: as the backbone's, without timestep (so that once per clip is enough) and conditions."""

    def __init__(self, config: LetsTalkConfig, temporal: bool, on_grid: bool):
        super().__init__()
        self.temporal = TemporalAttention(config) if temporal else None
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.spatial = SpatialAttention(config)
        self.feed_forward = spatial_mixer(config) if on_grid else FeedForward(config)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B,F,S,D] -> [B,F,S,D]."""
        if self.temporal is not None:
            tokens = self.temporal(tokens)
        tokens = tokens + self.spatial(self.norm_attention(tokens), None)[0]
        return tokens + self.feed_forward(self.norm_feed_forward(tokens), grid)


class PortraitTwin(nn.Module):
    """Twin of the backbone on the portrait alone; a single frame has no use for temporal attention."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.blocks = nn.ModuleList(TwinBlock(config, temporal=False, on_grid=True) for _ in range(config.depth))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """[B,1,N,D] -> the output of every layer, each [B,1,N,D]."""
        return _outputs(self.blocks, tokens, grid)


class AudioTwin(nn.Module):
    """Twin of the backbone on the audio tokens of the clip. They lie on no grid, so its feed-forward is a plain one."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.enter = nn.Linear(config.audio_width, config.width)
        self.blocks = nn.ModuleList(TwinBlock(config, temporal=True, on_grid=False) for _ in range(config.depth))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """[B,F,K,A] -> the output of every layer, each [B,F,K,D]."""
        entered = self.enter(tokens)
        times = time_positions(tokens.shape[1], entered.shape[-1], device=entered.device, dtype=entered.dtype)
        return _outputs(self.blocks, entered + times, grid)


def _outputs(blocks: nn.ModuleList, tokens: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    outputs = []
    for block in blocks:
        tokens = block(tokens, grid)
        outputs.append(nn.functional.layer_norm(tokens, tokens.shape[-1:]))
    return outputs


PORTRAIT_FUSIONS = {
    "direct": lambda config: Direct(config, config.width),
    "siamese": lambda config: Siamese(config, PortraitTwin(config)),
    "symbiotic": SymbioticPortrait,
}
AUDIO_FUSIONS = {
    "direct": lambda config: Direct(config, config.audio_width),
    "siamese": lambda config: Siamese(config, AudioTwin(config)),
    "symbiotic": SymbioticAudio,
}


def build_fusions(config: LetsTalkConfig) -> nn.ModuleDict:
    """The configuration's fusions under "portrait" and "audio"."""
    portrait, audio = PORTRAIT_FUSIONS[config.portrait_fusion], AUDIO_FUSIONS[config.audio_fusion]
    return nn.ModuleDict({"portrait": portrait(config), "audio": audio(config)})
