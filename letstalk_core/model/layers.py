"""The layers that backbone and twins are made of (paper, Section 3.2 and Figure 2). Axis letters: config.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import TransformerConfig
from .attention import (
    linear_attention,
    linear_attention_shared,
    merge_heads,
    softmax_attention,
    softmax_attention_shared,
    split_heads,
)

KeysValues = tuple[Tensor, Tensor]
# On a CPU a feed-forward with convolutions takes 0.65 to 0.9 of the time by so many numbers of its tokens at once: what
# it makes of them stays in the processor's cache. A frame alone would have another layout, which is slower.
NUMBERS_AT_ONCE, FRAMES_AT_ONCE = 2**18, 2


def sincos(positions: Tensor, width: int) -> Tensor:
    """Fixed positions [n] -> [n,width]: all sines, then all cosines, base 10000."""
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = positions.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@functools.lru_cache(maxsize=16)
def grid_positions(rows: int, columns: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """2-D positions [rows*columns,width]: the first half of the channels from the column, the second from the row."""
    with torch.inference_mode(False):  # cached: must also serve training
        column = sincos(torch.arange(columns, device="cpu"), width // 2).repeat(rows, 1)
        row = sincos(torch.arange(rows, device="cpu"), width // 2).repeat_interleave(columns, 0)
        return torch.cat([column, row], dim=1).to(device, dtype)


@functools.lru_cache(maxsize=16)
def time_positions(frames: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1-D positions [frames,1,width] of [memory; clip]."""
    with torch.inference_mode(False):
        return sincos(torch.arange(frames, device="cpu"), width)[:, None].to(device, dtype)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """What adaLN does to normalised tokens [B,F,N,D]; shift and scale are [B,1,1,D], and the answer has their dtype."""
    return (tokens * (1 + scale.to(tokens.dtype)) + shift).to(shift.dtype)


class Norm(nn.LayerNorm):
    """LayerNorm in the tokens' dtype, whatever its weights are in."""

    def forward(self, tokens: Tensor) -> Tensor:
        weight, bias = (None if own is None else own.to(tokens.dtype) for own in (self.weight, self.bias))
        return functional.layer_norm(tokens, self.normalized_shape, weight, bias, self.eps)


def plain_norm(width: int) -> Norm:
    """Without weights."""
    return Norm(width, eps=1e-6, elementwise_affine=False)


def checkpointed(on: bool, function: Callable[..., Any], *inputs) -> Any:
    """function(*inputs); on: the backward pass is left the inputs alone and computes again what it needs.

    The function's last product is not computed again: its gradient needs what goes into it, not what comes out.
    """
    if on and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


class TemporalAttention(nn.Module):
    """Residual softmax attention along time, at each position on its own."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.norm = Norm(config.width, eps=1e-5)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mix = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B,M+F,N,D] -> [B,M+F,N,D]."""
        qkv = rearrange(
            self.qkv(self.norm(tokens).to(self.norm.weight.dtype)), "b t n (three d) -> three b n t d", three=3
        )
        attended = softmax_attention(*(split_heads(part, self.heads) for part in qkv))  # [B,N,H,M+F,d]
        return tokens + rearrange(self.mix(self.out(merge_heads(attended))), "b n t d -> b t n d")


