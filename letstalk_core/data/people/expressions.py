"""How the points of a face move with each control: displacements in pixels at full strength of the control."""

from __future__ import annotations

import torch
from torch import Tensor

from ...picture.ramp import smoothstep
from .geometry import (
    BROWS,
    CHIN,
    CORNERS,
    EYE_ROWS,
    LEFT_CORNER,
    LIPS,
    LOWER_ROWS,
    POINTS,
    RIGHT_CORNER,
    UPPER_ROWS,
)

# `close` brings the lips of the photograph together; the others are named as the controls are.
EXPRESSIONS = (
    "close", "open", "width", "round", "teeth", "tuck", "smile", "cheeks", "jaw", "brow", "widen", "squint",
)  # fmt: skip
GAP = 21.0  # between the lips at open = 1
UPPER_SHARE = 0.16  # of the gap that the upper lip makes; the jaw makes the rest
# How far the rows of a lip, from the line between the lips outwards, follow its edge.
UPPER_FOLLOWS, LOWER_FOLLOWS = (1.0, 0.8, 0.65, 0.5), (1.0, 0.9, 0.85, 0.75)


def displacements(points: Tensor) -> dict[str, Tensor]:
    """Points [468,2] of a face -> displacements [468,2] for each of EXPRESSIONS."""
    left, right = points[LEFT_CORNER], points[RIGHT_CORNER]
    mouth, half = (left + right) / 2, float((right - left).norm()) / 2
    across = (points[:, 0] - mouth[0]) / half  # -1 .. 1 from corner to corner
    hump = (1 - across.clamp(-1, 1).square()) ** 0.85  # largest in the middle of the mouth
    lips = torch.zeros(POINTS, dtype=torch.bool)
    lips[list(LIPS)] = True
    below = (points[:, 1] - mouth[1] - 6) / (points[CHIN, 1] - mouth[1] - 6).clamp(min=10) * 1.4
    chin = smoothstep(below) * (-(((points[:, 0] - mouth[0]) / 58).abs() ** 4)).exp() * ~lips
    near = (-(((points[:, 0] - mouth[0]) / (1.5 * half)) ** 2) - ((points[:, 1] - mouth[1]) / 26) ** 2).exp()
    moves = {name: torch.zeros(POINTS, 2) for name in EXPRESSIONS}
    _move_lips(moves, points, hump, chin)
    wide = across.clamp(-1.3, 1.3)
    moves["width"][:, 0] = 8.1 * wide * near
    moves["width"][:, 1] = -1.2 * near * (across.abs() > 0.5)
    moves["round"][:, 0] = -0.34 * half * wide * near
    moves["smile"][:, 0] = 4.0 * wide * near
    moves["smile"][:, 1] = -4.6 * near * wide.abs()
    _move_cheeks(moves, points, mouth, half, chin, near)
    _move_eyes(moves, points)
    return moves


def _move_lips(moves: dict[str, Tensor], points: Tensor, hump: Tensor, chin: Tensor) -> None:
    """What parts the lips or brings them together."""
    apart = (points[list(LOWER_ROWS[0]), 1] - points[list(UPPER_ROWS[0]), 1]).clamp(min=0)
    rounding = ((2.6, 1.6, 0.8, 0.0)[::-1], (2.8, 1.8, 0.9, 0.0)[::-1])
    for row, (upper, lower) in enumerate(zip(UPPER_ROWS, LOWER_ROWS, strict=True)):
        upper, lower = list(upper), list(lower)
        high, low = UPPER_FOLLOWS[row], LOWER_FOLLOWS[row]
        moves["close"][upper, 1] += 0.30 * apart * high
        moves["close"][lower, 1] -= 0.70 * apart * low
        moves["open"][upper, 1] -= UPPER_SHARE * GAP * hump[upper] * high
        moves["open"][lower, 1] += (1 - UPPER_SHARE) * GAP * hump[lower] * (0.55 + 0.45 * low)
        moves["teeth"][upper, 1] -= 2.2 * hump[upper] * high
        moves["teeth"][lower, 1] += 0.6 * hump[lower] * low
        moves["tuck"][lower, 1] -= 3.0 * hump[lower] * (1.0, 1.1, 1.0, 0.7)[row]  # in under the upper teeth
        moves["tuck"][upper, 1] -= 0.8 * hump[upper] * high
        moves["round"][upper, 1] -= rounding[0][row] * hump[upper]
        moves["round"][lower, 1] += rounding[1][row] * hump[lower]
    moves["close"][:, 1] -= 0.5 * apart.max() * chin
    moves["open"][:, 1] += 0.74 * GAP * chin
    moves["tuck"][:, 1] -= 1.2 * chin
    middle = (points[LEFT_CORNER, 0] + points[RIGHT_CORNER, 0]) / 2
    for corner in CORNERS:
        moves["close"][corner] = 0
        moves["open"][corner] = torch.tensor([2.2 if points[corner, 0] < middle else -2.2, 2.0])


def _move_cheeks(
    moves: dict[str, Tensor], points: Tensor, mouth: Tensor, half: float, chin: Tensor, near: Tensor
) -> None:
    """Cheeks that swell, rise in a smile, and a jaw that goes sideways."""
    for side in (-1, 1):
        swell = _bump(points, mouth + torch.tensor([side * 1.9 * half, -4.0]), 20.0)
        moves["cheeks"][:, 0] += 5.0 * side * swell
        apple = _bump(points, mouth + torch.tensor([side * 1.6 * half, -32.0]), 18.0)
        moves["smile"][:, 1] -= 2.6 * apple
        moves["squint"][:, 1] -= 1.6 * apple
    moves["jaw"][:, 0] = 6.0 * torch.maximum(chin, 0.6 * near * (points[:, 1] > mouth[1] - 8))


def _move_eyes(moves: dict[str, Tensor], points: Tensor) -> None:
    """Brows and lids but blinks, which are a layer of their own (eyes.py)."""
    for brow in BROWS:
        moves["brow"][list(brow), 1] = -4.5
        moves["widen"][list(brow), 1] = -1.8
        moves["squint"][list(brow), 1] = 0.8
    for upper, lower, skin in EYE_ROWS:
        moves["widen"][list(upper[1:-1]), 1] = -2.2
        moves["widen"][list(skin), 1] = -1.4
        moves["widen"][list(lower[1:-1]), 1] = 0.5
        moves["squint"][list(lower[1:-1]), 1] = -2.4
        moves["squint"][list(upper[1:-1]), 1] = 0.9
        moves["smile"][list(lower[1:-1]), 1] -= 0.8
        moves["brow"][list(skin), 1] = -1.6


def _bump(points: Tensor, centre: Tensor, width: float) -> Tensor:
    return (-(points - centre).square().sum(-1) / (2 * width**2)).exp()
