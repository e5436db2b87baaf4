"""Held-out people and drawings who speak held-out sentences in held-out voices: what a model is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import CONTROLS
from ..data.people.actors import ASKED, Actor, DrawnActor, Performance, PuppetActor, perform
from ..data.people.gestures import rest_controls
from ..data.people.pictures import face_regions
from ..data.people.puppet import COLUMN
from ..data.speech.spoken_clips import speech_clip
from ..pixels import images_to_pixels

FIRST_PAIR = 10_000  # held-out people from here on: none was looked at while training was tuned
SPEAKING = 0.05  # deviation of the opening over a clip, below which there is no speech to follow
HEADS = (0.0, 1.0)  # size of the head's motion in one pair and in the next


@dataclass(frozen=True)
class Pair:
    """Somebody who speaks, in pictures of `size` pixels.

    waveform: float32 [S], 16 kHz. closed: bool [F], whether the frame's centre lies in an m, b or p.
    """

    performance: Performance
    waveform: np.ndarray
    closed: np.ndarray
    size: int

    @property
    def portrait(self) -> Tensor:
        """[3,size,size] in -1..1."""
        return _resized(self.performance.portrait, self.size)[0]

    def frames(self) -> np.ndarray:
        """uint8 [F,size,size,3]."""
        parts = self.performance.frames()
        return np.concatenate([images_to_pixels(_resized(part, self.size)).numpy() for part in parts])

    def track(self, name: str) -> np.ndarray:
        """A control of the motion, [F]."""
        return self.performance.motion[:, COLUMN[name]]

    @property
    def still(self) -> bool:
        """Whether the head keeps where the portrait has it."""
        return not np.ptp(self.track("yaw"))

    def asked(self, names: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
        """The tracks of those controls (config.CONTROLS) that a model is asked for, so that it moves as the truth."""
        columns = dict(zip(ASKED, self.performance.asked.T, strict=True))
        return {name: tuple(np.clip(columns[name], *CONTROLS[name]).tolist()) for name in names}

    def mouth(self) -> np.ndarray:
        """Where the mouth may be in a frame, bool [size,size]."""
        places = self.performance.actor.places(self.performance.motion[:: max(1, len(self.closed) // 8)])
        regions = (face_regions(torch.from_numpy(places)) == 1).any(0)
        return F.interpolate(regions[None, None].float(), (self.size, self.size), mode="area")[0, 0].numpy() > 0.5


def _resized(frames: Tensor, size: int) -> Tensor:
    """[n,3,S,S] in 0..1 -> [n,3,size,size] in -1..1."""
    return F.interpolate(frames, (size, size), mode="area") * 2 - 1


def held_out_actor(number: int, drawings: bool = False) -> Actor:
    """Somebody whom no training has seen, one a number."""
    seed = FIRST_PAIR + number
    return DrawnActor(seed, held_out=True) if drawings else PuppetActor(seed, held_out=True)


def held_out_portrait(number: int, size: int, drawings: bool = False) -> Tensor:
    """The portrait [3,size,size] in -1..1 of somebody held out, at rest."""
    actor = held_out_actor(number, drawings)
    return _resized(actor.render(rest_controls(actor.rng)[None], natural=True), size)[0]


def held_out_pairs(count: int, seconds: float, size: int, drawings: bool = False) -> Iterator[Pair]:
    """Yield `count` pairs in which somebody speaks: a few of the generator's clips are noise alone, for training. Every
    other head keeps still."""
    number = made = 0
    while made < count:
        actor = held_out_actor(number, drawings)
        waveform, mouth = speech_clip(actor.rng, "heldout", seconds)
        number += 1
        if mouth[:, 0].std() > SPEAKING:
            head = HEADS[made % len(HEADS)]
            performance = perform(actor, actor.rng, mouth, head, photograph=not drawings)
            yield Pair(performance, waveform, mouth[:, 5] > 0.5, size)
            made += 1
