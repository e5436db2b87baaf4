"""A face followed through a clip: how far its mouth is open, and the square around it that judges look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..picture.face import CORNERS, POINTS, Face, find_faces, follow_or_find
from ..picture.portrait import FRAMING
from ..picture.similarity import cut
from ..pixels import pixels_to_pictures

NOSE = POINTS.index("nose")
LEAST_SEEN = 0.8  # of a clip's frames that show the face


@dataclass(frozen=True)
class FaceTrack:
    """opening [F]: the distance of the lips' inner edges, in eye distances. places [F,5,2]: the middles of both eyes,
    the nose and the mouth's corners, in pixels. Frames in which no face is found have what the frame before them has.
    """

    opening: np.ndarray
    places: np.ndarray


def follow_face(frames: np.ndarray, name: str) -> FaceTrack:
    """The largest face of the first frame of frames uint8 [F,H,W,3], through all of them.

    InputError, which names the clip, where the first frame shows none or too few of the others do.
    """
    face = next(iter(find_faces(pixels_to_pictures(frames[0]))), None)
    if face is None:
        raise InputError(f"The first frame of {name} shows no face; leave the clip out or cut it.")
    track, seen = [], 0
    for i, frame in enumerate(frames):
        found = follow_or_find(pixels_to_pictures(frame), face) if i else face
        seen += found is not None
        face = found or face
        track.append(face)
    if seen < LEAST_SEEN * len(frames):
        raise InputError(f"Only {seen} of {len(frames)} frames of {name} show a face; leave the clip out.")
    return FaceTrack(np.array([each.opening for each in track]), np.stack([_five(each) for each in track]))


def _five(face: Face) -> np.ndarray:
    return np.concatenate([face.anchors[:2], face.points[[NOSE, *CORNERS]]])


def face_square(real: np.ndarray) -> np.ndarray:
    """The similarity [2,3] from frames to a square of side 1 around the first frame's face, as portraits are framed.

    real: uint8 [F,H,W,3]; its first frame shows a face (follow_face has seen it).
    """
    return find_faces(pixels_to_pictures(real[0]))[0].to_aligned(FRAMING)


def cut_out(frames: np.ndarray, square: np.ndarray, side: int) -> np.ndarray:
    """What a square (face_square) shows of frames uint8 [F,H,W,3]: uint8 [F,side,side,3]. It stays where it is, so
    that the head moves in it."""
    return np.stack([cut(frame, square * side, side) for frame in frames])
