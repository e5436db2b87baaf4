"""What the networks that find faces learn from: people, puppets and drawings, turned, scaled, blurred and covered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ...data.drawn.avatars import Avatar
from ...data.drawn.drawing import draw_frames
from ...data.drawn.drawn_points import drawn_points
from ...data.drawn.stills import random_controls as drawn_controls
from ...data.people.cast import random_puppet
from ...data.people.geometry import MARGIN, SIZE
from ...data.people.gestures import random_controls
from ...data.people.portraits import load_person, people
from ...picture.face import CROP, POINTS, STRIDE, UNIT, Face, crop_matrix, mirrored
from ...picture.similarity import apply, rotation
from ...pixels import normalise, pictures_to_pixels

# Landmarks of POINTS; the irises follow the 468 points of the face.
LANDMARKS = (33, 133, 159, 145, 468, 362, 263, 386, 374, 473, 4, 61, 291, 0, 13, 14, 17, 152, 105, 334)
POSES = 4  # frames of a puppet
WINDOW = 96  # pixels, the side of what the finder learns from
NO_FACE = 0.3  # share of examples without a face in its middle
Mistake = tuple[int, np.ndarray, float, float]  # number of the example, centre, distance of the eyes, tilt


@dataclass(frozen=True)
class Example:
    """A picture uint8 [H,W,3] and its points [20,2], NaN where they are not known."""

    picture: np.ndarray
    points: np.ndarray

    @property
    def centre(self) -> np.ndarray:
        eyes, mouth = self.anchors[:2].mean(0), self.anchors[2]
        return (eyes + mouth) / 2

    @property
    def anchors(self) -> np.ndarray:
        return Face(self.points, 1.0).anchors

    @property
    def eyes(self) -> float:
        return Face(self.points, 1.0).eyes

    @property
    def tilt(self) -> float:
        left, right, _ = self.anchors
        return math.atan2(*(right - left)[::-1])


# Examples -------------------------------------------------------------------------------------------------------------


def whole_pictures(folder: Path | None, held_out: bool) -> list[Example]:
    """The people in their whole pictures or, without a folder, in the aligned ones."""
    if folder is None:
        found = [load_person(number) for number in people(held_out)]
        return [Example(person.picture, person.landmarks[list(LANDMARKS), :2] + MARGIN) for person in found]
    with np.load(folder / "landmarks.npz") as file:
        landmarks = file["full"]
    pictures = {
        number: cv2.imread(str(folder / "full" / f"{number:03d}.jpg"))[..., ::-1] for number in people(held_out)
    }
    return [
        Example(np.ascontiguousarray(picture), landmarks[number][list(LANDMARKS), :2].astype(np.float32))
        for number, picture in pictures.items()
    ]


def puppet_pictures(count: int) -> list[Example]:
    """POSES frames of each of `count` puppets."""
    examples = []
    for seed in range(count):
        puppet, rng = random_puppet(seed)
        poses = random_controls(rng, POSES)
        frames = pictures_to_pixels(puppet.render(poses)).movedim(1, -1).numpy()
        points = puppet.landmarks(poses).numpy()
        chosen = [index if index < 468 else 468 + (index > 468) for index in LANDMARKS]
        examples += [Example(frame, own[chosen]) for frame, own in zip(frames, points, strict=True)]
    return examples


def drawn_pictures(count: int) -> list[Example]:
    """A drawn person each; the chin and the edges of the brows are not known."""
    examples = []
    for number in range(count):
        avatar = Avatar((number, 0), SIZE)
        controls = drawn_controls(np.random.default_rng((number, 31)), 1)[0]
        known = drawn_points(avatar, controls)
        points = np.concatenate([known, np.full((len(POINTS) - len(known), 2), np.nan, np.float32)])
        examples.append(Example(draw_frames(avatar, controls)[0], points))
    return examples


# Batches --------------------------------------------------------------------------------------------------------------


def disturbed(crops: np.ndarray, rng: np.random.Generator, cover: bool = True) -> Tensor:
    """Crops uint8 [n,S,S,3] -> images float [n,3,S,S] in -1..1: other light and colours, noise, blur, parts covered."""
    made = []
    for crop in crops:
        x = crop.astype(np.float32)
        if rng.random() < 0.4:
            low = int(rng.integers(crop.shape[0] // 4, crop.shape[0]))
            small = cv2.resize(x, (low, low), interpolation=cv2.INTER_AREA)
            x = cv2.resize(small, crop.shape[:2], interpolation=cv2.INTER_LINEAR)
        if rng.random() < 0.2:
            x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.6))
        if cover and rng.random() < 0.3:
            top, left = rng.integers(0, len(x), 2)
            bottom, right = (top, left) + rng.integers(len(x) // 8, len(x) // 3, 2)
            x = x.copy()
            x[top:bottom, left:right] = (
                rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.roll(x, 20, 0)[top:bottom, left:right]
            )
        x = 255 * (np.clip(x, 0, 255) / 255) ** rng.uniform(0.6, 1.6) * rng.uniform(0.75, 1.2, 3) + rng.normal(0, 12)
        if rng.random() < 0.15:
            x = np.repeat(x.mean(-1, keepdims=True), 3, -1)
        made.append(x + rng.normal(0, rng.uniform(0, 10), x.shape))
    images = torch.from_numpy(np.clip(np.stack(made), 0, 255).astype(np.float32))
    return normalise(images).movedim(-1, 1).contiguous()


def warped(example: Example, matrix: np.ndarray, around: np.ndarray) -> np.ndarray:
    """The crop of an example that a similarity cuts out, laid over a picture uint8 [side,side,3] of that size."""
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    picture, reduced = example.picture, matrix.copy()
    while scale < 0.6:
        picture = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        reduced[:, :2] *= 2
        scale *= 2
    reduced[:, 2] += reduced[:, :2] @ (0.5, 0.5) - 0.5
    size = around.shape[1::-1]
    return cv2.warpAffine(
        picture, reduced, size, around.copy(), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT
    )


def surroundings(examples: list[Example], side: int, rng: np.random.Generator) -> np.ndarray:
    """What a picture lies on, uint8 [side,side,3]: a plain colour, clutter, or another picture from very near."""
    kind = rng.random()
    if kind < 0.3:
        return np.full((side, side, 3), rng.integers(0, 256, 3), np.uint8)
    if kind < 0.5:
        return clutter(side, rng)
    example = examples[int(rng.integers(len(examples)))]
    eyes = side * rng.uniform(0.7, 2.0)  # so near that no face is seen
    centre = example.centre + example.eyes * rng.normal(0, 1.5, 2)
    plain = np.full((side, side, 3), example.picture[0, 0], np.uint8)
    return warped(example, rotation(eyes / example.eyes, turn(rng), centre, np.full(2, side / 2)), plain)


def clutter(side: int, rng: np.random.Generator) -> np.ndarray:
    """A picture uint8 [side,side,3] of nothing: clouds, stripes and discs."""
    low = rng.uniform(0, 255, (*rng.integers(2, 24, 2), 3)).astype(np.float32)
    picture = cv2.resize(low, (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(0, 8))):
        centre, colour = rng.integers(0, side, 2).tolist(), rng.uniform(0, 255, 3).tolist()
        if rng.random() < 0.5:
            axes = rng.integers(2, side // 3, 2).tolist()
            cv2.ellipse(picture, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1)
        else:
            cv2.line(picture, centre, rng.integers(0, side, 2).tolist(), colour, int(rng.integers(1, 9)))
    return np.clip(picture, 0, 255).astype(np.uint8)


def turn(rng: np.random.Generator) -> float:
    """A tilt in radians: mostly small, up to 50 degrees."""
    return math.radians(float(rng.normal(0, 8) if rng.random() < 0.4 else rng.uniform(-50, 50)))


def finder_batch(examples: list[Example], rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows [n,3,96,96], answers [n,6,24,24] and what counts of them: 1 a face, 0 none, -1 neither, [n,24,24]."""
    cells = WINDOW // STRIDE
    answers, counts, windows = np.zeros((size, 6, cells, cells), np.float32), np.zeros((size, cells, cells)), []
    middles = (np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1) + 0.5) * STRIDE
    for n in range(size):
        if rng.random() < 0.06:
            windows.append(clutter(WINDOW, rng))
            continue
        example = examples[int(rng.integers(len(examples)))]
        near = rng.random() < 0.65
        eyes = UNIT * 2 ** (rng.uniform(-0.5, 0.5) if near else rng.uniform(-1.8, 3.5))
        tilt, centre = turn(rng), rng.uniform(-0.1, 1.1, 2) * WINDOW
        matrix = rotation(eyes / example.eyes, tilt - example.tilt, example.centre, centre)
        windows.append(warped(example, matrix, surroundings(examples, WINDOW, rng)))
        distance, octaves = np.hypot(*np.moveaxis(middles - centre, -1, 0)) / eyes, abs(math.log2(eyes / UNIT))
        counts[n][distance < 0.7] = -1 if octaves < 1.0 else 0
        if octaves <= 0.6:
            counts[n][distance < 0.35] = 1
        answers[n, 1:3] = np.moveaxis(centre - middles, -1, 0) / UNIT
        answers[n, 3] = math.log(eyes / UNIT)
        answers[n, 4:] = np.array([math.cos(tilt), math.sin(tilt)])[:, None, None]
    images, answers, counts = disturbed(np.stack(windows), rng), torch.from_numpy(answers), torch.from_numpy(counts)
    if rng.random() < 0.5:
        images, answers, counts = images.flip(-1), answers.flip(-1), counts.flip(-1)
        answers = answers * torch.tensor([1.0, -1, 1, 1, 1, -1]).view(1, 6, 1, 1)
    return images, answers, counts.float()


