"""Clips that nobody renders: people's portraits, speech, and the latents that the teacher tells of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.people.actors import ASKED, asked, motion_from
from ...data.people.pictures import PeoplePictures, face_regions
from ...data.people.puppet import COLUMN
from ...data.ridge import ridge
from ...data.source import Window
from ...data.speech.pairs import PackedPairs, SpokenPairs
from ...model.audio_projection import whole_windows
from ...picture.autoencoder import Autoencoder
from ...pixels import normalise
from ...precision import native_autocast
from .teacher import Teacher
from .train_portrait_autoencoder import UNSEEN_STEP

STRETCH = 60  # frames of motion, of which a clip is a part, so that it begins in mid-motion
BEGINS_SHARE = 0.5  # of clips that begin where the motion does, as a video does: they follow the portrait itself
# Of how far mouths open, widen and round: a model answers with the mean of those that a sound may have, which move less
# than each. And of a smile, which the teacher tells half as far.
MOUTH_EMPHASIS, SMILE_EMPHASIS = (1.22, 1.2, 1.6), 3.0
# Lips that touch are told as an opening below nothing, since the teacher's are soft; this fades as they part.
PRESSED, PARTED = 0.1, 0.05
MOST_CONTROL = 1.2  # the teacher knows them up to 1
READ = len(MOUTH_EMPHASIS)  # of the mouth's controls, that a linear map reads from latents (mouth_reader)
READ_BATCHES, READ_RIDGE = 60, 0.03  # of 16 clips, that the map is fitted to; of the variance of a latent
REGION_STEP = 4  # pixels of a cell of the regions
HALF = REGION_STEP // 2
AT_ONCE = 8  # people whose portraits are encoded, and portraits whose regions are drawn


class Plan(NamedTuple):
    """Numbers of portraits int64 [n], motion float32 [n,F,21], what is told of it float32 [n,F + W - 1,8] and the
    speech's features float16 [n,F + W - 1,L,E], around the clip as well, and seeds int64 [n]."""

    portraits: np.ndarray
    motion: np.ndarray
    told: np.ndarray
    features: np.ndarray
    seeds: np.ndarray


