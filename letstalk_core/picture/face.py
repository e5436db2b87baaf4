"""Faces in a picture: where they are, how large and how tilted, and where eyes, nose, mouth and chin lie in each.

Two small networks of our own, trained on the people of assets/people, puppets and drawings
(training/bundled/train_faces.py). One looks at the whole picture at several scales for faces; the other reads twenty
points off each, several times, each time from where the last reading says the face is.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..pixels import pictures_to_images
from ..weights import read_network
from .similarity import apply, cut, inverse, rotation, similarity

FINDER_WEIGHTS, POINTS_WEIGHTS = (Path(__file__).parent / f"face_{name}.safetensors" for name in ("finder", "points"))
# The points of a Face, each eye from the picture's left to its right.
POINTS = (
    "left eye, left corner", "left eye, right corner", "left eye, upper lid", "left eye, lower lid", "left iris",
    "right eye, left corner", "right eye, right corner", "right eye, upper lid", "right eye, lower lid", "right iris",
    "nose", "mouth, left corner", "mouth, right corner", "upper lip, top", "upper lip, edge", "lower lip, edge",
    "lower lip, bottom", "chin", "left brow", "right brow",
)  # fmt: skip
MIRRORED = [6, 5, 7, 8, 9, 1, 0, 2, 3, 4, 10, 12, 11, 13, 14, 15, 16, 17, 19, 18]  # the point that each becomes
LIP_EDGES = [POINTS.index("upper lip, edge"), POINTS.index("lower lip, edge")]
LEFT_EYE, RIGHT_EYE, CORNERS = [0, 1, 2, 3], [5, 6, 7, 8], [11, 12]
# Where aligned squares, 256 pixels wide, have the eyes and the mouth.
ALIGNED = np.array([(96.0, 112.0), (160.0, 112.0), (128.0, 176.0)])

STRIDE = 4  # pixels of a cell of the finder
UNIT = 7.0  # pixels between the eyes of the faces that it looks for at a scale, give or take half an octave
FINER = math.sqrt(2)  # from one scale to the next
WIDTH = 32  # of its layers
LEAST_EYES = 20.0  # pixels between the eyes of the smallest faces: some 45 pixels from ear to ear
FEWEST = 8  # of the smallest faces' distances of eyes that a small picture is wide
FOUND, BELIEVED = 0.3, 0.9  # least scores of the finder and of the points
LOST = 0.5  # and of the points of a face that is followed
APART = 1.2  # distances of eyes that two faces lie apart, at least
CROP, CROP_EYES = 80, 26.0  # of the points' network: its side, and the distance of eyes in it, in pixels
READINGS = 4  # of a face, each from where the last one says that it is: tilted ones come upright
MOST_FACES = 40
TURN = 1.4  # tangent of a head's turn for each distance from eyes to mouth that the nose lies aside, fitted to people


@dataclass(frozen=True)
class Face:
    """points float [20,2] (POINTS) in pixels of the picture, pixel centres at .5; score 0..1; mouth_hidden, 0..1: how
    likely a hand, a mask or a microphone is in front of the mouth."""

    points: np.ndarray
    score: float
    mouth_hidden: float = 0.0

    @property
    def anchors(self) -> np.ndarray:
        """The middles of both eyes and of the mouth, [3,2]."""
        return np.stack([self.points[part].mean(0) for part in (LEFT_EYE, RIGHT_EYE, CORNERS)])

    @property
    def eyes(self) -> float:
        """Pixels between the eyes."""
        left, right, _ = self.anchors
        return float(np.hypot(*(right - left)))

    @property
    def yaw(self) -> float:
        """How far the head is turned to the picture's right, in degrees, from how far the nose lies off the middle."""
        left, right, mouth = self.anchors
        eyes = (left + right) / 2
        aside = (self.points[POINTS.index("nose")] - (eyes + mouth) / 2) @ (right - left) / np.hypot(*(right - left))
        return math.degrees(math.atan(TURN * aside / max(float(np.hypot(*(mouth - eyes))), 1e-6)))

    @property
    def tilt(self) -> float:
        """Clockwise, in radians."""
        left, right, _ = self.anchors
        return math.atan2(*(right - left)[::-1])

    @property
    def opening(self) -> float:
        """Between the edges of the lips, in distances of the eyes."""
        upper, lower = self.points[LIP_EDGES]
        return float(np.hypot(*(lower - upper)) / max(self.eyes, 1e-6))

    def to_aligned(self, places: np.ndarray = ALIGNED) -> np.ndarray:
        """The similarity [2,3] from the picture to the square that has eyes and mouth at these places [3,2]."""
        return similarity(self.anchors, places)


