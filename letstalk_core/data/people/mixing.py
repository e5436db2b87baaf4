"""New people out of two: one's picture with a part of the other's shape and tone."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import torch

from .fields import Box, ThinPlate
from .geometry import CHEEKS, EXTENT, MARGIN, PICTURE, POINTS, border, lower_partners, ring_around
from .portraits import Person

STEP = 8.0  # pixels of the grid on which the warp is computed
RING_FOLLOWS = 0.6  # of the outline of the face


def mixed(person: Person, other: Person, shape: float, tone: float) -> Person:
    """The person, `shape` and `tone` of the way to another, each in 0..1: warped and coloured.

    Lips stay as far apart as they are, so that a closed mouth keeps closed. Irises move with the face.
    """
    old = person.landmarks
    move = (other.landmarks - old) * shape
    partners = lower_partners()
    move[:POINTS] = move[partners]
    new = old + move
    face_old, face_new = (torch.from_numpy(points[:POINTS, :2]) for points in (old, new))
    ring_old, ring_new = ring_around(face_old), ring_around(face_new)
    edge = border()
    back = torch.cat([face_old - face_new, RING_FOLLOWS * (ring_old - ring_new), torch.zeros(len(edge), 2)])
    box = Box(-MARGIN, -MARGIN, EXTENT // 8 + 1, EXTENT // 8 + 1, STEP)
    field = ThinPlate(torch.cat([face_new, ring_new, edge]), back).on(box)[None]
    places = PICTURE.points()[None]
    places = places + box.read(field, places).movedim(1, -1)
    maps = (places[0] + MARGIN - 0.5).numpy().astype(np.float32)

    def warped(values: np.ndarray) -> np.ndarray:
        return cv2.remap(values, maps[..., 0], maps[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    picture = warped(person.picture).astype(np.float32) * (1 + tone * (_skin(other) / _skin(person) - 1))
    return dataclasses.replace(
        person,
        picture=np.clip(picture, 0, 255).astype(np.uint8),
        landmarks=new.astype(np.float32),
        mask=None if person.mask is None else warped(person.mask),
    )


def _skin(person: Person) -> np.ndarray:
    """RGB [3] of the cheeks."""
    spots = [person.picture[y - 4 : y + 5, x - 4 : x + 5] for x, y in _cheeks(person)]
    return np.maximum(np.mean([spot.reshape(-1, 3).mean(0) for spot in spots], 0), 8.0)


def _cheeks(person: Person) -> list[tuple[int, int]]:
    return [tuple(np.round(person.landmarks[point, :2] + MARGIN).astype(int)) for point in CHEEKS]
