"""How the portrait and the audio reach the frames (paper, Section 3.3 and Tables 3 and 4).

A fusion is chosen per condition by the configuration. It meets the transformer in three places and the block in none:

- `block_layer(config)`: what it adds to every block (a cross-attention), or None;
- `prepare(tokens, layers)`: everything that can be computed once per clip, whatever the timestep;
- `join(streams, prepared)`: tokens that enter self-attention beside the frames' own.

`for_block(prepared, i)` is what layer i of `block_layer` receives. A new scheme is a new class and a line in a table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor, nn

from .attention import merge_heads, softmax_attention, split_heads
from .config import LetsTalkConfig


@dataclass
class Streams:
    """The tokens that travel through the blocks."""

    frames: Tensor  # [B,F,N,D]
    memory: Tensor | None = None  # [B,M,N,D], seen by temporal attention only
    frame_conditions: Tensor | None = None  # [B,F,S,D], attend and are attended to within their frame
    clip_conditions: Tensor | None = None  # [B,1,S,D], one set a clip: every frame sees it, it sees only itself


class CrossAttention(nn.Module):
    """Residual softmax cross-attention from the tokens of a frame to the condition tokens of that frame."""

    def __init__(self, config: LetsTalkConfig, condition_width: int):
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(condition_width, config.width, bias=False)
        self.value = nn.Linear(condition_width, config.width, bias=False)
        self.out = nn.Linear(config.width, config.width)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B,F,H,K,d], of condition tokens [B,F,K,A]."""
        return split_heads(self.key(tokens), self.heads), split_heads(self.value(tokens), self.heads)

    def forward(self, frames: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """frames [B,F,N,D] -> [B,F,N,D]."""
        q = split_heads(self.query(self.norm(frames)), self.heads)  # [B,F,H,N,d]
        return frames + self.out(merge_heads(softmax_attention(q, *keys_values)))


class Fusion(nn.Module):
    """A scheme that adds nothing anywhere; the base of the others."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config

    def block_layer(self, config: LetsTalkConfig) -> nn.Module | None:
        return None

    def prepare(self, tokens: Tensor, layers: list[nn.Module]):
        return tokens

    def join(self, streams: Streams, prepared) -> Streams:
        return streams

    def for_block(self, prepared, index: int):
        return None


class DirectAudio(Fusion):
    """The paper's choice for audio: cross-attention to the audio tokens of the frame in every block."""

    def block_layer(self, config: LetsTalkConfig) -> CrossAttention:
        return CrossAttention(config, config.audio_width)

    def prepare(self, tokens: Tensor, layers: list[CrossAttention]) -> list[tuple[Tensor, Tensor]]:
        """Audio tokens [B,F,K,A] -> keys and values of every block, each [B,F,H,K,d]."""
        return [layer.keys_values(tokens) for layer in layers]

    def for_block(self, prepared: list[tuple[Tensor, Tensor]], index: int) -> tuple[Tensor, Tensor]:
        return prepared[index]


class SymbioticPortrait(Fusion):
    """The paper's choice for the portrait: its tokens join the frame's own at the input, self-attention fuses them.

    With portrait_each_frame (the paper) every frame has its own copy of them; without, the clip has one set that
    attends only to itself and that every frame attends to, which halves the tokens to compute.
    """

    def join(self, streams: Streams, prepared: Tensor) -> Streams:
        """prepared: portrait tokens [B,1,N,D]."""
        if not self.config.portrait_each_frame:
            return dataclasses.replace(streams, clip_conditions=prepared)
        return dataclasses.replace(streams, frame_conditions=prepared.expand(-1, streams.frames.shape[1], -1, -1))


PORTRAIT_FUSIONS: dict[str, type[Fusion]] = {"symbiotic": SymbioticPortrait}
AUDIO_FUSIONS: dict[str, type[Fusion]] = {"direct": DirectAudio}


def build_portrait_fusion(config: LetsTalkConfig) -> Fusion:
    """The portrait's fusion. Raises ValueError for a scheme that does not exist yet."""
    return _build(config, "portrait_fusion", config.portrait_fusion, PORTRAIT_FUSIONS)


def build_audio_fusion(config: LetsTalkConfig) -> Fusion:
    """The audio's fusion. Raises ValueError for a scheme that does not exist yet."""
    return _build(config, "audio_fusion", config.audio_fusion, AUDIO_FUSIONS)


def _build(config: LetsTalkConfig, field: str, name: str, table: dict[str, type[Fusion]]) -> Fusion:
    if name not in table:
        raise ValueError(f"{field} {name!r} is not built yet; built so far: {', '.join(table)}")
    return table[name](config)
