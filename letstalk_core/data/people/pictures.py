"""Pictures of people, each with the portrait that they were moved from: rendered once, read at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...pixels import pictures_to_pixels
from ..arrays import BlockStore
from ..drawn.motion import MOUTH_COLUMNS
from .cast import random_puppet
from .geometry import SIZE
from .gestures import random_controls, rest_controls
from .puppet import CONTROLS, SIDEWAYS

BLOCK = 25
POSES = 8  # pictures of somebody beside the portrait
NATURAL_SHARE = 0.6  # of portraits whose mouth is the photograph's own
OTHER_PORTRAIT = 0.2  # share of examples whose portrait is another of the poses
MOUTH_HALF, EYE_HALF = (36, 28), (24, 16)  # of the regions, width and height in pixels


class PeoplePictures(BlockStore):
    """`count` people in a folder: pictures uint8 [count,POSES + 1,3,256,256], the portrait first, where their mouths
    and eyes are, float32 [count,POSES + 1,3,2], and their controls, float32 [count,POSES + 1,21].

    held_out: people that no training may see. block: how many are made at a time. A kind of people makes one row.
    """

    kept = (*BlockStore.kept, "held_out")

    def __init__(self, folder: Path, count: int, held_out: bool = False, block: int = BLOCK):
        super().__init__(folder, count, block)
        self.held_out = held_out
        self.pictures = self.array("pictures", (POSES + 1, 3, SIZE, SIZE), np.uint8)
        self.places = self.array("places", (POSES + 1, 3, 2), np.float32)
        self.controls = self.array("controls", (POSES + 1, len(CONTROLS)), np.float32)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{self.kind} {index}"

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A random picture of a person and a portrait of theirs, uint8 [3,256,256] each, with regions [256,256], 1 in
        the mouth and 2 in the eyes, and the controls of both, float32 [2,21]; mirrored in half of cases."""
        pose = int(rng.integers(1, POSES + 1))
        portrait = int(rng.integers(1, POSES + 1)) if rng.random() < OTHER_PORTRAIT else 0
        both = torch.from_numpy(self.pictures[index, [pose, portrait]])
        controls = torch.from_numpy(self.controls[index, [pose, portrait]])
        regions = face_regions(self.places[index, pose])
        if rng.random() < 0.5:
            both, regions = both.flip(-1), regions.flip(-1)
            controls[:, SIDEWAYS] *= -1
        return {"image": both[0], "portrait": both[1], "regions": regions, "controls": controls}


class PuppetPictures(PeoplePictures):
    """Puppets in unconnected poses."""

    kind = "puppet"

    def make_row(self, index: int, device: str = "cpu") -> None:
        puppet, rng = random_puppet(index, self.held_out, device)
        rest, poses = rest_controls(rng)[None], random_controls(rng, POSES)
        natural = rng.random() < NATURAL_SHARE
        if natural:
            rest[:, :MOUTH_COLUMNS] = 0
        frames = torch.cat([puppet.render(rest, natural), puppet.render(poses)])
        self.pictures[index] = pictures_to_pixels(frames).cpu().numpy()
        self.controls[index] = np.concatenate([rest, poses])
        self.places[index] = puppet.places(self.controls[index]).cpu().numpy()


def face_regions(places: np.ndarray) -> Tensor:
    """Regions uint8 [256,256] of the middles [3,2] of a mouth and two eyes."""
    regions = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    for number, (x, y) in reversed(list(enumerate(places.round().astype(int)))):
        half_width, half_height = EYE_HALF if number else MOUTH_HALF
        rows, columns = slice(max(y - half_height, 0), y + half_height), slice(max(x - half_width, 0), x + half_width)
        regions[rows, columns] = 2 if number else 1
    return regions
