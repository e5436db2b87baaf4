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
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ...picture import face
from ...picture.face import CROP, CROP_EYES, FinderNet, PointsNet
from ...picture.similarity import apply
from ...weights import write_network
from .face_examples import (
    Example,
    Mistake,
    drawn_pictures,
    finder_batch,
    hidden_batch,
    points_batch,
    puppet_pictures,
    whole_pictures,
)
from .timed import TimedRun

PUPPETS, DRAWN = 400, 300
BATCH = 48  # examples of a step
PEAK = 2e-3
FINDER_SHARE, HIDDEN_SHARE = 0.25, 0.05  # of the minutes
LEAST_EYES = 12.0  # pixels between them, where quality and mistakes are looked for
MISTAKEN = 0.1  # score from which a finder's mistakes are learnt from
TILTS = (0, -20, 20, -45, 45)  # degrees by which people are turned to measure quality


def finder_loss(answers: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Focal loss of the scores, absolute errors of the rest where a face is."""
    target = (counts == 1).float()
    each = functional.binary_cross_entropy_with_logits(answers[:, 0], target, reduction="none")
    focal = (1 - torch.exp(-each)).square() * each * (counts >= 0) * (1 + 2 * target)
    faces = target.sum().clamp(min=1)
    errors = ((answers[:, 1:] - truth[:, 1:]).abs().sum(1) * target).sum() / faces
    return focal.sum() / faces + 0.5 * errors


def points_loss(points: Tensor, logits: Tensor, targets: Tensor, there: Tensor) -> Tensor:
    """Absolute errors in distances of eyes, and whether there is a face."""
    known = targets.isfinite()
    errors = (points - targets.nan_to_num()).abs() * known * CROP / CROP_EYES
    return errors.sum() / known.sum().clamp(min=1) + 0.1 * functional.binary_cross_entropy_with_logits(logits, there)


def mistakes_of(finder: FinderNet, examples: list[Example]) -> list[Mistake]:
    """Where a finder sees faces in pictures and there are none, or of quite another size."""
    found = []
    for number, example in enumerate(examples):
        for centre, eyes, tilt in face.guesses(finder, example.picture / np.float32(255), LEAST_EYES, MISTAKEN):
            elsewhere = np.hypot(*(centre - example.centre)) > 0.8 * example.eyes
            if elsewhere or abs(math.log2(eyes / example.eyes)) > 0.8:
                found.append((number, centre, eyes, tilt))
    return found


def train(work: Path, minutes: float, folder: Path | None, puppets: int = PUPPETS, drawn: int = DRAWN) -> None:
    """Train both networks in `work` (resumed if begun) and write their files."""
    whole = whole_pictures(folder, held_out=False)
    moved = puppet_pictures(puppets) + drawn_pictures(drawn)
    finder, points = FinderNet(), PointsNet()
    torch.manual_seed(0)

    def found(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((9, step))
        images, answers, counts = finder_batch(whole if rng.random() < 0.7 else moved, rng, BATCH)
        return finder_loss(finder(images), answers, counts), {}

    def read(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((10, step))
        chosen, wrong = (whole, mistakes) if rng.random() < 0.6 else (moved, None)
        images, targets, there = points_batch(chosen, rng, BATCH, wrong)
        return points_loss(*points(images)[:2], targets, there), {}

    def hidden(step: int) -> tuple[Tensor, dict[str, float]]:
        images, truth = hidden_batch(whole if step % 2 else moved, np.random.default_rng((11, step)), BATCH)
        with torch.no_grad():
            seen = points.layers(images)
        return functional.binary_cross_entropy_with_logits(points.hidden(seen)[:, 0], truth), {}

    write_network(face.FINDER_WEIGHTS, _trained(finder, work / "finder", FINDER_SHARE * minutes, found))
    mistakes = mistakes_of(finder, whole)
    _trained(points, work / "points", (1 - FINDER_SHARE - HIDDEN_SHARE) * minutes, read)
    _trained(points.hidden, work / "hidden", HIDDEN_SHARE * minutes, hidden)  # of what the others see, which stays
    write_network(face.POINTS_WEIGHTS, points)
    face.networks.cache_clear()


def _trained(net: nn.Module, folder: Path, minutes: float, loss_of) -> nn.Module:
    run = TimedRun(folder, net.train().requires_grad_(True), minutes, PEAK, weight_decay=0.01)
    run.fit(loss_of)
    return run.averaged()


def quality(folder: Path | None) -> dict[str, float]:
    """On people held out, turned: faces found, and the mean error of points in distances of eyes; of what is left of
    their pictures without the face, how many have one found in them."""
    found, errors, false, empty = 0, [], 0, 0
    examples = whole_pictures(folder, held_out=True)
    for example in examples:
        picture = example.picture / np.float32(255)
        height, width = picture.shape[:2]
        for degrees in TILTS:
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
    shown = len(examples) * len(TILTS)
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
