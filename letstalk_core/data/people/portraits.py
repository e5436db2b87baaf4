"""The people of assets/people: photographs of nobody, with landmarks, cut out, and split for training and testing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .geometry import EXTENT

PEOPLE = Path(__file__).resolve().parents[3] / "assets" / "people"
LANDMARK_UNITS = 64  # landmarks are kept as whole 64ths of a pixel


@dataclass(frozen=True)
class Person:
    """One photograph: RGB uint8 [320,320,3], landmarks float32 [478,3] in aligned pixels (x, y, depth: less is nearer),
    where the person is, float32 [320,320] in 0..1, or None where the cutting out failed, and whether there are glasses.
    """

    number: int
    picture: np.ndarray
    landmarks: np.ndarray
    mask: np.ndarray | None
    glasses: bool = False


@functools.lru_cache(maxsize=1)
def _tables() -> dict[str, np.ndarray]:
    with np.load(PEOPLE / "people.npz") as file:
        return {name: file[name] for name in file.files}


def people(held_out: bool = False) -> list[int]:
    """The numbers of those to train on, or of those that no training may see."""
    return [int(number) for number in np.flatnonzero(_tables()["held_out"] == held_out)]


@functools.lru_cache(maxsize=256)
def load_person(number: int) -> Person:
    """Person 0..199."""
    tables = _tables()
    picture = cv2.cvtColor(cv2.imread(str(PEOPLE / f"{number:03d}.jpg")), cv2.COLOR_BGR2RGB)
    landmarks = tables["landmarks"][number].astype(np.float32) / LANDMARK_UNITS
    mask = None
    if tables["cut_out"][number]:
        mask = np.unpackbits(tables["masks"][number], axis=-1)[:, :EXTENT].astype(np.float32)
        mask = cv2.GaussianBlur(mask, (0, 0), 1.2)
    return Person(number, picture, landmarks, mask, bool(tables["glasses"][number]))
