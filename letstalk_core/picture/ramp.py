"""A ramp without corners: how masks, borders and small movements fade."""

from __future__ import annotations

from torch import Tensor


def smoothstep(x: Tensor) -> Tensor:
    """0 up to 0, 1 from 1 on, smooth between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