class ClipPlans:
    """Plans of `size` clips by the number of a step, each with speech and motion of its own. They are made with numpy
    alone, so that other threads and processes may do it.

    Args:
        controls: of those who may be portraits, [n,21].
        pairs: the speech, features and mouths.
        window: what a clip is, and what it is told of.
    """

    def __init__(self, controls: np.ndarray, pairs: SpokenPairs | PackedPairs, window: Window, size: int):
        self.controls, self.pairs, self.size = controls, pairs, size
        self.frames, self.window = window.clip_frames, window.audio_window
        self.asked = [list(ASKED).index(name) for name in window.controls]

    def __call__(self, step: int) -> Plan:
        rng = np.random.default_rng((9, step))
        chosen = rng.integers(len(self.controls), size=self.size)
        motion, told, features = zip(*(self._clip(rng, self.controls[index]) for index in chosen), strict=True)
        return Plan(chosen, np.stack(motion), np.stack(told), np.stack(features), rng.integers(2**31, size=self.size))

    def _clip(self, rng: np.random.Generator, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Motion [F,21], what is told of it [F + W - 1,8], and the speech's features [F + W - 1,L,E], of one clip."""
        spoken = int(rng.integers(self.pairs.count))
        start = int(rng.integers(self.pairs.features.shape[1] - STRETCH + 1))
        speech, reach = slice(start, start + STRETCH), self.window // 2
        motion = motion_from(rest, rng, emphasised(self.pairs.mouths[spoken, speech]))
        first = 0 if rng.random() < BEGINS_SHARE else int(rng.integers(1, STRETCH - self.frames + 1))
        around = np.clip(np.arange(first - reach, first + self.frames + reach), 0, STRETCH - 1)
        features = self.pairs.features[spoken, speech][around]
        told = asked(rest, motion[around])[:, self.asked]
        smile = COLUMN["smile"]
        motion[:, smile] = rest[smile] + SMILE_EMPHASIS * (motion[:, smile] - rest[smile])
        return motion[first : first + self.frames], told, features


def emphasised(mouths: np.ndarray) -> np.ndarray:
    """Mouths [F,7] (speech.visemes.MOUTH), float32, that open, widen and round more, and whose closed lips are
    pressed."""
    mouths = np.asarray(mouths, np.float32).copy()
    pressed = PRESSED * np.exp(-mouths[:, 0] / PARTED)
    mouths[:, :READ] *= np.float32(MOUTH_EMPHASIS)
    mouths[:, 0] -= pressed
    mouths[:, :READ] = np.clip(mouths[:, :READ], -MOST_CONTROL, MOST_CONTROL)
    return mouths


class ToldClips:
    """Examples of a transformer's training (data/source.py) by the batch.

    Args:
        sources: people, and how many of each one's pictures may be portraits, that at rest first.
        pairs: the speech, features and mouths.
        autoencoder, teacher: of one training.
        window: what a clip is, and what it is told of.
    """

    def __init__(
        self, sources: list[tuple[PeoplePictures, int]], pairs: SpokenPairs | PackedPairs, autoencoder: Autoencoder,
        teacher: Teacher, window: Window, device: torch.device,
    ):  # fmt: skip
        self.pairs, self.teacher, self.window, self.device = pairs, teacher.to(device), window, device
        self.scale = autoencoder.latent_scale
        self.controls = np.concatenate([source.controls[:, :most].reshape(-1, len(COLUMN)) for source, most in sources])
        places = np.concatenate([source.places[:, :most].reshape(-1, 3, 2) for source, most in sources])
        regions = map(face_regions, torch.from_numpy(places).split(AT_ONCE))
        self.regions = torch.cat([some[:, HALF::REGION_STEP, HALF::REGION_STEP].clone() for some in regions]).to(device)
        self.portraits = _encoded(sources, autoencoder.to(device), device)  # 4 KB each: they stay on the device

    def plans(self, size: int) -> ClipPlans:
        """Those of these portraits and this speech, `size` clips each."""
        return ClipPlans(self.controls, self.pairs, self.window, size)

    def batch(self, plan: Plan) -> dict:
        """ "clip" [n,F,C,h,w], "portrait" [n,C,h,w], no frames of "memory", "features" [n,F,W,L,E], "controls"
        [n,F,W,8], "regions" [n,64,64], "seed", "name"."""
        portrait, clip = self._told(plan.portraits, plan.motion)
        told, features = (torch.from_numpy(part).to(self.device) for part in (plan.told, plan.features))
        return {
            "clip": clip, "portrait": portrait, "memory": clip[:, :0],
            "features": torch.stack([whole_windows(one.float(), self.window.audio_window) for one in features]),
            "controls": torch.stack([whole_windows(one, self.window.audio_window) for one in told]),
            "regions": self.regions[torch.from_numpy(plan.portraits).to(self.device)],
            "seed": plan.seeds.tolist(),
            "name": [f"clip {seed}" for seed in plan.seeds],
        }  # fmt: skip

    def mouth_reader(self) -> Tensor:
        """A linear map [C*h*w,3] from what a frame's latents differ from the portrait's, flat, to how far mouths open,
        widen and round, in their deviations (ridge regression; what it says of an error is what matters)."""
        plans, differences, mouths = self.plans(16), [], []
        for step in range(READ_BATCHES):
            plan = plans(UNSEEN_STEP + step)
            motion = plan.motion[:, ::4]  # frames beside one another are alike
            portrait, clip = self._told(plan.portraits, motion)
            moved = (clip - portrait[:, None]).flatten(0, 1).flatten(1)
            differences.append(moved.cpu().numpy().astype(np.float64))
            mouths.append(motion[..., :READ].reshape(-1, READ))
        x, y = np.concatenate(differences), np.concatenate(mouths).astype(np.float64)
        weights, _ = ridge(x, y / (y.std(0) + 1e-6), READ_RIDGE)
        return torch.from_numpy(weights.astype(np.float32)).to(self.device)

    @torch.no_grad()
    def _told(self, chosen: np.ndarray, motion: np.ndarray) -> tuple[Tensor, Tensor]:
        """Latents of portraits [n,C,h,w], by their numbers [n], and of their frames [n,F,C,h,w] with controls `motion`
        [n,F,21]."""
        portrait = self.portraits[torch.from_numpy(chosen).to(self.device)].float()
        motion, rest = (torch.from_numpy(part).to(self.device) for part in (motion, self.controls[chosen]))
        count = motion.shape[1]
        start, rest = portrait.repeat_interleave(count, 0), rest.repeat_interleave(count, 0)
        with native_autocast(self.device.type):
            added = self.teacher(start / self.scale, torch.stack([motion.flatten(0, 1), rest], 1)).float()
        return portrait, (start + self.scale * added).unflatten(0, (-1, count))


@torch.no_grad()
def _encoded(sources: list[tuple[PeoplePictures, int]], autoencoder: Autoencoder, device: torch.device) -> Tensor:
    """Latents of the portraits, float16."""
    found = []
    for source, most in sources:
        for first in range(0, len(source), AT_ONCE):
            pictures = torch.from_numpy(source.pictures[first : first + AT_ONCE, :most])
            images = normalise(pictures.flatten(0, 1).to(device))
            with native_autocast(device.type):
                found.append(autoencoder.encode(images.contiguous(memory_format=torch.channels_last)).half())
    return torch.cat(found)
