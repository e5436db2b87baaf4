"""Training of the networks that find faces and read their points (picture/face.py), for a given time.

    python -m letstalk_core.training.bundled.train_faces WORK --minutes 15 [--people FOLDER]

On the people of assets/people, on puppets of them and on drawings, turned, scaled, blurred, partly covered. --people: a
folder with whole pictures (full/NNN.jpg, landmarks.npz), whose surroundings teach what is no face. A quarter of the
minutes goes to the first network; writes both files beside picture/face.py and prints their quality on people held out.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...data.drawn.avatars import Avatar
from ...data.drawn.drawing import draw_frames, pose_maps
from ...data.drawn.motion import COLUMN
from ...data.drawn.stills import random_controls as drawn_controls
from ...data.people.cast import random_puppet
from ...data.people.geometry import MARGIN, SIZE
from ...data.people.gestures import random_controls
from ...data.people.portraits import load_person, people
from ...picture import face
from ...picture.face import CROP, POINTS, STRIDE, UNIT, FinderNet, PointsNet, apply, crop_matrix
from ...pixels import normalise
from ...weights import write_network
from .timed import TimedRun

# Landmarks of POINTS; the irises follow the 468 points of the face.
LANDMARKS = (33, 133, 159, 145, 468, 362, 263, 386, 374, 473, 4, 61, 291, 0, 13, 14, 17, 152, 105, 334)
MIRRORED = (6, 5, 7, 8, 9, 1, 0, 2, 3, 4, 10, 12, 11, 13, 14, 15, 16, 17, 19, 18)  # the point that each becomes
PUPPETS, POSES, DRAWN = 400, 4, 300
WINDOW, BATCH = 96, 48  # pixels, the side of what the finder learns from; examples of a step
NO_FACE = 0.3  # share of examples without a face in its middle
PEAK = 2e-3
FINDER_SHARE = 0.25  # of the minutes
LEAST_EYES, MISTAKEN = (
    12.0,
    0.1,
)  # pixels between the eyes, and the score from which a finder's mistakes are learnt from
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
        return face.Face(self.points, 1.0).anchors

    @property
    def eyes(self) -> float:
        return face.Face(self.points, 1.0).eyes

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
        frames = (puppet.render(poses) * 255 + 0.5).to(torch.uint8).movedim(1, -1).numpy()
        points = puppet.landmarks(poses).numpy()
        chosen = [index if index < 468 else 468 + (index > 468) for index in LANDMARKS]
        examples += [Example(frame, own[chosen]) for frame, own in zip(frames, points, strict=True)]
    return examples


def drawn_pictures(count: int, first: int = 0) -> list[Example]:
    """A drawn person each; the chin and the edges of the brows are not known."""
    examples = []
    for number in range(first, first + count):
        avatar = Avatar((number, 0), SIZE)
        controls = drawn_controls(np.random.default_rng((number, 31)), 1)[0]
        examples.append(Example(draw_frames(avatar, controls)[0], drawn_points(avatar, controls)))
    return examples


def drawn_points(avatar: Avatar, controls: np.ndarray) -> np.ndarray:
    """The points of a drawing in its pixels, NaN where they are not known: found where its pose took them."""
    c = {name: float(controls[i]) for name, i in COLUMN.items()}
    a, opening = avatar, max(0.0, c["open"]) * avatar.mouth_open
    half = a.mouth_width * (1 + 0.20 * c["width"] - 0.38 * c["round"] + 0.10 * c["smile"])
    corner = a.mouth_y - 0.05 * c["smile"] + 0.15 * opening
    lid = (0.62 - 1.62 * (1 - c["blink"])) * a.eye_height
    own = []
    for side in (-1, 1):
        gaze = (c["gaze_x"] * 0.38 * a.eye_width, c["gaze_y"] * 0.25 * a.eye_height)
        for x, y in ((-a.eye_width, 0), (a.eye_width, 0), (0, lid), (0, 0.62 * a.eye_height), gaze):
            own.append((side * a.eye_x + x, a.eye_y + y))
    nowhere = (np.nan, np.nan)
    own += [(0, a.nose_y), (-half, corner), (half, corner), (0, a.mouth_y - 0.3 * opening - a.lip)]
    own += [(0, a.mouth_y - 0.3 * opening), (0, a.mouth_y + 0.7 * opening)]
    own += [(0, a.mouth_y + 0.7 * opening + 1.25 * a.lip), nowhere, nowhere, nowhere]
    painted = np.array(own) * a.scale + a.centre
    maps = np.stack(pose_maps(a, c), -1)
    points = np.full((len(POINTS), 2), np.nan, np.float32)
    for i in np.flatnonzero(np.isfinite(painted[:, 0])):
        nearest = np.square(maps - painted[i]).sum(-1).argmin()
        row, column = np.unravel_index(nearest, maps.shape[:2])
        points[i] = (np.array([column, row]) + 0.5) * SIZE / a.resolution
    return points


# Batches --------------------------------------------------------------------------------------------------------------


def disturbed(crops: np.ndarray, rng: np.random.Generator) -> Tensor:
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
        if rng.random() < 0.3:
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
    return warped(example, around_centre(side, centre, eyes / example.eyes, turn(rng)), plain)


def around_centre(side: int, centre: np.ndarray, factor: float, tilt: float) -> np.ndarray:
    """The similarity [2,3] that brings a place into the middle of a square, turned and scaled."""
    rotation = factor * np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    return np.column_stack([rotation, np.full(2, side / 2) - rotation @ centre])


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


def finder_batch(examples: list[Example], rng: np.random.Generator, size: int = BATCH) -> tuple[Tensor, Tensor, Tensor]:
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
        factor, angle = eyes / example.eyes, tilt - example.tilt
        rotation = factor * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = np.column_stack([rotation, centre - rotation @ example.centre])
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


def finder_loss(answers: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Focal loss of the scores, absolute errors of the rest where a face is."""
    target = (counts == 1).float()
    each = functional.binary_cross_entropy_with_logits(answers[:, 0], target, reduction="none")
    focal = (1 - torch.exp(-each)).square() * each * (counts >= 0) * (1 + 2 * target)
    faces = target.sum().clamp(min=1)
    errors = ((answers[:, 1:] - truth[:, 1:]).abs().sum(1) * target).sum() / faces
    return focal.sum() / faces + 0.5 * errors


