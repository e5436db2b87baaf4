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
        batch = self.read_batch(torch.from_numpy(self.pictures), np.array([index]), rng)
        return {name: values[0] for name, values in batch.items()}

    def read_batch(self, pictures: Tensor, people: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Of each of these people [n] what `read` gives, on the device of `pictures`, which are those of this folder,
        wherever they were brought."""
        n = len(people)
        poses = rng.integers(1, POSES + 1, n)
        portraits = np.where(rng.random(n) < OTHER_PORTRAIT, rng.integers(1, POSES + 1, n), 0)
        mirrored = rng.random(n) < 0.5
        controls = self.controls[people[:, None], np.stack([poses, portraits], 1)]
        controls[np.ix_(mirrored, range(2), SIDEWAYS)] *= -1
        people, poses, portraits, mirrored, controls, places = (
            torch.from_numpy(values).to(pictures.device)
            for values in (people, poses, portraits, np.flatnonzero(mirrored), controls, self.places[people, poses])
        )
        batch = {
            "image": pictures[people, poses], "portrait": pictures[people, portraits],
            "regions": face_regions(places),
        }  # fmt: skip
        for values in batch.values():
            values[mirrored] = values[mirrored].flip(-1)
        return batch | {"controls": controls}


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


def face_regions(places: Tensor) -> Tensor:
    """Regions uint8 [...,256,256] of the middles [...,3,2] of a mouth and two eyes."""
    at = torch.arange(SIZE, device=places.device)
    regions = torch.zeros(*places.shape[:-2], SIZE, SIZE, dtype=torch.uint8, device=places.device)
    for number in (2, 1, 0):
        half_width, half_height = EYE_HALF if number else MOUTH_HALF
        x, y = places[..., number, :].round().unsqueeze(-1).unbind(-2)  # [...,1]
        columns, rows = (at >= x - half_width) & (at < x + half_width), (at >= y - half_height) & (at < y + half_height)
        regions.masked_fill_(rows[..., :, None] & columns[..., None, :], 2 if number else 1)
    return regions