class SpatialAttention(nn.Module):
    """Self-attention over the tokens of a frame, linear or softmax, with tokens that all frames share or without."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.selective = False
        self.linear = linear = config.attention == "linear"
        self.heads = config.width // config.linear_head_width if linear else config.heads
        self.attend = linear_attention if linear else softmax_attention
        self.attend_shared = linear_attention_shared if linear else softmax_attention_shared
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=not linear)
        self.out = nn.Linear(config.width, config.width)

    def _split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(split_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, dim=-1))

    def forward(self, tokens: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """tokens [B,F,S,D], shared [B,1,T,D] | None -> the same shapes."""
        again = self.selective and self.linear  # softmax kernels keep little and are dear to compute again
        if shared is None:
            return self.out(merge_heads(checkpointed(again, self.attend, *self._split(tokens)))), None
        both = self._split(tokens), self._split(shared)
        attended, attended_shared = checkpointed(again, self.attend_shared, *both)
        return self.out(merge_heads(attended)), self.out(merge_heads(attended_shared))


class GLUMBConv(nn.Module):
    """The linear model's feed-forward (Sana's Mix-FFN, arXiv 2410.10629): 1x1 to 2rD, SiLU, 3x3 depthwise,
    value * SiLU(gate), 1x1 back to D."""

    takes_conditions = False  # a convolution has no place for tokens without a position in the frame

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.selective = False
        hidden = round(config.width * config.mlp_ratio)
        self.expand = nn.Linear(config.width, 2 * hidden)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.contract = nn.Linear(hidden, config.width, bias=False)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens [B,F,N,D] with N = rows * columns of grid -> [B,F,N,D]."""
        parts = 1
        if tokens.device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            parts = max(1, min(-(-tokens.numel() // NUMBERS_AT_ONCE), tokens.shape[1] // FRAMES_AT_ONCE))
        fed = [self._fed(part, grid) for part in tokens.tensor_split(parts, dim=1)]
        return fed[0] if parts == 1 else torch.cat(fed, dim=1)

    def _fed(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The same of a few frames."""
        mixed = checkpointed(self.selective, self._mix, self.expand(tokens), grid)  # [B,F,N,2rD]
        return checkpointed(self.selective, self._gate, mixed)

    def _mix(self, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """SiLU and depthwise convolution, [B,F,N,2rD] -> [B,F,N,2rD]."""
        # In memory the channels stay last.
        image = rearrange(functional.silu(hidden), "b f (rows columns) c -> (b f) c rows columns", rows=grid[0])
        return rearrange(self.depthwise(image), "(b f) c rows columns -> b f (rows columns) c", b=len(hidden))

    def _gate(self, mixed: Tensor) -> Tensor:
        """value * SiLU(gate) and 1x1, [B,F,N,2rD] -> [B,F,N,D]."""
        value, gate = mixed.chunk(2, dim=-1)  # [B,F,N,rD]
        return self.contract(value * functional.silu(gate))


class FeedForward(nn.Module):
    """The softmax model's feed-forward: Linear to rD, GELU (tanh), Linear back."""

    takes_conditions = True

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.selective = False
        hidden = round(config.width * config.mlp_ratio)
        self.expand = nn.Linear(config.width, hidden)
        self.contract = nn.Linear(hidden, config.width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens [...,D] -> [...,D]."""
        return checkpointed(self.selective, self._contract, self.expand(tokens))

    def _contract(self, hidden: Tensor) -> Tensor:
        """GELU and the second Linear, [...,rD] -> [...,D]."""
        return self.contract(functional.gelu(hidden, approximate="tanh"))


def feed_forward_of(config: TransformerConfig) -> GLUMBConv | FeedForward:
    """The feed-forward of tokens on a grid: the linear model's or the softmax model's."""
    return GLUMBConv(config) if config.attention == "linear" else FeedForward(config)


class CrossAttention(nn.Module):
    """Residual softmax cross-attention from the tokens of a frame to the condition tokens of that frame."""

    def __init__(self, config: TransformerConfig, condition_width: int):
        super().__init__()
        self.heads = config.heads
        self.norm = plain_norm(config.width)
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(condition_width, config.width, bias=False)
        self.value = nn.Linear(condition_width, config.width, bias=False)
        self.out = nn.Linear(config.width, config.width)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Keys and values, each [B,F,H,K,d], of condition tokens [B,F,K,A]; F is 1 where all frames share them."""
        return split_heads(self.key(tokens), self.heads), split_heads(self.value(tokens), self.heads)

    def forward(self, frames: Tensor, condition: Tensor | KeysValues) -> Tensor:
        """frames [B,F,N,D] -> [B,F,N,D]; condition: tokens [b,F,K,A] or their keys and values, b <= B.

        Frames beyond the first b are without a condition. They get what zeros give: the bias of `out`.
        """
        keys_values = self.keys_values(condition) if isinstance(condition, Tensor) else condition
        told, untold = frames.tensor_split((len(keys_values[0]),))
        q = split_heads(self.query(self.norm(told).to(keys_values[0].dtype)), self.heads)  # [b,F,H,N,d]
        k, v = (part.expand(-1, q.shape[1], -1, -1, -1) for part in keys_values)  # one set for all frames serves too
        told = told + self.out(merge_heads(softmax_attention(q, k, v)))
        return torch.cat([told, untold + self.out.bias]) if len(untold) else told
