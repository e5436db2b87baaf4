"""Pictures of people and drawings who speak, as clips have them: what the teacher of the transformer learns from."""

from __future__ import annotations

import numpy as np
import torch

from ...pixels import pictures_to_pixels
from .actors import DrawnActor, PuppetActor, perform
from .gestures import random_mouths
from .pictures import POSES, PeoplePictures
from .puppet import COLUMN

STRETCH = 60  # frames of motion, of which the pictures are some
BLINKING_SHARE = 0.4  # of the pictures whose lids are anywhere: in speech they are open nearly all of the time
DRAWN_EVERY = 3  # one person of so many is a drawing
OTHERS = 500_000  # people from here on, so that they are not those of PuppetPictures


class SpeakingPictures(PeoplePictures):
    """People and drawings whose heads move as in clips, with mouths and lids of all shapes."""

    kind = "speaking person"

    def make_row(self, index: int, device: str = "cpu") -> None:
        photograph, seed = index % DRAWN_EVERY > 0, OTHERS + index
        actor = PuppetActor(seed, self.held_out, device) if photograph else DrawnActor(seed, self.held_out)
        rng = actor.rng
        performance = perform(actor, rng, random_mouths(rng, STRETCH), photograph=photograph)
        poses = performance.motion[rng.choice(STRETCH, POSES, replace=False)]
        blinking = rng.random(POSES) < BLINKING_SHARE
        poses[blinking, COLUMN["blink"]] = rng.random(blinking.sum())
        frames = torch.cat([performance.portrait, actor.render(poses)])
        self.pictures[index] = pictures_to_pixels(frames).cpu().numpy()
        self.controls[index] = np.concatenate([performance.rest[None], poses])
        self.places[index] = actor.places(self.controls[index])