# Networks -------------------------------------------------------------------------------------------------------------


def _layer(low: int, high: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(low, high, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(high), nn.ReLU()
    )


class FinderNet(nn.Module):
    """Pictures [n,3,H,W] in -1..1 -> [n,6,H/4,W/4]: the logit of a face here, about UNIT pixels between the eyes; its
    centre's offset x, y in UNITs; logarithm of its size in UNITs; cosine and sine of its tilt."""

    def __init__(self):
        super().__init__()
        dilated = (_layer(WIDTH, WIDTH, dilation=dilation) for dilation in (1, 2, 3, 2, 1))
        self.layers = nn.Sequential(_layer(3, 16, 2), _layer(16, WIDTH, 2), *dilated, nn.Conv2d(WIDTH, 6, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class PointsNet(nn.Module):
    """Crops [n,3,80,80] in -1..1, about upright -> points [n,20,2] in sides of the crop, logits [n] of a face, and
    logits [n] of a mouth that something hides."""

    def __init__(self):
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers = [_layer(low, high, 2) for low, high in zip(widths, widths[1:], strict=False)]
        self.layers = nn.Sequential(layers[0], layers[1], _layer(64, 64), layers[2], _layer(96, 96), layers[3])
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(128 * 25, 256), nn.ReLU(), nn.Linear(256, 2 * len(POINTS) + 1)
        )
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(128 * 25, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self.layers(crops)
        found = self.head(seen)
        return found[:, :-1].unflatten(1, (-1, 2)) + 0.5, found[:, -1], self.hidden(seen)[:, 0]


@functools.cache
def networks() -> tuple[FinderNet, PointsNet]:
    """Both with the weights of this repository, loaded once, in evaluation mode."""
    return read_network(FINDER_WEIGHTS, FinderNet()), read_network(POINTS_WEIGHTS, PointsNet())


# Finding --------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def find_faces(image: np.ndarray, least_eyes: float | None = None) -> list[Face]:
    """The faces of a picture float [H,W,3] in 0..1, largest first.

    least_eyes: pixels between the eyes of the smallest ones that are looked for; None for LEAST_EYES, or fewer where
    the whole picture is small.
    """
    finder, _ = networks()
    if least_eyes is None:
        least_eyes = min(LEAST_EYES, min(image.shape[:2]) / FEWEST)
    likely = guesses(finder, np.asarray(image, np.float32), least_eyes)
    faces = [face for face in (read_points(image, *guess) for guess in likely) if face.score >= BELIEVED]
    faces.sort(key=lambda face: face.score, reverse=True)
    kept: list[Face] = []
    for face in faces:
        if all(_apart(face, other) for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: face.eyes, reverse=True)


def _apart(one: Face, other: Face) -> bool:
    distance = np.hypot(*(one.anchors.mean(0) - other.anchors.mean(0)))
    return distance > APART * max(one.eyes, other.eyes)


@torch.inference_mode()
def guesses(
    finder: FinderNet, image: np.ndarray, least_eyes: float, least_score: float = FOUND
) -> list[tuple[np.ndarray, float, float]]:
    """(centre [2], pixels between the eyes, tilt in radians) of the likeliest faces."""
    import cv2

    found, scale = [], UNIT / (least_eyes * math.sqrt(2))
    height, width = image.shape[:2]
    while min(height, width) * scale > 2 * UNIT:
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        level = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        answer = finder(pictures_to_images(level)[None])[0]
        scores = answer[0].sigmoid()
        best = functional.max_pool2d(scores[None], 3, 1, 1)[0]
        for row, column in torch.nonzero((scores == best) & (scores > least_score)).tolist():
            _, x, y, log_size, cosine, sine = answer[:, row, column].tolist()
            centre = (np.array([column + 0.5, row + 0.5]) * STRIDE + UNIT * np.array([x, y])) / scale
            found.append(
                (float(scores[row, column]), centre, UNIT * math.exp(log_size) / scale, math.atan2(sine, cosine))
            )
        scale /= FINER
    found.sort(key=lambda guess: guess[0], reverse=True)
    kept: list[tuple[np.ndarray, float, float]] = []
    for _, centre, eyes, tilt in found:
        if all(np.hypot(*(centre - other)) > 0.6 * max(eyes, size) for other, size, _ in kept):
            kept.append((centre, eyes, tilt))
    return kept[:MOST_FACES]


@torch.inference_mode()
def read_points(image: np.ndarray, centre: np.ndarray, eyes: float, tilt: float, readings: int = READINGS) -> Face:
    """The face around a centre (half way from eyes to mouth), `eyes` pixels between its eyes, tilted clockwise.

    readings: fewer are enough where the place is known well, as from the frame before.
    """
    _, net = networks()
    matrix = crop_matrix(centre, eyes, tilt)
    for _ in range(readings):
        crop = cut(image, matrix, CROP)
        points, there, hidden = _read(net, pictures_to_images(crop))
        face = Face(apply(inverse(matrix), points * CROP), there, hidden)
        matrix = similarity(face.anchors, crop_anchors())
    return face


def _read(net: PointsNet, crop: Tensor) -> tuple[np.ndarray, float, float]:
    """What the network makes of a crop [3,80,80] and of its mirror image, as it is not quite symmetrical.

    Points [20,2] in sides of the crop, their mean; the lesser score; how likely the mouth is hidden, the mean.
    """
    points, there, hidden = net(torch.stack([crop, crop.flip(-1)]))
    points = (points[0] + mirrored(points[1])) / 2
    return points.numpy(), float(there.min().sigmoid()), float(hidden.mean().sigmoid())


def mirrored(points: Tensor) -> Tensor:
    """Points [...,20,2] in sides of a crop -> those of its mirror image."""
    return points[..., MIRRORED, :] * points.new_tensor((-1, 1)) + points.new_tensor((1, 0))


def follow(image: np.ndarray, before: Face, readings: int = READINGS) -> Face | None:
    """The face of the picture before in the next one of a video; None where it is lost."""
    left, right, mouth = before.anchors
    face = read_points(image, ((left + right) / 2 + mouth) / 2, before.eyes, before.tilt, readings)
    return face if face.score > LOST else None


def follow_or_find(image: np.ndarray, before: Face | None) -> Face | None:
    """The same, or where it is lost or there was none the largest face; None without one."""
    found = before and follow(image, before)
    return found or next(iter(find_faces(image)), None)


def crop_matrix(centre: np.ndarray, eyes: float, tilt: float) -> np.ndarray:
    """The similarity [2,3] that brings a face upright into the middle of a crop."""
    return rotation(CROP_EYES / max(eyes, 1e-3), -tilt, centre, np.full(2, CROP / 2))


def crop_anchors() -> np.ndarray:
    """Where a crop has the eyes and the mouth, [3,2]."""
    factor = CROP_EYES / (ALIGNED[1, 0] - ALIGNED[0, 0])
    middle = (ALIGNED[:2].mean(0) + ALIGNED[2]) / 2
    return (ALIGNED - middle) * factor + CROP / 2
