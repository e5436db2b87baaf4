"""A photograph that moves: smooth warps in layers, with eyes and a mouth that open and close, before its background."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ...picture.ramp import smoothstep
from ..drawn.motion import CONTROLS as DRAWN_CONTROLS
from .expressions import EXPRESSIONS, displacements
from .eyes import Eye, lid_displacements
from .fields import Box, ThinPlate, invert
from .geometry import (
    CHEEKS,
    LEFT_CORNER,
    LOWER_ROWS,
    MARGIN,
    PICTURE,
    POINTS,
    RIGHT_CORNER,
    SIZE,
    UPPER_LIP,
    UPPER_ROWS,
    border,
    lower_partners,
    ring_around,
    upper_partners,
)
from .head import AROUND, Head
from .mouth import Inside, Lips
from .portraits import Person

# What a puppet does, a column each: the drawings' controls, then cheeks that swell, a jaw that goes sideways, eyes that
# widen or are squinted, a lower lip tucked under the teeth (f, v), and nearness (log of the head's size).
CONTROLS = (*DRAWN_CONTROLS, "cheeks", "jaw", "widen", "squint", "tuck", "size")
COLUMN = {name: i for i, name in enumerate(CONTROLS)}
SIDEWAYS = [COLUMN[name] for name in ("gaze_x", "yaw", "roll", "shift_x", "jaw")]  # what a mirror turns round
GRID = Box(0.5, 0.5, SIZE // 4 + 1, SIZE // 4 + 1, (SIZE - 1) / (SIZE // 4))  # of a frame's pixel centres
FEATHER = 7.0  # pixels over which the mouth's and the eyes' layers end
TEETH_GAP = 6.0  # pixels between a photograph's lips from which its own teeth can be seen
NEAR_GLASSES = ("brow", "widen", "squint", "cheeks")
MOUTH_HEIGHT, MOUTH_STEP = 46.0, 2.0
ROOM = 1.3  # the window of a frame in which a part is painted, over that part's size


class Puppet:
    """One person, whose frames are rendered several at a time.

    Args:
        person: photograph, landmarks, mask.
        rng: decides on the teeth.
        device: where frames are rendered.
    """

    def __init__(self, person: Person, rng: np.random.Generator, device: torch.device | str = "cpu"):
        landmarks = torch.from_numpy(person.landmarks)
        points, face = landmarks[:POINTS], landmarks[:POINTS, :2]
        picture = torch.from_numpy(np.ascontiguousarray(person.picture)).permute(2, 0, 1).float() / 255
        cut_out = person.mask is not None
        mask = torch.from_numpy(person.mask) if cut_out else torch.ones(picture.shape[1:])
        self.device, self.points = torch.device(device), face.to(device)
        self.picture = torch.cat([picture, mask[None]])[None].to(device)
        self.background = _frame(_filled(picture, mask) if cut_out else picture).to(device)
        ring = ring_around(face)
        self.head = Head(points, torch.cat([ring, border()]), cut_out).to(device)
        self._expressions(landmarks[:, :2], torch.cat([face, ring, border()]), person.glasses)
        skin = PICTURE.read(picture[None], face[list(CHEEKS)][None, None])[0, :, 0].T
        self.inside = Inside(rng, skin, _own_teeth(picture, face)).to(device)

    def _expressions(self, landmarks: Tensor, fixed: Tensor, glasses: bool) -> None:
        """The fields of all expressions, coarse for the whole face, finer for mouth and eyes.

        Each lip is a layer: in the upper one, what lies below the line between the lips moves as what is above it.
        """
        face = landmarks[:POINTS]
        moves = torch.stack(list(displacements(face).values()), 1)  # [468,E,2]
        if glasses:  # their rims would bend
            moves[:, [EXPRESSIONS.index(name) for name in NEAR_GLASSES]] *= 0.15
        lids = lid_displacements(face)
        columns = torch.zeros(len(fixed), 4 * len(EXPRESSIONS) + 2)
        columns[:POINTS, : 2 * len(EXPRESSIONS)] = moves[lower_partners()].flatten(1)
        columns[:POINTS, 2 * len(EXPRESSIONS) : -2] = moves[upper_partners()].flatten(1)
        columns[:POINTS, -2:] = lids
        # Fields of the upper layer, of the lids, and of the lower layer.
        order = [*range(2 * len(EXPRESSIONS)), -2, -1, *range(2 * len(EXPRESSIONS), 4 * len(EXPRESSIONS))]
        plate = ThinPlate(fixed, columns[:, order])
        count = 2 * len(EXPRESSIONS)
        mouth = (face[LEFT_CORNER] + face[RIGHT_CORNER]) / 2 + torch.tensor([0.0, 6.0])
        half = float((face[RIGHT_CORNER] - face[LEFT_CORNER]).norm()) / 2
        self.mouth = Box.around(mouth, 1.5 * half + 20, MOUTH_HEIGHT, MOUTH_STEP)
        layers = plate.on(self.mouth)
        self.upper = layers[:count].unflatten(0, (-1, 2)).to(self.device)
        self.lower = layers[count + 2 :].unflatten(0, (-1, 2)).to(self.device)
        whole = plate.on(AROUND)
        above = smoothstep((mouth[1] - 6 - AROUND.points()[..., 1]) / 8 + 0.5)  # the face's, upper or lower layer
        blended = torch.lerp(whole[count + 2 :], whole[:count], above)
        self.whole = blended.unflatten(0, (-1, 2)).to(self.device)
        self.eyes = [Eye(side, landmarks, plate, count).to(self.device) for side in (0, 1)]
        self.rest = float(face[UPPER_LIP, 1] + moves[UPPER_LIP, 0, 1])  # height of the line between closed lips
        self.moves, self.lids = moves.to(self.device), lids.to(self.device)

    @torch.no_grad()
    def render(self, controls: Tensor | np.ndarray, natural: bool = False) -> Tensor:
        """Frames float [n,3,256,256] in 0..1 of controls [n,21] (CONTROLS).

        natural: with the lips as photographed, instead of closed, where the mouth's controls are 0.
        """
        of = self._named(controls)
        weights, count = _weights(of, natural), len(controls)
        frame = GRID.points(self.device)[None].expand(count, -1, -1, -1)
        unposed = self.head.unpose(frame, of)
        origin = invert(torch.einsum("ne,edhw->ndhw", weights, self.whole), AROUND, unposed)
        both = functional.interpolate(
            torch.cat([unposed, origin], -1).movedim(-1, 1), (SIZE, SIZE), mode="bilinear", align_corners=True
        )
        unposed, origin = both[:, :2].movedim(1, -1), both[:, 2:].movedim(1, -1)
        layer = PICTURE.read(self.picture.expand(count, -1, -1, -1), origin)
        points = self._moved(weights)
        self._overlay(layer, unposed, of, self.mouth, lambda at: self._paint_mouth(at, weights, points, of))
        for eye in self.eyes:
            self._overlay(
                layer, unposed, of, eye.box, lambda at, e=eye: e.paint(self.picture, at, weights, points, self.lids, of)
            )
        return torch.lerp(self.background.expand(count, -1, -1, -1), layer[:, :3], layer[:, 3:])

    @torch.no_grad()
    def landmarks(self, controls: Tensor | np.ndarray) -> Tensor:
        """The points of the face and the middles of both irises in the frames of controls: [n,470,2] pixels."""
        of = self._named(controls)
        points = self._moved(_weights(of)) + of["blink"][:, None, None] * self.lids
        irises = torch.stack([eye.iris + eye.gaze(of) for eye in self.eyes], 1)
        return self.head.pose(torch.cat([points, irises], 1)[:, None], of)[:, 0]

    def _named(self, controls: Tensor | np.ndarray) -> dict[str, Tensor]:
        """Controls [n,21] by their names, [n] each, on the device."""
        controls = torch.as_tensor(controls, dtype=torch.float32, device=self.device)
        return dict(zip(CONTROLS, controls.unbind(1), strict=True))

    def _moved(self, weights: Tensor) -> Tensor:
        """The points of the face [n,468,2], moved by expressions [n,E]."""
        return self.points + torch.einsum("ne,ked->nkd", weights, self.moves)

    def places(self, controls: Tensor | np.ndarray) -> Tensor:
        """Where the middles of the mouth, the left and the right eye are in the frames of controls: [n,3,2] pixels."""
        of = self._named(controls)
        middles = torch.tensor([part.middle for part in (self.mouth, *(eye.box for eye in self.eyes))])
        return self.head.pose(middles.to(self.device).expand(len(controls), 1, -1, -1), of)[:, 0]

    def _overlay(self, layer: Tensor, unposed: Tensor, of: dict[str, Tensor], box: Box, paint) -> None:
        """Paint a part of the face over the layer [n,4,256,256], in a window around where the part went."""
        middle = torch.tensor(box.middle, device=self.device)
        centre = self.head.pose(middle.expand(len(layer), 1, 1, 2), of)[:, 0, 0]
        grow = ROOM * float(of["size"].max().exp())
        width, height = (min(SIZE, round(grow * box.step * side)) for side in (box.columns, box.rows))
        limit = torch.tensor([SIZE - width, SIZE - height], device=self.device)
        corner = (centre - torch.tensor([width / 2, height / 2], device=self.device)).round().long()
        corner = torch.minimum(corner.clamp(min=0), limit)
        rows = (corner[:, 1, None] + torch.arange(height, device=self.device))[:, :, None]
        columns = (corner[:, 0, None] + torch.arange(width, device=self.device))[:, None, :]
        frames = torch.arange(len(layer), device=self.device)[:, None, None]
        places = unposed[frames, rows, columns]
        share = box.inside(places, FEATHER)[..., None]
        pixels = layer.movedim(1, -1)
        pixels[frames, rows, columns] = torch.lerp(pixels[frames, rows, columns], paint(places).movedim(1, -1), share)

    def _paint_mouth(self, places: Tensor, weights: Tensor, points: Tensor, of: dict[str, Tensor]) -> Tensor:
        """Lips and what is between them: RGBA [n,4,h,w] at places [n,h,w,2] of the unposed face."""
        grid = self.mouth.points(self.device)[None].expand(len(places), -1, -1, -1)
        lips = Lips(points)
        x, y = places.unbind(-1)
        picture = self.picture.expand(len(places), -1, -1, -1)
        skin = []
        for fields in (self.upper, self.lower):
            origin = invert(torch.einsum("ne,edhw->ndhw", weights, fields), self.mouth, grid)
            skin.append(PICTURE.read(picture, self.mouth.read(origin.movedim(-1, 1), places).movedim(1, -1)))
        high, low, beyond = lips.upper(x), lips.lower(x), lips.beyond(x)
        above = torch.sigmoid(((high + low) / 2 - y) / (0.5 + 0.35 * beyond))
        painted = torch.lerp(skin[1], skin[0], above[:, None])
        depth = torch.where(beyond > 0, -1.0, torch.minimum(y - high, low - y))
        # Lips as photographed have the photograph's own teeth between them.
        opened = (depth + 0.2).clamp(0, 1)[:, None] * weights[:, 0, None, None, None]
        inside = self.inside.paint(places, lips, of["tongue"], self.rest)
        return torch.cat([torch.lerp(painted[:, :3], inside, opened), painted[:, 3:]], 1)


def _weights(of: dict[str, Tensor], natural: bool = False) -> Tensor:
    """Of EXPRESSIONS, [n,E]."""
    close = torch.full_like(of["open"], 0.0 if natural else 1.0)
    return torch.stack([close, *(of[name] for name in EXPRESSIONS[1:])], 1)


def _frame(picture: Tensor) -> Tensor:
    """[C,320,320] -> the frame in its middle, [C,256,256]."""
    return picture[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def _own_teeth(picture: Tensor, face: Tensor) -> Tensor | None:
    """RGB [3] of the teeth that a photograph [3,320,320] shows between its lips, or None."""
    upper, lower = face[list(UPPER_ROWS[0])][3:8], face[list(LOWER_ROWS[0])][3:8]
    if float((lower - upper)[:, 1].max()) < TEETH_GAP:
        return None
    shares = torch.linspace(0.25, 0.6, 5)[:, None, None]
    colours = PICTURE.read(picture[None], torch.lerp(upper, lower, shares)[None])[0].flatten(1)
    return colours[:, colours.sum(0).argsort()[-8:]].mean(1)


def _filled(picture: Tensor, mask: Tensor) -> Tensor:
    """The background [3,H,W] of a picture, with what the person hides made up of what is around (push and pull)."""
    known = (functional.max_pool2d(mask[None, None], 5, 1, 2)[0] < 0.02).float()
    values, weights = [picture * known], [known]
    while min(values[-1].shape[1:]) > 2:
        values.append(functional.avg_pool2d(values[-1][None], 2, ceil_mode=True)[0])
        weights.append(functional.avg_pool2d(weights[-1][None], 2, ceil_mode=True)[0])
    filled = values[-1] / weights[-1].clamp(min=1e-4)
    for value, weight in zip(reversed(values[:-1]), reversed(weights[:-1]), strict=True):
        coarse = functional.interpolate(filled[None], value.shape[1:], mode="bilinear", align_corners=False)[0]
        filled = torch.lerp(coarse, value / weight.clamp(min=1e-4), weight.clamp(0, 1))
    return filled
