"""How the head of a face in a video moves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import InputError
from .face import POINTS, Face, follow_or_find

SMOOTHED = 0.5  # of a frame's own value; the rest is its neighbours': points tremble
# Of the controls for what is measured, fitted to held-out people who were led: they show half of the yaw that is asked
# for, and pitch moves the nose between eyes and mouth; degrees for all of that way.
YAW, PITCH = 1.9, -320.0


HEAD = ("yaw", "pitch", "roll")  # the controls that are measured


def head_motion(frames: Iterable[tuple[float, np.ndarray]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of a video: the times [F] of its frames, and at these tracks [F] of the controls yaw, pitch and roll that move a
    head like the one in it, in degrees from its median.

    frames: (seconds, picture float [H,W,3] in 0..1), rising; the largest face counts. They are looked at one by one,
    and none is kept. InputError where no frame has a face; in frames without, the head is on its way from where it was
    to where it will be.
    """
    at: list[float] = []
    faces: list[Face | None] = []
    face = None
    for seconds, picture in frames:
        at.append(seconds)
        face = follow_or_find(picture, face)
        faces.append(face)
    if not any(faces):
        raise InputError("No face was found in the driving video; choose one that shows a face from the front.")
    times = np.array(at)
    return times, head_tracks(faces, times)


def head_tracks(faces: Sequence[Face | None], times: np.ndarray) -> dict[str, np.ndarray]:
    """The tracks [F] of head_motion, of the faces in frames at rising times [F] in seconds, at least one of them."""
    known, *columns = np.array([(at, *_measured(face)) for at, face in zip(times, faces, strict=True) if face]).T
    tracks = [_smooth(np.interp(times, known, column), times) for column in columns]
    return {name: track - np.median(track) for name, track in zip(HEAD, tracks, strict=True)}


def _measured(face: Face) -> tuple[float, float, float]:
    left, right, mouth = face.anchors
    eyes, nose = (left + right) / 2, face.points[POINTS.index("nose")]
    down = mouth - eyes
    return YAW * face.yaw, PITCH * float((nose - eyes) @ down / (down @ down)), math.degrees(face.tilt)


def _smooth(track: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Each value moved towards the one that its neighbours, on a line between them, have at its time."""
    if len(track) < 2:
        return track
    around, at = np.pad(track, 1, mode="edge"), np.pad(times, 1, mode="reflect", reflect_type="odd")
    share = (at[1:-1] - at[:-2]) / (at[2:] - at[:-2])
    return SMOOTHED * track + (1 - SMOOTHED) * (around[:-2] * (1 - share) + around[2:] * share)
