"""Thousands of people out of 180: mixed in pairs, photographed in many ways, and given teeth. One seed, one puppet."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ...picture.face import ALIGNED
from .geometry import NOSE
from .looks import random_look
from .mixing import mixed
from .portraits import Person, load_person, people
from .puppet import Puppet

MIXED_SHARE = 0.6
MOST_SHAPE, MOST_TONE = 0.65, 0.4  # of the way to another
TURNED = 0.25  # of the eyes' distance that a nose may lie off the middle in a face that is mixed


def random_person(rng: np.random.Generator, held_out: bool = False) -> Person:
    """Somebody: one of the people or, more often, between two of them, in a random look."""
    numbers = people(held_out)
    person = load_person(numbers[int(rng.integers(len(numbers)))])
    if rng.random() < MIXED_SHARE and not _turned(person):
        other = load_person(numbers[int(rng.integers(len(numbers)))])
        shape = 0.0 if _turned(other) else float(rng.uniform(0, MOST_SHAPE))
        person = mixed(person, other, shape, float(rng.uniform(0, MOST_TONE)))
    return dataclasses.replace(person, picture=random_look(person.picture, rng))


def random_puppet(
    seed: int, held_out: bool = False, device: torch.device | str = "cpu"
) -> tuple[Puppet, np.random.Generator]:
    """Puppet number `seed` and the generator to go on with."""
    rng = np.random.default_rng((seed, 21, int(held_out)))
    return Puppet(random_person(rng, held_out), rng, device), rng


def _turned(person: Person) -> bool:
    left, right, mouth = ALIGNED
    return abs(float(person.landmarks[NOSE, 0] - mouth[0])) > TURNED * (right - left)[0]
