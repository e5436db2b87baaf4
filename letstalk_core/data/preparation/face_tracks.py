"""Faces followed through the frames of a clip: one face from frame to frame, and how many there are beside it."""

from __future__ import annotations

import numpy as np

from ...picture.face import Face, find_faces, follow
from ...pixels import pixels_to_pictures

LOOK_EVERY = 12  # frames between two searches of the whole picture, which tell how many faces there are
READINGS = 2  # of a face that is followed

Box = tuple[float, float, float, float]  # top, bottom, left, right in sides of the picture


class FaceTracker:
    """Follows the largest face of successive pictures.

    box: only faces whose middle lies in it are looked at, as data sets say where theirs are.
    """

    def __init__(self, box: Box | None = None):
        self.box, self._last, self._number = box, None, 0

    def restart(self) -> None:
        """The next picture is of another shot."""
        self._last, self._number = None, 0

    def follow(self, pixels: np.ndarray) -> tuple[Face | None, int | None]:
        """The face in the next picture uint8 [H,W,3], None without one; and how many faces there are, where that was
        looked for."""
        picture, found, faces = pixels_to_pictures(pixels), None, None
        if self._last is not None:
            found = follow(picture, self._last, READINGS)
        if found is None or self._number % LOOK_EVERY == 0:
            faces = [face for face in find_faces(picture) if self._inside(face, pixels.shape)]
            found = found or next(iter(faces), None)
        self._last, self._number = found, self._number + 1
        return found, None if faces is None else len(faces)

    def _inside(self, face: Face, shape: tuple[int, ...]) -> bool:
        if self.box is None:
            return True
        top, bottom, left, right = self.box
        x, y = face.anchors.mean(0) / (shape[1], shape[0])
        return left <= x <= right and top <= y <= bottom


def steady_square(faces: list[Face], places: np.ndarray) -> np.ndarray:
    """One similarity [2,3] for all frames: it takes the median eyes and mouth to `places` [3,2]."""
    middle = Face(np.median([face.points for face in faces], axis=0), 1.0)
    return middle.to_aligned(places)
