"""Faces found and points read on people held out, in pictures of up to 24 megapixels.

    python benchmarks/faces.py FOLDER [--pictures 10]

FOLDER: whole pictures of the people (full/NNN.jpg, landmarks.npz). Prints JSON: of single pictures, turned by up to 45
degrees, the share found, the error of points in distances of eyes, false faces; of crowds (eight of the people, from 60
pixels wide on, turned, in a picture of 6000 x 4000) the share found, false faces and seconds a picture. Five minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.picture.face import find_faces
from letstalk_core.picture.similarity import apply, rotation
from letstalk_core.training.bundled.face_examples import Example, whole_pictures
from letstalk_core.training.bundled.train_faces import quality

WIDTH, HEIGHT, PEOPLE = 6000, 4000, 8
LEAST, MOST = 60, 450  # pixels from ear to ear
EARS = 2.2  # that width in distances of eyes


def crowd(examples: list[Example], rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[np.ndarray, float]]]:
    """A picture float [H,W,3], and (centre, distance of the eyes) of each face in it."""
    backdrop = examples[int(rng.integers(len(examples)))]
    left = backdrop.picture[:, : max(int(backdrop.centre[0] - 2.5 * backdrop.eyes), 8)]  # beside the head
    canvas = cv2.resize(left, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    faces = []
    for place in rng.permutation(PEOPLE):
        example = around_face(examples[int(rng.integers(len(examples)))])
        width = LEAST * (MOST / LEAST) ** rng.random()
        factor, tilt = width / EARS / example.eyes, math.radians(rng.uniform(-45, 45)) - example.tilt
        cell = np.array([WIDTH / 4, HEIGHT / 2])
        centre = (np.array([place % 4, place // 4]) + rng.uniform(0.35, 0.65, 2)) * cell
        matrix = rotation(factor, tilt, example.centre, centre)
        small = cv2.resize(
            example.picture, None, fx=min(1, 2 * factor), fy=min(1, 2 * factor), interpolation=cv2.INTER_AREA
        )
        scaled = matrix.copy()
        scaled[:, :2] *= example.picture.shape[1] / small.shape[1]
        cv2.warpAffine(small, scaled, (WIDTH, HEIGHT), canvas, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_TRANSPARENT)
        faces.append((apply(matrix, example.centre[None])[0], factor * example.eyes))
    return canvas / np.float32(255), faces


def around_face(example: Example) -> Example:
    """What lies within three distances of the eyes: in a crowd it covers nobody else."""
    low = np.maximum((example.centre - 3 * example.eyes).astype(int), 0)
    high = (example.centre + 3 * example.eyes).astype(int)
    return Example(example.picture[low[1] : high[1], low[0] : high[0]], example.points - low)


def crowds(folder: Path, pictures: int) -> dict[str, float]:
    examples, rng = whole_pictures(folder, held_out=True), np.random.default_rng(0)
    found, false, seconds, hidden = 0, 0, 0.0, 0
    for _ in range(pictures):
        picture, truth = crowd(examples, rng)
        began = time.perf_counter()
        faces = find_faces(picture)
        seconds += time.perf_counter() - began
        left = list(faces)
        for centre, eyes in truth:
            near = [face for face in left if np.hypot(*(face.anchors.mean(0) - centre)) < eyes]
            found += bool(near)
            left = [face for face in left if all(face is not other for other in near)]
        false += len(left)
        hidden += len(truth)
    return {"faces": hidden, "found": found / hidden, "false faces": false, "seconds a picture": seconds / pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=10)
    arguments = parser.parse_args()
    report = {"single pictures": quality(arguments.folder), "crowds": crowds(arguments.folder, arguments.pictures)}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
