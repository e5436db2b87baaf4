"""The matte of a picture: how much of each pixel is a person, and the colours of the person alone.

MediaPipe's selfie segmentation (people.tflite, Apache-2.0, unchanged; OpenCV runs it) says where people are, at 256
pixels along each side; a guided filter (He et al., 2010) then draws its edges along those of the picture. In
comparison on hair, closed-form matting caught finer strands before a plain wall and took windows and branches behind a
head for hair; GrabCut lost whole hats (docs/pictures.md).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from .face import Face, find_faces

SEGMENTER = Path(__file__).parent / "people.tflite"
SIDE = 256  # pixels along each side of what the segmenter sees, whatever the picture's proportions
WINDOW = 5.0  # lengths of a face from brow to chin: it is looked at so close, for its hair, where the picture is larger
FEATHER = 0.12  # of a window's side: over so much it fades into what the whole picture gave
RADIUS = 0.014  # of the picture's longer side: the guided filter's window, about as wide as the segmenter's doubt
LEAST_VARIANCE = 1e-5  # of colours in 0..1: fainter edges are none to it
CERTAIN = 0.8  # of a face, at least, has to be found to be a person's
CLEAR, SOLID = 0.05, 0.95  # what lies beyond counts as 0 and 1: a haze of 2 % would lie over the whole background
SURE = 4  # power of a matte by which pixels are weighed there: half transparent ones say little of either side
LEAST_WEIGHT = 1e-2  # of what a mean of colours is over: less is noise
WIDE, NEAR = 0.12, 0.008  # of the longer side: how far colours of the person are fetched from, first and then


def find_matte(picture: np.ndarray) -> np.ndarray:
    """How much of each pixel of a picture [H,W,3] in 0..1 is a person: float32 [H,W] in 0..1.

    InputError where nobody is seen in it, or a face is that is not taken for a person's.
    """
    matte, faces = _segmented(picture), find_faces(picture)
    for face in faces:
        _look_closer(matte, picture, face)
    matte = _guided(picture, matte, _pixels(RADIUS, picture))
    matte = ((matte - CLEAR) / (SOLID - CLEAR)).clip(0, 1)
    if max((_inside(matte, face) for face in faces), default=matte.max()) < CERTAIN:
        raise InputError(
            "The person in the picture cannot be told from the background, as in most drawings; give a picture with "
            "transparency, which is then used as it is, or keep the background."
        )
    return matte


def cut_out(picture: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """A picture [H,W,3] in 0..1 with its matte [H,W] as float32 [H,W,4]: the colours are those of the person alone, the
    background behind half transparent hair taken out, and go on beyond its edge; nothing of the background is left.

    They are estimated by blurred fusion (Forte, 2021): what person and background look like around each pixel.
    """
    picture, weight = np.asarray(picture, np.float32), np.asarray(matte, np.float32)[..., None]
    seen, free = weight**SURE, (1 - weight) ** SURE
    colours, behind, person = picture, picture, _mean(picture, seen)
    for share in (WIDE, NEAR):
        radius = _pixels(share, picture)
        person, behind = _spread(colours, seen, radius, person), _spread(behind, free, radius, behind)
        colours = (person + weight * (picture - weight * person - (1 - weight) * behind)).clip(0, 1)
    return np.concatenate([colours, weight], -1)


def with_own_matte(picture: np.ndarray) -> np.ndarray:
    """A picture with transparency [H,W,4] in 0..1 as cut_out gives it: its colours stay, and go on beyond its edge."""
    picture = np.asarray(picture, np.float32)
    colours, weight = picture[..., :3], picture[..., 3:]
    around = _mean(colours, weight)
    for share in (WIDE, NEAR):
        around = _spread(colours, weight, _pixels(share, picture), around)
    return np.concatenate([np.where(weight > 0, colours, around), weight], -1)


def _segmented(picture: np.ndarray) -> np.ndarray:
    """The segmenter's answer for a picture [H,W,3], [H,W] in 0..1."""
    network = cv2.dnn.readNetFromTFLite(np.fromfile(SEGMENTER, np.uint8))  # anew: one is not for several threads
    small = cv2.resize(np.asarray(picture, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    network.setInput(np.ascontiguousarray(small.transpose(2, 0, 1)[None]))
    answer = network.forward().reshape(SIDE, SIDE)
    return cv2.resize(answer, picture.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _look_closer(matte: np.ndarray, picture: np.ndarray, face: Face) -> None:
    """Segment the surroundings of a face anew, in place, where they are but a part of the picture."""
    end = np.array(picture.shape[1::-1])
    low, high = face.points.min(0), face.points.max(0)
    reach = WINDOW / 2 * (high - low).max()
    left, top = np.clip((low + high) / 2 - reach, 0, end).astype(int)
    right, bottom = np.clip((low + high) / 2 + reach, 0, end).astype(int)
    if right - left > 0.8 * end[0] and bottom - top > 0.8 * end[1] or min(right - left, bottom - top) < 2:
        return
    rows = _ramp(bottom - top, top > 0, bottom < end[1])
    columns = _ramp(right - left, left > 0, right < end[0])
    part, weight = matte[top:bottom, left:right], rows[:, None] * columns
    part += weight * (_segmented(picture[top:bottom, left:right]) - part)


def _inside(matte: np.ndarray, face: Face) -> float:
    """The mean of a matte inside a face."""
    mask = np.zeros(matte.shape, np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(face.points.astype(np.int32)), 1)
    return float(matte[mask > 0].mean()) if mask.any() else 0.0


def _ramp(length: int, at_start: bool, at_end: bool) -> np.ndarray:
    """Weights [length]: 1 inside, and towards the ends that are asked for less and less."""
    ramp = np.minimum((np.arange(length, dtype=np.float32) + 0.5) / (FEATHER * length), 1)
    return (ramp if at_start else 1) * (ramp[::-1] if at_end else np.ones_like(ramp))


def _guided(picture: np.ndarray, values: np.ndarray, radius: int) -> np.ndarray:
    """Values [H,W] made linear in the picture's colours around each pixel, so that their edges become the picture's."""
    picture = np.asarray(picture, np.float32)
    mean, mean_value = _blurred(picture, radius), _blurred(values, radius)
    covariance = _blurred(picture * values[..., None], radius) - mean * mean_value[..., None]
    variance = np.empty((*picture.shape, 3), np.float32)
    for row in range(3):
        products = picture * picture[..., row : row + 1]
        variance[..., row, :] = _blurred(products, radius) - mean * mean[..., row : row + 1]
    variance += LEAST_VARIANCE * np.eye(3, dtype=np.float32)
    slope = np.linalg.solve(variance, covariance[..., None])[..., 0]
    offset = mean_value - (slope * mean).sum(-1)
    return (_blurred(slope, radius) * picture).sum(-1) + _blurred(offset, radius)


def _mean(picture: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The mean colour of a picture [H,W,3], by weight [H,W,1], everywhere."""
    mean = (picture * weight).mean((0, 1)) / max(float(weight.mean()), LEAST_WEIGHT)
    return np.broadcast_to(mean, picture.shape)


def _spread(values: np.ndarray, weight: np.ndarray, radius: int, otherwise: np.ndarray) -> np.ndarray:
    """The mean of values [H,W,3] around each pixel, by their weight [H,W,1]; `otherwise` where that is nothing."""
    around = _blurred(weight, radius)[..., None]
    mean = _blurred(values * weight, radius) / np.maximum(around, LEAST_WEIGHT)
    return np.where(around > LEAST_WEIGHT, mean, otherwise)


def _blurred(values: np.ndarray, radius: int) -> np.ndarray:
    return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)


def _pixels(share: float, picture: np.ndarray) -> int:
    return max(1, round(share * max(picture.shape[:2])))
