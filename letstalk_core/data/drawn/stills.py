"""Still pictures of drawn portraits, for the autoencoder: rendered once into a file, read at random."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...pixels import pixels_to_planes
from .avatars import Avatar
from .drawing import draw_frames
from .motion import COLUMN, control_track

HELD_OUT = 1_000_000  # people from here on are never trained on
POSES = 12  # training pictures of each person


def random_controls(rng: np.random.Generator, count: int) -> np.ndarray:
    """Unconnected poses [count, 15] that cover what speech does with a face, rare shapes and blinks included."""
    mouth = np.stack(
        [
            rng.beta(0.7, 1.3, count) * (rng.random(count) > 0.2),
            rng.uniform(-1, 1, count),
            rng.beta(0.5, 1.2, count),
            rng.beta(0.6, 1.0, count),
            rng.beta(0.5, 1.5, count),
        ],
        axis=1,
    )
    controls = np.stack([control_track(rng, mouth[i : i + 1], head=3.0)[0] for i in range(count)])
    controls[:, COLUMN["blink"]] = np.where(rng.random(count) < 0.3, rng.beta(0.8, 0.6, count), 0)
    controls[:, COLUMN["gaze_x"] : COLUMN["gaze_y"] + 1] = np.clip(rng.normal(0, 0.4, (count, 2)), -1, 1)
    return controls.astype(np.float32)


def render_pictures(folder: Path, people: int, poses: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [people * poses, size, size, 3] and their loss regions uint8 [people, size, size].

    A region is 1 in the mouth, 2 in the eyes, 0 elsewhere. Rendered on the first call, mapped from the file later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures_path, regions_path = folder / "pictures.npy", folder / "pictures-regions.npy"
    if not (pictures_path.exists() and regions_path.exists()):
        aside = folder / "pictures.part.npy"
        shape = (people * poses, size, size, 3)
        pictures = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape)
        regions = np.zeros((people, size, size), np.uint8)
        for i in range(people):
            avatar = Avatar((i, 0), size)
            rng = np.random.default_rng((i, 1))
            pictures[i * poses : (i + 1) * poses] = draw_frames(avatar, random_controls(rng, poses))
            regions[i] = avatar.regions()
        pictures.flush()
        np.save(regions_path, regions)
        os.replace(aside, pictures_path)
    pictures, regions = np.load(pictures_path, mmap_mode="r"), np.load(regions_path)
    expected = (people * poses, size, size, 3)
    if pictures.shape != expected:
        raise InputError(f"{pictures_path} holds {pictures.shape}, not {expected}; delete it or choose another folder.")
    return pictures, regions


class DrawnPictures:
    """Drawn people as a source of pictures (data/images.py): each index one person, of whom any pose is read, with
    regions; drawn into `folder` at first."""

    def __init__(self, folder: Path, people: int, size: int, portraits: bool = False):
        self.pictures, self.regions = render_pictures(folder, people, POSES, size)
        self.portraits = portraits

    def __len__(self) -> int:
        return len(self.regions)

    def name(self, index: int) -> str:
        return f"drawn person {index}"

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = index * POSES + rng.integers(POSES, size=2 if self.portraits else 1)
        planes = [pixels_to_planes(np.array(self.pictures[which])) for which in chosen]
        example = {"image": planes[0], "regions": torch.from_numpy(self.regions[index])}
        if self.portraits:
            example["portrait"] = planes[1]
        if rng.random() < 0.5:
            example = {name: value.flip(-1) for name, value in example.items()}
        return {name: value.contiguous() for name, value in example.items()}
