"""Attention maths in pure functions.

Heads are the axis before the sequence: q [..., H, Q, d], k and v [..., H, S, d]. See config.py for the other letters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from einops import rearrange
from torch import Tensor

LINEAR_EPSILON = 1e-8
# On a CPU, plain matmul + softmax beats the fused kernel up to about this many keys (temporal and audio attention).
PLAIN_KEYS = 64
# Fused CUDA kernels put the batch on a grid axis of at most 65535; temporal attention has a batch of B * N.
FUSED_BATCH = 65535


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[..., S, H*d] -> [..., H, S, d]."""
    return rearrange(tokens, "... s (h d) -> ... h s d", h=heads)


def merge_heads(tokens: Tensor) -> Tensor:
    """[..., H, S, d] -> [..., S, H*d]."""
    return rearrange(tokens, "... h s d -> ... s (h d)")


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [..., H, Q, d]; picks plain matmuls or the fused kernel."""
    if q.device.type == "cpu" and k.shape[-2] <= PLAIN_KEYS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [..., H, Q, S]
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    # The fused kernels take exactly four axes.
    four = [tensor.reshape(-1, *tensor.shape[-3:]) for tensor in (q, k, v)]
    parts = zip(*(tensor.split(FUSED_BATCH) for tensor in four), strict=True)
    attended = [functional.scaled_dot_product_attention(*part) for part in parts]
    return (attended[0] if len(attended) == 1 else torch.cat(attended)).reshape(*q.shape[:-1], v.shape[-1])


def linear_summary(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What linear attention needs of keys and values: (relu(k)^T v [..., d, d], sum of relu(k) [..., d, 1]), float32.

    Summaries of two sets of tokens add up to the summary of their union.
    """
    k, v = functional.relu(k).float(), v.float()
    return k.transpose(-1, -2) @ v, k.sum(-2).unsqueeze(-1)


def linear_read(q: Tensor, key_value: Tensor, normaliser: Tensor) -> Tensor:
    """Linear attention of queries [..., H, Q, d] to a summary: relu(q) KV / (relu(q) z + eps), float32."""
    q = functional.relu(q.contiguous().float())  # one copy for both products and for relu's own gradient
    return (q @ key_value) / (q @ normaliser + LINEAR_EPSILON)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ReLU-kernel attention in O(S): row i is sum_j w_ij v_j / sum_j w_ij with w_ij = relu(q_i) . relu(k_j).

    Accumulates in float32 whatever the inputs (autocast included) and returns v's dtype, [..., H, Q, d].
    """
    with torch.autocast(q.device.type, enabled=False):
        return linear_read(q, *linear_summary(k, v)).to(v.dtype)


def linear_attention_shared(qkv: tuple[Tensor, ...], shared: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Linear attention of each frame to [its own tokens; shared tokens], and of the shared tokens to themselves.

    qkv: three [B,F,H,S,d]; shared: three [B,1,H,T,d]. Returns [B,F,H,S,d] and [B,1,H,T,d]. The shared tokens are
    summarised once per clip and only their sums are added per frame.
    """
    (q, k, v), (shared_q, shared_k, shared_v) = qkv, shared
    with torch.autocast(q.device.type, enabled=False):
        once = linear_summary(shared_k, shared_v)
        both = [own + common for own, common in zip(linear_summary(k, v), once, strict=True)]
        return linear_read(q, *both).to(v.dtype), linear_read(shared_q, *once).to(v.dtype)


def softmax_attention_shared(qkv: tuple[Tensor, ...], shared: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Softmax attention of each frame to [its own tokens; shared tokens], and of the shared tokens to themselves.

    qkv: three [B,F,H,S,d]; shared: three [B,1,H,T,d]. Returns [B,F,H,S,d] and [B,1,H,T,d].
    """
    (q, k, v), (shared_q, shared_k, shared_v) = qkv, shared
    frames = q.shape[1]
    both_k = torch.cat([k, shared_k.expand(-1, frames, -1, -1, -1)], dim=-2)
    both_v = torch.cat([v, shared_v.expand(-1, frames, -1, -1, -1)], dim=-2)
    return softmax_attention(q, both_k, both_v), softmax_attention(shared_q, shared_k, shared_v)
