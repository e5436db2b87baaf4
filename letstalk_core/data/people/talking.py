"""Pictures of people and drawings who speak, as clips have them: what the teacher of the transformer learns from."""

from __future__ import annotations

import numpy as np
import torch

from ...pixels import pictures_to_pixels
from .actors import DrawnActor, PuppetActor, perform
from .gestures import random_mouths
from .pictures import POSES, PeoplePictures

STRETCH = 60  # frames of motion, of which the pictures are some
DRAWN_EVERY = 3  # one person of so many is a drawing
OTHERS = 500_000  # people from here on, so that they are not those of PuppetPictures


class SpeakingPictures(PeoplePictures):
    """People and drawings whose heads and lids move as in clips, with mouths of all shapes."""

    kind = "speaking person"

    def make_row(self, index: int, device: str = "cpu") -> None:
        photograph, seed = index % DRAWN_EVERY > 0, OTHERS + index
        actor = PuppetActor(seed, self.held_out, device) if photograph else DrawnActor(seed, self.held_out)
        rng = actor.rng
        performance = perform(actor, rng, random_mouths(rng, STRETCH), photograph=photograph)
        poses = performance.motion[rng.choice(STRETCH, POSES, replace=False)]
        frames = torch.cat([performance.portrait, actor.render(poses)])
        self.pictures[index] = pictures_to_pixels(frames).cpu().numpy()
        self.controls[index] = np.concatenate([performance.rest[None], poses])
        self.places[index] = actor.places(self.controls[index])
