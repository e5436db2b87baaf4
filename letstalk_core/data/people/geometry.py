"""Where things are in the pictures of people: the aligned square, and points of the MediaPipe Face Mesh by their use.

All lengths are pixels of the aligned square, 256 wide (picture/face.py says where eyes and mouth lie in it).
Pictures cover more: MARGIN pixels on every side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .fields import Box

SIZE, MARGIN = 256, 32
EXTENT = SIZE + 2 * MARGIN  # of a picture
PICTURE = Box(-MARGIN + 0.5, -MARGIN + 0.5, EXTENT, EXTENT, 1.0)  # its pixels' centres
POINTS = 468  # of the face; ten more are the irises'

# Rows of points along the lips from the picture's left corner to its right one, from the line between them outwards:
# point i of a lower row lies below point i of its upper row.
UPPER_ROWS = (
    (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
    (62, 183, 42, 41, 38, 12, 268, 271, 272, 407, 292),
    (76, 184, 74, 73, 72, 11, 302, 303, 304, 408, 306),
    (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
)
LOWER_ROWS = (
    (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
    (62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292),
    (76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306),
    (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
)
CORNERS = (61, 291, 76, 306, 62, 292, 78, 308)
LEFT_CORNER, RIGHT_CORNER, UPPER_LIP, LOWER_LIP, CHIN, NOSE = 61, 291, 13, 14, 152, 4
# Of each eye, from left to right: the margins of the upper and the lower lid, and a row of skin above the upper one.
EYE_ROWS = (
    (
        (33, 246, 161, 160, 159, 158, 157, 173, 133),
        (33, 7, 163, 144, 145, 153, 154, 155, 133),
        (247, 30, 29, 27, 28, 56, 190),
    ),
    (
        (362, 398, 384, 385, 386, 387, 388, 466, 263),
        (362, 382, 381, 380, 374, 373, 390, 249, 263),
        (414, 286, 258, 257, 259, 260, 467),
    ),
)
IRISES = ((468, 469, 470, 471, 472), (473, 474, 475, 476, 477))  # centre, then four points of the edge
BROWS = ((70, 63, 105, 66, 107, 55, 65, 52, 53, 46), (300, 293, 334, 296, 336, 285, 295, 282, 283, 276))
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
EARS = (234, 454)
CHEEKS = (205, 425)  # plain skin beside the nose, left and right
LIPS = tuple(sorted({point for row in UPPER_ROWS + LOWER_ROWS for point in row}))


def lower_partners() -> np.ndarray:
    """For every point of the face the point above it across the line between the lips: itself but on lower lips."""
    partners = np.arange(POINTS)
    for upper, lower in zip(UPPER_ROWS, LOWER_ROWS, strict=True):
        partners[list(lower)] = upper
    return partners


def upper_partners() -> np.ndarray:
    """For every point of the face the point below it across the line between the lips: itself but on upper lips."""
    partners = np.arange(POINTS)
    for upper, lower in zip(UPPER_ROWS, LOWER_ROWS, strict=True):
        partners[list(upper)] = lower
    return partners


def ring_around(face: Tensor) -> Tensor:
    """Points [R,2] around the face that expressions leave where they are."""
    outline = face[list(OVAL)]
    centre = outline.mean(0)
    ring = centre + (outline - centre) * torch.tensor([1.32, 1.42])
    return ring.clamp(-MARGIN + 6, SIZE + MARGIN - 6)


def border() -> Tensor:
    """Points [48,2] along the picture's edges."""
    low, high = float(-MARGIN), float(SIZE + MARGIN)
    along = torch.linspace(low, high, 13)
    sides = [torch.stack([along, torch.full_like(along, edge)], 1) for edge in (low, high)]
    return torch.cat([*sides, *(side[1:-1].flip(1) for side in sides)])
