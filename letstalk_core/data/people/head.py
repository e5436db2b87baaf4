"""A head that turns, nods, tilts, shifts and comes nearer, with hair and hat, while shoulders follow a little."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from ...picture.ramp import smoothstep
from .fields import Box, ThinPlate
from .geometry import CHIN, EARS, MARGIN, OVAL, SIZE

HALF_FACE = 50.0  # pixels of a shift of 1
# Beyond a picture's edges, too: a head comes in from there.
AROUND = Box(-96.0, -96.0, (SIZE + 192) // 7 + 1, (SIZE + 192) // 7 + 1, 7.0)
SHOULDERS_TURN, SHOULDERS_MOVE = 0.05, 0.6  # how much of the head's motion shoulders follow
NECK = 75.0  # pixels below the chin in which that becomes theirs
# The face's relief is softened: a warp cannot show what a nose or a cheek hides, and where it is steep it would fold.
RELIEF, RELIEF_BLUR = 0.85, 12.0  # of the true depth; deviation in pixels
ROUNDS, STEP = 10, 0.8  # of the fixed-point iteration that undoes a pose


class Head:
    """The depth of a face on a grid, and how poses move it.

    points: [468,3] of the face; ring: [R,2], what lies in the plane of the ears; cut_out: whether the person is, else
    what is beside the head follows it less the farther away it is, so that the picture's edges stay.
    """

    def __init__(self, points: Tensor, ring: Tensor, cut_out: bool):
        # Nearness in pixels, 0 in the plane of the ears, in which hair and hat are taken to lie.
        near = points[list(EARS), 2].mean() - points[:, 2]
        places = torch.cat([points[:, :2], ring])
        plate = ThinPlate(places, torch.cat([near, torch.zeros(len(ring))])[:, None])
        nearness = RELIEF * _blurred(plate.on(AROUND)[0].clamp(min=0), RELIEF_BLUR / AROUND.step)
        chin, outline = points[CHIN], points[list(OVAL)]
        grid = AROUND.points()
        head = 1 - smoothstep((grid[..., 1] - chin[1] - 4) / NECK)
        beside = torch.ones_like(head)
        if not cut_out:
            width = outline[:, 0].max() - outline[:, 0].min()
            beyond = ((grid[..., 0] - outline[:, 0].mean()).abs() - 0.65 * width) / (SIZE / 2 + MARGIN - 0.65 * width)
            above = (outline[:, 1].min() - 0.25 * width - grid[..., 1]) / 60
            beside = (1 - smoothstep(beyond)) * (1 - smoothstep(above))
        turns = (SHOULDERS_TURN + (1 - SHOULDERS_TURN) * head) * beside
        moves = (SHOULDERS_MOVE + (1 - SHOULDERS_MOVE) * head) * beside
        self.maps = torch.stack([nearness, turns, moves])[None]  # [1,3,h,w]
        self.pivot = torch.tensor([float(outline[:, 0].mean()), float(chin[1]) + 28])
        self.base = torch.tensor([SIZE / 2, float(SIZE + MARGIN)])  # of shifts and sizes

    def to(self, device: torch.device | str) -> Head:
        self.maps, self.pivot, self.base = (x.to(device) for x in (self.maps, self.pivot, self.base))
        return self

    def pose(self, places: Tensor, controls: dict[str, Tensor]) -> Tensor:
        """Where places [n,h,w,2] of the face as photographed go; controls: yaw, pitch, roll (radians), shift_x, shift_y
        (half faces), size (log of a factor), [n] each."""
        near, turns, moves = AROUND.read(self.maps.expand(len(places), -1, -1, -1), places).unbind(1)
        of = {name: value[:, None, None] for name, value in controls.items()}
        x, y = (places - self.pivot).unbind(-1)
        yaw, pitch, roll = of["yaw"], of["pitch"], of["roll"]
        turned_x, depth = x * yaw.cos() + near * yaw.sin(), near * yaw.cos() - x * yaw.sin()
        turned_y = y * pitch.cos() - depth * pitch.sin()
        tilted = torch.stack(
            [turned_x * roll.cos() - turned_y * roll.sin(), turned_x * roll.sin() + turned_y * roll.cos()], -1
        )
        turned = places + turns[..., None] * (tilted + self.pivot - places)
        shift = HALF_FACE * torch.stack([of["shift_x"], of["shift_y"]], -1)
        moved = self.base + of["size"].exp()[..., None] * (turned - self.base) + shift
        return turned + moves[..., None] * (moved - turned)

    def unpose(self, places: Tensor, controls: dict[str, Tensor]) -> Tensor:
        """The places [n,h,w,2] that the pose moves to `places`."""
        shift = HALF_FACE * torch.stack([controls["shift_x"], controls["shift_y"]], -1)[:, None, None]
        origin = self.base + (places - shift - self.base) / controls["size"].exp()[:, None, None, None]
        for _ in range(ROUNDS):
            origin = origin + STEP * (places - self.pose(origin, controls))
        return origin


def _blurred(values: Tensor, deviation: float) -> Tensor:
    """[h,w] after a Gaussian, `deviation` in grid steps."""
    reach = math.ceil(3 * deviation)
    kernel = (-0.5 * (torch.arange(-reach, reach + 1) / deviation).square()).exp()
    kernel = (kernel / kernel.sum())[None, None, None]
    padded = functional.pad(values[None, None], (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel), kernel.mT)[0, 0]
