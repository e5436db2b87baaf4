"""The eyes of a puppet: lids that close with their lashes, and irises that move under them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...picture.ramp import smoothstep
from .fields import Box, Curves, ThinPlate, invert
from .geometry import EYE_ROWS, IRISES, PICTURE, POINTS

HALF_WIDTH, HALF_HEIGHT, STEP = 32.0, 26.0, 2.0  # of the part of the face that an eye's layers fill
GAZE = (0.19, 0.09)  # of the eye's width, at gaze 1
LID_HEIGHT = 18.0  # pixels of skin above an eye that its lid may cover
SAMPLES = 64  # of a lid's margin


def lid_displacements(points: Tensor) -> Tensor:
    """How points [468,2] of a face move as both eyes close, [468,2]."""
    moves = torch.zeros(POINTS, 2)
    for upper, lower, skin in EYE_ROWS:
        down = 0.97 * (points[list(lower)] - points[list(upper)])
        moves[list(upper)], moves[list(lower)] = down, down  # one layer: what lies below the upper lid goes with it
        moves[list(skin), 1] = 0.45 * down[1:-1, 1]
    return moves


class Eye:
    """One eye of a photograph with landmarks [478,2]."""

    def __init__(self, side: int, landmarks: Tensor, plate: ThinPlate, lids: int):
        """plate: of the face's expressions; its fields from number `lids` on are the lids' x and y."""
        self.upper, self.lower, _ = EYE_ROWS[side]
        left, right = landmarks[self.upper[0]], landmarks[self.upper[-1]]
        self.box = Box.around((left + right) / 2, HALF_WIDTH, HALF_HEIGHT, STEP)
        fields = plate.on(self.box).unflatten(0, (-1, 2))
        self.base, self.lid = fields[: lids // 2], fields[lids // 2]
        iris = landmarks[list(IRISES[side])]
        self.iris, self.radius = iris[0], float((iris[1:] - iris[0]).norm(dim=-1).mean())
        self.width = float((right - left).norm())

    def to(self, device: torch.device | str) -> Eye:
        self.base, self.lid, self.iris = self.base.to(device), self.lid.to(device), self.iris.to(device)
        return self

    def paint(
        self,
        picture: Tensor,
        places: Tensor,
        weights: Tensor,
        points: Tensor,
        lids: Tensor,
        controls: dict[str, Tensor],
    ) -> Tensor:
        """The eye's RGBA [n,4,h,w] at places [n,h,w,2] of the unposed face.

        picture: RGBA [1,4,320,320]; weights: of the expressions [n,E]; points: moved by them [n,468,2]; lids: how a
        closing eye moves points further [468,2]; controls: blink, gaze_x, gaze_y, [n] each.
        """
        blink = controls["blink"]
        base = torch.einsum("ne,edhw->ndhw", weights, self.base)
        grid = self.box.points(places.device)[None].expand(len(places), -1, -1, -1)
        open_at = self._read_map(invert(base, self.box, grid), places)
        covered = base + blink[:, None, None, None] * self.lid
        lid_at = self._read_map(invert(covered, self.box, grid), places)
        closed = points + blink[:, None, None] * lids
        opened, closing, lower, inward = self._edges(points, closed, places[..., 0])
        y = places[..., 1]
        within = smoothstep((y - opened) / 1.5 + 0.5) * smoothstep((lower - y) / 1.5 + 0.5) * smoothstep(inward / 2)
        eye = PICTURE.read(
            picture.expand(len(places), -1, -1, -1), open_at - within[..., None] * self._turn(open_at, controls)
        )
        lid = PICTURE.read(picture.expand(len(places), -1, -1, -1), lid_at)
        cover = torch.sigmoid((closing - y + 0.3) / 0.45) * torch.sigmoid((lower + 0.8 - y) / 0.6)
        cover = cover * torch.sigmoid((y - (opened - LID_HEIGHT)) / 3.0) * smoothstep((inward + 3) / 4)
        cover = cover * (blink > 0.01)[:, None, None]
        painted = torch.lerp(eye, lid, cover[:, None])
        lashes = (-(((y - closing) / 1.2) ** 2)).exp() * smoothstep((inward + 2) / 4)
        dark = 1 - 0.45 * lashes * smoothstep(1.5 * blink)[:, None, None]
        return torch.cat([painted[:, :3] * dark[:, None], painted[:, 3:]], 1)

    def _read_map(self, values: Tensor, places: Tensor) -> Tensor:
        return self.box.read(values.movedim(-1, 1), places).movedim(1, -1)

    def gaze(self, controls: dict[str, Tensor]) -> Tensor:
        """How far the iris moves, [n,2] pixels."""
        return torch.stack([GAZE[0] * controls["gaze_x"], GAZE[1] * controls["gaze_y"]], -1) * self.width

    def _turn(self, places: Tensor, controls: dict[str, Tensor]) -> Tensor:
        """How far the eyeball carries what is seen at places [n,h,w,2] of the photograph."""
        gaze = self.gaze(controls)[:, None, None]
        distance = (places - self.iris - gaze).norm(dim=-1)
        return gaze * (1 - smoothstep((distance / self.radius - 1.1) / 1.3))[..., None]

    def _edges(self, opened: Tensor, closing: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """At x [n,h,w]: heights of the upper lid's margin, of the same as the lid comes down, of the lower lid's, and
        pixels to the nearer corner (below 0 outside)."""
        left, right = opened[:, self.upper[0], 0, None, None], opened[:, self.upper[-1], 0, None, None]
        ends = left[:, 0, 0] - 6, right[:, 0, 0] + 6
        edges = (opened[:, list(self.upper)], closing[:, list(self.upper)], opened[:, list(self.lower)])
        read = [Curves(edge, *ends, SAMPLES)(x) for edge in edges]
        return *read, torch.minimum(x - left, right - x)