def points_batch(
    examples: list[Example], rng: np.random.Generator, size: int, mistakes: list[Mistake] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Crops [n,3,80,80], points [n,20,2] in sides of the crop, NaN where not known, and whether there is a face [n].

    mistakes: of the finder in these examples: half of the crops without a face are of them.
    """
    crops, points = [], np.full((size, len(POINTS), 2), np.nan, np.float32)
    for n in range(size):
        example = examples[int(rng.integers(len(examples)))]
        near = 0.3 if rng.random() < 0.5 else 1.0
        if rng.random() < NO_FACE:
            if rng.random() < 0.15:
                crops.append(clutter(CROP, rng))
                continue
            if mistakes and rng.random() < 0.6:
                number, centre, eyes, tilt = mistakes[int(rng.integers(len(mistakes)))]
                matrix = crop_matrix(centre, eyes * math.exp(rng.normal(0, 0.1)), tilt + rng.normal(0, 0.2))
                crops.append(warped(examples[number], matrix, surroundings(examples, CROP, rng)))
                continue
            # Elsewhere, or far too near or far: what the finder is wrong about.
            far, size_ratio = (
                rng.uniform(1.5, 5) * example.eyes,
                2 ** float(rng.uniform(1.2, 3.5) * rng.choice((-1, 1))),
            )
            away = rng.random() < 0.6
            angle = rng.uniform(0, 2 * np.pi)
            centre = example.centre + far * away * np.array([np.cos(angle), np.sin(angle)])
            eyes = example.eyes * (2 ** rng.uniform(-2, 1.0) if away else size_ratio)
            crops.append(warped(example, crop_matrix(centre, eyes, turn(rng)), surroundings(examples, CROP, rng)))
            continue
        centre = example.centre + near * 0.35 * example.eyes * rng.normal(0, 0.6, 2)
        eyes = example.eyes * math.exp(near * rng.normal(0, 0.18))
        matrix = crop_matrix(centre, eyes, example.tilt + near * math.radians(rng.normal(0, 14)))
        crops.append(warped(example, matrix, surroundings(examples, CROP, rng)))
        points[n] = apply(matrix, example.points) / CROP
    images, targets = disturbed(np.stack(crops), rng), torch.from_numpy(points)
    if rng.random() < 0.5:
        images, targets = images.flip(-1), mirrored(targets)
    return images, targets, torch.from_numpy(~np.isnan(points).all((1, 2))).float()


def hidden_batch(examples: list[Example], rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Crops [n,3,80,80] of faces, and whether something hides the mouth [n]: it does in half of them; in some of the
    others it hides something else."""
    crops, hidden = [], np.zeros(size, np.float32)
    for n in range(size):
        example = examples[int(rng.integers(len(examples)))]
        centre = example.centre + 0.1 * example.eyes * rng.normal(0, 0.6, 2)
        eyes, tilt = example.eyes * math.exp(rng.normal(0, 0.06)), example.tilt + math.radians(rng.normal(0, 5))
        matrix = crop_matrix(centre, eyes, tilt)
        crop = warped(example, matrix, surroundings(examples, CROP, rng))
        left, right, mouth = apply(matrix, example.anchors)
        hidden[n] = rng.random() < 0.5
        if hidden[n]:
            crop = covered(crop, mouth + rng.normal(0, 1.5, 2), (right - left)[0] * rng.uniform(0.55, 1.2, 2), rng)
        elif rng.random() < 0.4:
            away = rng.uniform(1.6, 2.6) * np.hypot(*(right - left))
            angle = rng.uniform(0, 2 * np.pi)
            other = mouth + away * np.array([math.cos(angle), -abs(math.sin(angle))])
            crop = covered(crop, other, (right - left)[0] * rng.uniform(0.4, 0.9, 2), rng)
        crops.append(crop)
    images = disturbed(np.stack(crops), rng, cover=False)
    return (images.flip(-1) if rng.random() < 0.5 else images), torch.from_numpy(hidden)


def covered(crop: np.ndarray, middle: np.ndarray, half: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop uint8 [S,S,3] with something in front: a mask, a hand or a microphone, about `half` [2] pixels large each
    way around `middle` [2], of a plain colour, the skin's, or a pattern, with a shadow."""
    side = len(crop)
    outline = middle + half * _outline(rng)
    alpha = np.zeros((side, side), np.float32)
    cv2.fillPoly(alpha, [(16 * outline).astype(np.int32)], 1.0, cv2.LINE_8, 4)
    alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.4, 1.2))[..., None]
    kind = rng.random()
    if kind < 0.35:
        colour = rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.array([200, 220, 235]) * rng.uniform(0.2, 1.08)
    elif kind < 0.75:  # a hand
        row, column = np.clip((middle - (0, 1.1 * half[1] + 8)).round().astype(int), 0, side - 1)[::-1]
        colour = crop[row, column] * rng.uniform(0.7, 1.15) + rng.normal(0, 6, 3)
    else:
        colour = clutter(side, rng).astype(np.float32)
    shade = (
        1
        + rng.normal(0, 0.12) * np.linspace(-1, 1, side)[:, None, None]
        + rng.normal(0, 0.12) * np.linspace(-1, 1, side)[:, None]
    )
    creases = cv2.GaussianBlur(rng.normal(0, 1, (side, side)).astype(np.float32), (0, 0), rng.uniform(1.5, 4))[
        ..., None
    ]
    cover = np.clip(colour * shade + rng.uniform(0, 120) * creases, 0, 255)
    return (crop * (1 - alpha) + cover * alpha).astype(np.uint8)


def _outline(rng: np.random.Generator) -> np.ndarray:
    """Around 0, about 1 each way, [k,2]: an ellipse or some corners, at times squarer, as a mask is."""
    corners = rng.random() < 0.4
    angles = rng.uniform(0, 2 * np.pi, int(rng.integers(4, 9))) if corners else np.linspace(0, 2 * np.pi, 24)
    reach = rng.uniform(1.2, 1.45, len(angles)) if corners else np.ones(len(angles))
    if rng.random() < 0.3:
        reach = reach / np.maximum(np.abs(np.cos(angles)), np.abs(np.sin(angles)))
    places = reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    ends = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
    return cv2.convexHull(np.concatenate([places, ends]).astype(np.float32))[:, 0]
