"""Similarities: turn, size and shift [2,3] from one picture's pixels to another's, pixel centres at .5."""

from __future__ import annotations

import math

import cv2
import numpy as np


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, size and shift [2,3] that take points [n,2] nearest to others (least squares)."""
    middle, wanted = source.mean(0), target.mean(0)
    a, b = ((points - points.mean(0)) @ (1, 1j) for points in (source, target))
    factor = (np.conj(a) * b).sum() / max(float((np.abs(a) ** 2).sum()), 1e-9)
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([turn, wanted - turn @ middle])


def rotation(factor: float, tilt: float, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The similarity [2,3] that scales, turns clockwise by `tilt` radians, and takes one place [2] to another."""
    turn = factor * np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    return np.column_stack([turn, target - turn @ source])


def square_at(left: float, top: float, side: float, size: int) -> np.ndarray:
    """The similarity [2,3] from a picture to an upright square of it, `side` pixels wide, that becomes `size` wide."""
    scale = size / side
    return np.array([[scale, 0.0, -scale * left], [0.0, scale, -scale * top]])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A similarity [2,3] of points [n,2]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The similarity [2,3] back."""
    back = np.linalg.inv(matrix[:, :2])
    return np.column_stack([back, -back @ matrix[:, 2]])


def size_of(matrix: np.ndarray) -> float:
    """How many times larger a similarity [2,3] makes everything."""
    return math.hypot(matrix[0, 0], matrix[1, 0])


def corners(matrix: np.ndarray, side: int) -> np.ndarray:
    """Where the corners [4,2] of a square of `side` pixels lie in the picture that a similarity cuts it out of."""
    return apply(inverse(matrix), side * np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]))


def cut(image: np.ndarray, matrix: np.ndarray, side: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """The square [side,side,3] that a similarity [2,3] cuts out of a picture [H,W,3], with antialiasing; outside the
    picture its edge is repeated, or as another of OpenCV's borders says."""
    image, matrix = _part(image, matrix, side)  # OpenCV takes no more than 32,767 pixels along a side
    while size_of(matrix) < 0.5:  # reduced by halves first, so that no pixel is left out
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        matrix = np.column_stack([2 * matrix[:, :2], matrix[:, 2]])
    if size_of(matrix) < 1:  # and the rest of the way from twice the size
        return cv2.resize(_warped(image, 2 * matrix, 2 * side, border), (side, side), interpolation=cv2.INTER_AREA)
    return _warped(image, matrix, side, border)


def _warped(image: np.ndarray, matrix: np.ndarray, side: int, border: int) -> np.ndarray:
    """The square that a similarity which does not reduce takes a picture to."""
    centred = matrix.copy()  # of pixels counted from their centres
    centred[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    method = cv2.INTER_CUBIC if size_of(matrix) > 1 else cv2.INTER_LINEAR  # at 1 whole shifts are exact
    return cv2.warpAffine(image, centred, (side, side), flags=method, borderMode=border)


def _part(image: np.ndarray, matrix: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of a picture that a square is cut out of, with some pixels around, and the similarity from it."""
    places = corners(matrix, side)
    around = math.ceil(4 / size_of(matrix))
    end = np.array(image.shape[1::-1])
    low = np.clip((places.min(0) - around).astype(int), 0, np.maximum(end - around, 0))
    high = np.clip((places.max(0) + around).astype(int), np.minimum(low + around, end), end)
    return image[low[1] : high[1], low[0] : high[0]], np.column_stack(
        [matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ low]
    )
