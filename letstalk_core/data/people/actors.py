"""Who speaks in clips: puppets of photographs, and drawings moved by the same controls, all in aligned squares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...picture.face import ALIGNED, CORNERS, LEFT_EYE, RIGHT_EYE
from ...picture.similarity import apply, cut, similarity
from ..drawn.avatars import Avatar
from ..drawn.drawing import draw_frames
from ..drawn.drawn_points import drawn_points
from ..drawn.motion import CONTROLS as DRAWN_CONTROLS
from ..drawn.motion import MOUTH_COLUMNS
from ..drawn.stills import HELD_OUT
from .cast import random_puppet
from .geometry import SIZE
from .gestures import control_track, rest_controls
from .pictures import NATURAL_SHARE
from .puppet import COLUMN

DEGREES = 180 / np.pi
# Of config.CONTROLS: a puppet's own control, how many units of the one are one of the other, and whether it is counted
# from the portrait's.
ASKED = {
    "eyelids": ("blink", 1.0, False), "yaw": ("yaw", DEGREES, True), "pitch": ("pitch", DEGREES, True),
    "roll": ("roll", DEGREES, True), "brows": ("brow", 1.0, True), "smile": ("smile", 1.0, True),
    "gaze_x": ("gaze_x", 1.0, True), "gaze_y": ("gaze_y", 1.0, True),
}  # fmt: skip
BEGINS_AT_REST = ("yaw", "pitch", "roll", "smile")
UNTOLD = ("shift_x", "shift_y", "size", "jaw", "cheeks")  # what nobody can ask for stays as the portrait has it
OTHER_SHARE = 0.35  # of clips with another expression than the portrait's, with other brows, with lids half shut
AT_ONCE = 32  # frames that are rendered


class Actor(Protocol):
    """Moved by controls [F,21] (puppet.CONTROLS), as far as it has them. rng: to go on with, after it was chosen."""

    rng: np.random.Generator

    def render(self, controls: np.ndarray, natural: bool = False) -> Tensor:
        """Frames float [F,3,256,256] in 0..1; natural: with the lips as photographed, where there is a photograph."""
        ...

    def places(self, controls: np.ndarray) -> np.ndarray:
        """Where the middles of the mouth, the left and the right eye are, [F,3,2] pixels."""
        ...


class PuppetActor:
    """A puppet on a device."""

    def __init__(self, seed: int, held_out: bool = False, device: str = "cpu"):
        self.puppet, self.rng = random_puppet(seed, held_out, device)

    def render(self, controls: np.ndarray, natural: bool = False) -> Tensor:
        return self.puppet.render(controls, natural)

    def places(self, controls: np.ndarray) -> np.ndarray:
        return self.puppet.places(controls).cpu().numpy()


class DrawnActor:
    """A drawing, cut as a portrait of it is found."""

    def __init__(self, seed: int, held_out: bool = False):
        identity = seed + (HELD_OUT if held_out else 0)
        self.avatar, self.rng = Avatar((identity, 0), SIZE), np.random.default_rng((identity, 5))
        self.square = similarity(_anchors(self.avatar, np.zeros(len(DRAWN_CONTROLS))), ALIGNED)

    def render(self, controls: np.ndarray, natural: bool = False) -> Tensor:
        drawn = draw_frames(self.avatar, controls[:, : len(DRAWN_CONTROLS)])
        frames = np.stack([cut(frame, self.square, SIZE) for frame in drawn])
        return torch.from_numpy(frames).movedim(-1, 1).float() / 255

    def places(self, controls: np.ndarray) -> np.ndarray:
        anchors = np.stack([_anchors(self.avatar, row[: len(DRAWN_CONTROLS)]) for row in controls])
        return apply(self.square, anchors.reshape(-1, 2)).reshape(anchors.shape)[:, [2, 0, 1]]


def _anchors(avatar: Avatar, controls: np.ndarray) -> np.ndarray:
    """The middles of both eyes and of the mouth of a drawing, [3,2] pixels."""
    points = drawn_points(avatar, controls)
    return np.stack([points[part].mean(0) for part in (LEFT_EYE, RIGHT_EYE, CORNERS)])


@dataclass(frozen=True)
class Performance:
    """An actor who speaks: the controls of the portrait, rest [21], and of the frames, motion [F,21].

    natural: whether the portrait has its lips as photographed.
    """

    actor: Actor
    rest: np.ndarray
    motion: np.ndarray
    natural: bool

    @property
    def portrait(self) -> Tensor:
        """[1,3,256,256] in 0..1."""
        return self.actor.render(self.rest[None], self.natural)

    def frames(self, part: slice = slice(None)) -> Iterator[Tensor]:
        """The frames of a part of the motion, some at a time, [n,3,256,256] in 0..1."""
        motion = self.motion[part]
        for start in range(0, len(motion), AT_ONCE):
            yield self.actor.render(motion[start : start + AT_ONCE])

    @property
    def asked(self) -> np.ndarray:
        """What the motion is in terms of config.CONTROLS, [F,8] as ASKED names it."""
        return asked(self.rest, self.motion)


def perform(
    actor: Actor, rng: np.random.Generator, mouth: np.ndarray, head: float | None = None, photograph: bool = True
) -> Performance:
    """The actor speaks `mouth` [F,7] (speech.visemes.MOUTH), from near where its portrait is.

    head: size of its motion; None for a random one. photograph: whether there are lips as photographed.
    """
    rest = rest_controls(rng)
    if natural := photograph and rng.random() < NATURAL_SHARE:
        rest[:MOUTH_COLUMNS] = 0
    return Performance(actor, rest, motion_from(rest, rng, mouth, head), natural)


def motion_from(rest: np.ndarray, rng: np.random.Generator, mouth: np.ndarray, head: float | None = None) -> np.ndarray:
    """Controls [F,21] of somebody who speaks `mouth` [F,7], from near where a portrait with the controls `rest` is.

    All of the motion follows from the speech and from what a model is told: it has nothing to guess, so that it needs
    few steps, and no memory of what it guessed before.
    """
    motion = control_track(rng, mouth, head)
    for name in BEGINS_AT_REST:
        motion[:, COLUMN[name]] += rest[COLUMN[name]] - motion[0, COLUMN[name]]
    for name in UNTOLD:
        motion[:, COLUMN[name]] = rest[COLUMN[name]]
    for name, least, most in (("smile", -0.8, 1.0), ("brow", -0.8, 0.8)):
        column = COLUMN[name]
        other = rng.uniform(least, most) if rng.random() < OTHER_SHARE else 0.0
        motion[:, column] = np.clip(motion[:, column] + other, least, most)
    if rng.random() < OTHER_SHARE:
        motion[:, COLUMN["blink"]] = np.maximum(motion[:, COLUMN["blink"]], rng.uniform(0, 1))
    for name, follows, share in (("widen", "brow", 0.3), ("squint", "smile", 0.4)):
        more = motion[:, COLUMN[follows]] - rest[COLUMN[follows]]
        motion[:, COLUMN[name]] = np.clip(share * more, 0, 1)
    return motion


def asked(rest: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Motion [F,21] from a portrait [21] in terms of config.CONTROLS, [F,8] as ASKED names it."""
    columns = [
        units * (motion[:, COLUMN[own]] - (rest[COLUMN[own]] if relative else 0))
        for own, units, relative in ASKED.values()
    ]
    return np.stack(columns, 1).astype(np.float32)
