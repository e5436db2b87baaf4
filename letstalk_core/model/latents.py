"""Latents as the transformer sees them: as they are, or minus the portrait's (config.Departures.relative_latents)."""

from __future__ import annotations

from torch import Tensor

from ..config import LetsTalkConfig


def to_model_space(latents: Tensor, portrait: Tensor, config: LetsTalkConfig) -> Tensor:
    """Latents [B,F,C,h,w] of the autoencoder, and the portrait's [B,C,h,w] -> the transformer's.

    A departure from the paper: with relative_latents what does not move is zero, which a small model keeps still and
    sharp.
    """
    departures = config.departures
    return (latents - portrait[:, None]) * departures.relative_scale if departures.relative_latents else latents


def from_model_space(latents: Tensor, portrait: Tensor, config: LetsTalkConfig) -> Tensor:
    """The inverse of to_model_space."""
    departures = config.departures
    return latents / departures.relative_scale + portrait[:, None] if departures.relative_latents else latents
