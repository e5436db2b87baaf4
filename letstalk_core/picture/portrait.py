"""A square portrait from a picture: the face (face.py) is cut out so that it can be pasted back."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch.nn.functional as functional
from torch import Tensor

from ..defaults import FACE_MARGIN, MOST_SIZE
from ..errors import InputError
from ..pixels import pictures_to_images
from .face import Face, find_faces
from .similarity import corners, cut, size_of, square_at

# Where the bundled model's training pictures have the eyes and the mouth, in sides of the square: opening a mouth
# changes the latents of two people alike only where both mouths lie at the same place.
FRAMING = np.array([(0.379, 0.467), (0.621, 0.467), (0.5, 0.706)])
MOST_DETAIL = MOST_SIZE  # pixels along a side of the finest square that is kept
MIN_SIDE = 16  # pixels; smaller pictures show no face
MOST_YAW = 25.0  # degrees that a head may be turned without a warning
SAME = 0.15  # of a square's side: nearer middles are of one face
NAMED = ("largest", "left", "right")  # faces, beside their numbers
HIDDEN = 0.9  # from here on a mouth counts as hidden


@dataclass(frozen=True, eq=False)
class Portrait:
    """A square cut out of a picture, and what it takes to paste frames back.

    image [3, size, size] float32 in -1..1; square float64 [2,3] is the similarity from the picture's pixels to the
    image's (similarity.py), which may reach outside the picture (the missing part is mirrored); original_size
    (width, height) of the picture; warnings are sentences for the user. detail is the square at the picture's own
    resolution, at most MOST_DETAIL, where that is finer than `image`. cutout [4,side,side] in -1..1, of the finer one's
    size, is the square with the person cut out, whose fourth channel is the matte; None where the background stays.
    """

    image: Tensor
    square: np.ndarray
    original_size: tuple[int, int]
    warnings: tuple[str, ...] = ()
    detail: Tensor | None = None
    cutout: Tensor | None = None

    @property
    def middle(self) -> np.ndarray:
        """Where the square's middle lies in the picture, [2] in pixels."""
        return corners(self.square, self.image.shape[-1]).mean(0)

    def cut_out_of(self, person: np.ndarray) -> Portrait:
        """The same portrait with the person of its picture cut out: [H,W,4] in 0..1, from cutout.person_of."""
        size, side = self.image.shape[-1], self._finest.shape[-1]
        return dataclasses.replace(self, cutout=_cut_out(person, self.square * (side / size), side))

    @property
    def _finest(self) -> Tensor:
        return self.image if self.detail is None else self.detail

    def at(self, side: int) -> Tensor:
        """The square [3,side,side] in -1..1, as sharp as the picture allows; with the person cut out [4,side,side]."""
        finest = self._finest if self.cutout is None else self.cutout
        if self.cutout is None and side == self.image.shape[-1]:
            return self.image
        resized = functional.interpolate(finest[None], (side, side), mode="bicubic", antialias=side < finest.shape[-1])
        return resized[0].clamp(-1, 1)


