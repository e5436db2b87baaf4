"""Make assets/people of a folder of portraits with landmarks: what the bundled model's puppets are made of.

    python -m letstalk_core.training.bundled.import_people FOLDER

FOLDER holds aligned/NNN.jpg and landmarks.npz as described in assets/people/README.md. The pictures are copied as they
are; the people are cut out of their backgrounds (GrabCut, from the outline of the face), so that puppets can move
before them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ...data.people.geometry import CHIN, EXTENT, MARGIN, OVAL
from ...data.people.portraits import LANDMARK_UNITS, PEOPLE

# Looked at: hats or hair that were left behind, or much of the background taken along.
NOT_CUT_OUT = frozenset({2, 4, 9, 17, 24, 32, 63, 78, 99, 103, 134, 143, 147, 183})
GLASSES = frozenset({66, 195})
ROUNDS = 6  # of GrabCut
LEAST_HOLE = 900  # pixels: smaller holes belong to the person
THIN = 15  # pixels: what stands above a head and is thinner is no hair


def first_guess(outline: np.ndarray, chin: np.ndarray) -> np.ndarray:
    """GrabCut's labels [EXTENT,EXTENT] uint8, from the outline [n,2] of a face and its chin [2]."""
    labels = np.full((EXTENT, EXTENT), cv2.GC_PR_BGD, np.uint8)
    centre, width = outline.mean(0), float(np.ptp(outline[:, 0]))

    def fill(polygon, label) -> None:
        cv2.fillPoly(labels, [np.asarray(polygon).astype(np.int32)], label)

    def below_chin(*half_widths_and_heights) -> np.ndarray:
        right = [(centre[0] + width * half, height) for half, height in half_widths_and_heights]
        return np.array([*right, *[(2 * centre[0] - x, y) for x, y in reversed(right)]])

    fill(centre + (outline - centre) * (1.45, 1.5) - (0, 8), cv2.GC_PR_FGD)  # hair
    bottom = EXTENT - 1
    fill(below_chin((0.42, chin[1] - 10), (0.5, chin[1] + 28), (1.1, bottom)), cv2.GC_PR_FGD)  # shoulders
    fill(centre + (outline - centre) * 0.97, cv2.GC_FGD)
    fill(below_chin((0.25, chin[1] - 10), (0.3, bottom)), cv2.GC_FGD)  # neck
    rows, columns = np.mgrid[:EXTENT, :EXTENT]
    far = (np.abs(columns - centre[0]) > 1.02 * width) & (rows < chin[1] - 20)
    far |= (np.abs(columns - centre[0]) > 0.75 * width) & (rows < 6)
    labels[far & (labels != cv2.GC_FGD)] = cv2.GC_BGD
    return labels


def cut_out(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Where the person is: bool [EXTENT,EXTENT], of a picture uint8 [EXTENT,EXTENT,3] and landmarks [478,3]."""
    points = landmarks[:, :2] + MARGIN
    labels = first_guess(points[list(OVAL)], points[CHIN])
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(cv2.GaussianBlur(picture, (0, 0), 0.8), labels, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    person = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (THIN, THIN))
    above = int(points[list(OVAL), 1].min())
    person[:above] = cv2.morphologyEx(person, cv2.MORPH_OPEN, ellipse)[:above]
    _, parts = cv2.connectedComponents(person)
    person = (parts == parts[EXTENT // 2, EXTENT // 2]).astype(np.uint8)
    count, parts, sizes, _ = cv2.connectedComponentsWithStats(1 - person)
    for hole in range(1, count):
        if sizes[hole, cv2.CC_STAT_AREA] < LEAST_HOLE:
            person[parts == hole] = 1
    return cv2.morphologyEx(person, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).astype(bool)


def import_people(folder: Path, output: Path = PEOPLE) -> None:
    """Write pictures, landmarks, cut-outs and the split into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    with np.load(folder / "landmarks.npz") as file:
        landmarks, held_out = file["aligned"], file["held_out"]
    masks = np.zeros((len(landmarks), EXTENT, EXTENT), bool)
    for number in tqdm(range(len(landmarks)), desc="people"):
        picture = folder / "aligned" / f"{number:03d}.jpg"
        shutil.copyfile(picture, output / picture.name)
        masks[number] = cut_out(cv2.imread(str(picture)), landmarks[number])
    np.savez_compressed(
        output / "people.npz",
        landmarks=np.round(landmarks * LANDMARK_UNITS).astype(np.int16),
        masks=np.packbits(masks, axis=-1),
        cut_out=~np.isin(np.arange(len(landmarks)), list(NOT_CUT_OUT)),
        glasses=np.isin(np.arange(len(landmarks)), list(GLASSES)),
        held_out=np.isin(np.arange(len(landmarks)), held_out),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    import_people(parser.parse_args().folder)