def mistakes_of(finder: FinderNet, examples: list[Example]) -> list[Mistake]:
    """Where a finder sees faces in pictures and there are none, or of quite another size."""
    found = []
    for number, example in enumerate(examples):
        for centre, eyes, tilt in face.guesses(finder, example.picture / np.float32(255), LEAST_EYES, MISTAKEN):
            elsewhere = np.hypot(*(centre - example.centre)) > 0.8 * example.eyes
            if elsewhere or abs(math.log2(eyes / example.eyes)) > 0.8:
                found.append((number, centre, eyes, tilt))
    return found


def points_batch(
    examples: list[Example], rng: np.random.Generator, size: int = BATCH, mistakes: list[Mistake] | None = None
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
        images = images.flip(-1)
        targets = targets[:, list(MIRRORED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    return images, targets, torch.from_numpy(~np.isnan(points).all((1, 2))).float()


def points_loss(points: Tensor, logits: Tensor, targets: Tensor, there: Tensor) -> Tensor:
    """Absolute errors in distances of eyes, and whether there is a face."""
    known = targets.isfinite()
    errors = (points - targets.nan_to_num()).abs() * known * CROP / face.CROP_EYES
    return errors.sum() / known.sum().clamp(min=1) + 0.1 * functional.binary_cross_entropy_with_logits(logits, there)


# Training and quality -------------------------------------------------------------------------------------------------


def train(work: Path, minutes: float, folder: Path | None, puppets: int = PUPPETS, drawn: int = DRAWN) -> None:
    """Train both networks in `work` (resumed if begun) and write their files."""
    whole = whole_pictures(folder, held_out=False)
    moved = puppet_pictures(puppets) + drawn_pictures(drawn)
    finder, points = FinderNet(), PointsNet()
    torch.manual_seed(0)

    def found(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((9, step))
        images, answers, counts = finder_batch(whole if rng.random() < 0.7 else moved, rng)
        return finder_loss(finder(images), answers, counts), {}

    def read(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((10, step))
        chosen, wrong = (whole, mistakes) if rng.random() < 0.6 else (moved, None)
        images, targets, there = points_batch(chosen, rng, mistakes=wrong)
        return points_loss(*points(images), targets, there), {}

    write_network(face.FINDER_WEIGHTS, _trained(finder, work / "finder", FINDER_SHARE * minutes, found))
    mistakes = mistakes_of(finder, whole)
    write_network(face.POINTS_WEIGHTS, _trained(points, work / "points", (1 - FINDER_SHARE) * minutes, read))
    face.networks.cache_clear()


def _trained(net: nn.Module, folder: Path, minutes: float, loss_of) -> nn.Module:
    run = TimedRun(folder, net.train(), minutes, PEAK, weight_decay=0.01)
    run.fit(loss_of)
    return run.averaged()


def quality(folder: Path | None, tilts: tuple[int, ...] = (0, -20, 20, -45, 45)) -> dict[str, float]:
    """On people held out, turned: faces found, and the mean error of points in distances of eyes; of what is left of
    their pictures without the face, how many have one found in them."""
    found, errors, false, empty = 0, [], 0, 0
    examples = whole_pictures(folder, held_out=True)
    for example in examples:
        picture = example.picture / np.float32(255)
        height, width = picture.shape[:2]
        for degrees in tilts:
            matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 0.8)
            turned = cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
            truth, faces = apply(matrix, example.points), face.find_faces(turned, LEAST_EYES)
            centre = apply(matrix, example.centre[None])[0]
            own = [one for one in faces if np.hypot(*(one.anchors.mean(0) - centre)) < example.eyes]
            found += bool(own)
            errors += [np.hypot(*(own[0].points - truth).T).mean() / (0.8 * example.eyes)] if own else []
            false += len(faces) - bool(own)
        x, half = example.centre[0], 2.2 * example.eyes
        for part in (picture[:, : max(int(x - half), 0)], picture[:, int(x + half) :]):
            if min(part.shape[:2]) > 60:
                empty += 1
                false += bool(face.find_faces(part, LEAST_EYES))
    shown = len(examples) * len(tilts)
    return {
        "found": found / shown, "error of points": float(np.mean(errors)), "worst": float(np.max(errors)),
        "false faces": false, "pictures": shown + empty,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--people", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    train(arguments.work, arguments.minutes, arguments.people)
    print(json.dumps(quality(arguments.people), indent=2))


if __name__ == "__main__":
    main()
