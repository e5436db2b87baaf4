"""Smooth fields over the aligned plane: thin-plate splines through moved points, kept on grids and read anywhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from ...picture.ramp import smoothstep


class Box(NamedTuple):
    """A rectangle of the aligned plane with a value every `step` pixels, first and last on its edges."""

    left: float
    top: float
    columns: int
    rows: int
    step: float

    @staticmethod
    def around(centre: Tensor, half_width: float, half_height: float, step: float) -> Box:
        columns, rows = round(2 * half_width / step) + 1, round(2 * half_height / step) + 1
        left, top = (centre - torch.tensor([half_width, half_height])).tolist()
        return Box(left, top, columns, rows, step)

    @property
    def middle(self) -> tuple[float, float]:
        return self.left + self.step * (self.columns - 1) / 2, self.top + self.step * (self.rows - 1) / 2

    def points(self, device: torch.device | str = "cpu") -> Tensor:
        """[rows,columns,2] (x, y)."""
        x = self.left + self.step * torch.arange(self.columns, device=device)
        y = self.top + self.step * torch.arange(self.rows, device=device)
        return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)

    def read(self, values: Tensor, places: Tensor) -> Tensor:
        """Values [n,C,rows,columns] at places [n,h,w,2] of the plane -> [n,C,h,w]; beyond the edges as on them."""
        size = torch.tensor([self.columns - 1, self.rows - 1], device=places.device)
        origin = torch.tensor([self.left, self.top], device=places.device)
        within = (places - origin) / (self.step * size / 2) - 1
        return functional.grid_sample(values, within, padding_mode="border", align_corners=True)

    def inside(self, places: Tensor, feather: float) -> Tensor:
        """1 in the box, 0 outside, over `feather` pixels within its edges: places [...,2] -> [...]."""
        low = torch.tensor([self.left, self.top], device=places.device)
        high = low + self.step * torch.tensor([self.columns - 1, self.rows - 1], device=places.device)
        near = torch.minimum(places - low, high - places).amin(-1)
        return smoothstep(near / feather)


class Curves:
    """Edges [n,P,2] with x that grows, as heights over x: straight between their points, level beyond their ends.

    first, last: [n], between which heights are kept; `samples` of them.
    """

    def __init__(self, edges: Tensor, first: Tensor, last: Tensor, samples: int):
        self.first, self.length = first[:, None, None], (last - first)[:, None, None]
        share = torch.linspace(0, 1, samples, device=edges.device)
        at = torch.lerp(first[:, None], last[:, None], share)
        x, y = edges[..., 0].contiguous(), edges[..., 1].contiguous()
        after = torch.searchsorted(x, at).clamp(1, x.shape[1] - 1)
        x0, x1, y0, y1 = x.gather(1, after - 1), x.gather(1, after), y.gather(1, after - 1), y.gather(1, after)
        self.heights = torch.lerp(y0, y1, ((at - x0) / (x1 - x0).clamp(min=0.3)).clamp(0, 1))

    def __call__(self, x: Tensor) -> Tensor:
        """Heights at x [n,h,w]."""
        last = self.heights.shape[1] - 1
        place = ((x - self.first) / self.length).clamp(0, 1) * last
        index = place.long().clamp(max=last - 1).flatten(1)
        low, high = self.heights.gather(1, index), self.heights.gather(1, index + 1)
        return torch.lerp(low, high, place.flatten(1) - index).reshape(x.shape)


class ThinPlate:
    """The smoothest fields that take given values at given points [K,2], up to a little slack where points coincide."""

    SCALE, SLACK = 128.0, 2e-4

    def __init__(self, points: Tensor, values: Tensor):
        """values: [K,C], one column a field."""
        self.points = (points / self.SCALE).double()
        count = len(points)
        flat = torch.cat([torch.ones(count, 1, dtype=torch.float64), self.points], 1)
        system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
        system[:count, :count] = self._kernel(self.points) + self.SLACK * torch.eye(count)
        system[:count, count:], system[count:, :count] = flat, flat.T
        wanted = torch.zeros(count + 3, values.shape[1], dtype=torch.float64)
        wanted[:count] = values.double()
        self.weights = torch.linalg.solve(system, wanted).float()
        self.points = self.points.float()

    def _kernel(self, at: Tensor) -> Tensor:
        squared = torch.cdist(at, self.points, compute_mode="donot_use_mm_for_euclid_dist").square_()
        return 0.5 * squared * (squared + 1e-9).log()

    def on(self, box: Box) -> Tensor:
        """The fields on a box's grid, [C,rows,columns]."""
        at = box.points().flatten(0, 1) / self.SCALE
        values = self._kernel(at) @ self.weights[:-3] + self.weights[-3] + at @ self.weights[-2:]
        return values.T.reshape(-1, box.rows, box.columns)


def invert(displacement: Tensor, box: Box, places: Tensor, rounds: int = 6) -> Tensor:
    """Where places [n,h,w,2] came from when every point of a box moved by the displacement [n,2,rows,columns] there."""
    origin = places - box.read(displacement, places).movedim(1, -1)
    for _ in range(rounds):
        origin = 0.25 * origin + 0.75 * (places - box.read(displacement, origin).movedim(1, -1))
    return origin
