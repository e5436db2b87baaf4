"""How the head of a face in a video moves."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ..errors import InputError
from .face import POINTS, Face, find_faces, read_points

LOST = 0.5  # score below which a face that is followed is looked for anew
SMOOTHED = (0.25, 0.5, 0.25)  # over neighbouring frames: points tremble
# Of the controls for what is measured, fitted to held-out people who were led: they show half of the yaw that is asked
# for, and pitch moves the nose between eyes and mouth; degrees for all of that way.
YAW, PITCH = 1.9, -320.0


def head_motion(pictures: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Tracks [F] of the controls yaw, pitch and roll that move a head like the one in a video, in degrees from its
    median.

    pictures: float [H,W,3] in 0..1, frame by frame; the largest face counts. InputError where no frame has one; in
    frames without, the head is on its way from where it was to where it will be.
    """
    faces: list[Face | None] = []
    for picture in pictures:
        faces.append(_follow(picture, faces[-1] if faces else None))
    known = [i for i, face in enumerate(faces) if face is not None]
    if not known:
        raise InputError("No face was found in the driving video; choose one that shows a face from the front.")
    columns = np.array([_measured(faces[i]) for i in known]).T
    tracks = [_smooth(np.interp(np.arange(len(faces)), known, column)) for column in columns]
    return {name: track - np.median(track) for name, track in zip(("yaw", "pitch", "roll"), tracks, strict=True)}


def _follow(picture: np.ndarray, before: Face | None) -> Face | None:
    if before is not None:
        left, right, mouth = before.anchors
        face = read_points(picture, ((left + right) / 2 + mouth) / 2, before.eyes, _tilt(before))
        if face.score > LOST:
            return face
    return next(iter(find_faces(picture)), None)


def _measured(face: Face) -> tuple[float, float, float]:
    left, right, mouth = face.anchors
    eyes, nose = (left + right) / 2, face.points[POINTS.index("nose")]
    down = mouth - eyes
    return YAW * face.yaw, PITCH * float((nose - eyes) @ down / (down @ down)), math.degrees(_tilt(face))


def _tilt(face: Face) -> float:
    """Clockwise, in radians."""
    left, right, _ = face.anchors
    return math.atan2(*(right - left)[::-1])


def _smooth(track: np.ndarray) -> np.ndarray:
    return np.convolve(np.pad(track, 1, mode="edge"), SMOOTHED, mode="valid")