def crop_portrait(
    image: np.ndarray,
    size: int,
    face: str | int = "largest",
    margin: float = FACE_MARGIN,
    on_missing: str = "error",
) -> Portrait:
    """Cut a square around a face, upright and with eyes and mouth at their places (FRAMING), and resample it to `size`.

    image: float [H, W, 3] in 0..1. face: "largest", "left" or "right" (the outermost), a number (0 is the largest), or
    "none" for the picture's centred square as it is. margin: side of the square in sides of an average face box; more
    or less than FACE_MARGIN makes it wider or narrower about its middle. on_missing: without a face, "error" raises;
    "crop" takes the middle of the picture and warns.
    Raises InputError too for pictures below MIN_SIDE pixels, a face that is not there, and arguments out of range.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"A picture has the shape [H, W, 3], not {list(image.shape)}.")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"The picture is {width}x{height}, smaller than {MIN_SIDE} pixels; choose a larger one.")
    if size < 1:
        raise InputError(f"The portrait size is {size}; it must be at least 1.")
    if not (math.isfinite(margin) and margin > 0):
        raise InputError(f"The margin is {margin}; it must be greater than 0 (usually {FACE_MARGIN}).")
    if on_missing not in ("crop", "error"):
        raise InputError(f"on_missing is {on_missing!r}; it must be 'crop' or 'error'.")
    if not np.isfinite(image).all():
        raise InputError("The picture has NaN or infinite pixels; save it again as PNG or JPEG.")
    square, notes = square_of(image, size, face, margin, on_missing)
    side = round(size / size_of(square))
    if side < size / 4:
        notes.append(
            f"The face fills only {side}x{side} pixels of the picture, enlarged to {size}x{size}: it is blurred."
        )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    finest = min(side, MOST_DETAIL)
    detail = _cut_out(image, square * (finest / size), finest) if finest > size else None
    return Portrait(_cut_out(image, square, size), square, (width, height), tuple(notes), detail)


def _cut_out(image: np.ndarray, square: np.ndarray, size: int) -> Tensor:
    crop = cut(np.asarray(image, np.float32), square, size, cv2.BORDER_REFLECT_101)
    return pictures_to_images(crop.clip(0, 1)).contiguous()


def square_of(
    image: np.ndarray, size: int, face: str | int, margin: float = FACE_MARGIN, on_missing: str = "error"
) -> tuple[np.ndarray, list[str]]:
    """The similarity [2,3] from the picture to the square that crop_portrait cuts out, and warnings for the user."""
    if face == "none":
        return centred_square(image, size), []
    try:
        index = None if face in NAMED else int(face)
    except (TypeError, ValueError):
        raise InputError(f"face is {face!r}; it must be 'largest', 'left', 'right', 'none' or a number.") from None
    faces = find_faces(image)
    if not faces:
        if on_missing == "error":
            raise InputError(
                "No face was found in the picture; choose another one in which a face is clear and upright, or face "
                "'none' (--face none) to use its middle as it is."
            )
        return centred_square(image, size), ["No face was found in the picture; the middle of the picture is used."]
    across = [found.anchors[:, 0].mean() for found in faces]
    outermost = {"largest": 0, "left": int(np.argmin(across)), "right": int(np.argmax(across))}
    index = outermost[face] if index is None else index
    if not 0 <= index < len(faces):
        raise InputError(f"Face {index} was asked for, but the picture has {len(faces)}; choose 0 to {len(faces) - 1}.")
    places = size * (0.5 + (FRAMING - 0.5) * FACE_MARGIN / margin)
    return faces[index].to_aligned(places), _doubts(faces[index])


def _doubts(face: Face) -> list[str]:
    """Why a face may not speak well, as sentences for the user."""
    doubts = []
    if abs(face.yaw) > MOST_YAW:
        doubts.append(
            f"The head is turned by about {abs(face.yaw):.0f} degrees, and models know heads turned by up to "
            f"{MOST_YAW:.0f}: the face may break; choose a picture that looks more to the front."
        )
    if face.mouth_hidden > HIDDEN:
        doubts.append(
            "Something seems to hide the mouth, and what is not seen cannot speak well; choose a picture with the "
            "whole mouth."
        )
    return doubts


def check_apart(portraits: Sequence[Portrait]) -> None:
    """Raises InputError where two portraits of one picture are of the same face."""
    for portrait, other in itertools.combinations(portraits, 2):
        side = portrait.image.shape[-1] / size_of(portrait.square)
        if np.hypot(*(portrait.middle - other.middle)) < SAME * side:
            raise InputError(
                "Two speakers have the same face of the picture; choose another face for one of them (left, right, or "
                "a number: 0 is the largest), or a picture with more faces."
            )


def centred_square(image: np.ndarray, size: int) -> np.ndarray:
    """The similarity [2,3] from a picture [H,W,3] to the largest square in its middle."""
    height, width = image.shape[:2]
    side = min(height, width)
    return square_at((width - side) // 2, (height - side) // 2, side, size)
