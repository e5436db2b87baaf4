"""Puppets and drawings that speak, as latents: the clips that the bundled transformer learns from, each of somebody
new."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...picture.autoencoder import Autoencoder, load_autoencoder
from ...precision import native_autocast
from ..arrays import BlockStore
from ..speech.pairs import SpokenPairs
from ..stored_clips import CONTEXT
from .actors import ASKED, DrawnActor, PuppetActor, perform
from .geometry import SIZE
from .pictures import face_regions

STRETCH = 60  # frames of motion, of which a clip is a part, so that it begins in mid-motion
BLOCK_FRAMES = 360
REGION_STEP = 4  # pixels of a cell of the regions
DRAWN_EVERY = 5  # one clip of so many is a drawing's


class PuppetClips(BlockStore):
    """`count` clips in a folder (data/stored_clips.py): latents float16 [n,T + 1,C,h,w], the portrait's first; controls
    float32 [n,T + 2 * CONTEXT,8] as ASKED names them.

    Args:
        folder: of the arrays, and of a mark for each finished block. InputError where it holds others.
        length: T, frames of a clip.
        autoencoder: file of the one that makes the latents.
        pairs: the speech, features and mouths, that the clips are cut from.
        held_out: people that no training may see.
        block: how many clips are made at a time; None: BLOCK_FRAMES of them.
        first: number of the somebody in row 0; those of two folders differ where their numbers do.
    """

    kind = "clips"
    kept = (*BlockStore.kept, "length", "autoencoder", "pairs", "held_out", "first")

    def __init__(
        self, folder: Path, count: int, length: int, autoencoder: Path, pairs: SpokenPairs, held_out: bool = False,
        block: int | None = None, first: int = 0,
    ):  # fmt: skip
        super().__init__(folder, count, block or BLOCK_FRAMES // length)
        self.length, self.autoencoder, self.pairs = length, autoencoder, pairs
        self.held_out, self.first = held_out, first
        loaded = _autoencoder(autoencoder, "cpu")
        side, around, of = SIZE // loaded.downscale, length + 2 * CONTEXT, pairs.features.shape[2:]
        self.latents = self.array(
            f"latents-{loaded.encoder_digest}", (length + 1, loaded.latent_channels, side, side), np.float16
        )
        self.features = self.array("features", (around, *of), np.float16)
        self.controls = self.array("controls", (around, len(ASKED)), np.float32)
        self.regions = self.array("regions", (SIZE // REGION_STEP, SIZE // REGION_STEP), np.uint8)
        self.starts = self.array("starts", (), np.bool_)
        self._digest = loaded.encoder_digest

    def _mark(self, start: int) -> Path:
        return self.folder / f"{self._digest}-{start}.done"  # latents of another encoder are made anew

    def make_row(self, index: int, device: str = "cpu") -> None:
        photograph, number = index % DRAWN_EVERY > 0, self.first + index
        actor = PuppetActor(number, self.held_out, device) if photograph else DrawnActor(number, self.held_out)
        rng = actor.rng
        spoken = int(rng.integers(self.pairs.count))
        from_frame = int(rng.integers(self.pairs.features.shape[1] - STRETCH + 1))
        speech = slice(from_frame, from_frame + STRETCH)
        mouth = np.asarray(self.pairs.mouths[spoken, speech], np.float32)
        performance = perform(actor, rng, mouth, photograph=photograph)
        # Half of the clips begin where the motion begins, as a video does: they can follow the portrait itself.
        first = 0 if rng.random() < 0.5 else int(rng.integers(1, STRETCH - self.length + 1))
        around = np.clip(np.arange(first - CONTEXT, first + self.length + CONTEXT), 0, STRETCH - 1)
        frames = torch.cat([performance.portrait, *performance.frames(slice(first, first + self.length))])
        with native_autocast(device):
            latents = _autoencoder(self.autoencoder, device).encode(frames.to(device) * 2 - 1, len(frames))
        self.latents[index] = latents.cpu().numpy()
        self.features[index] = self.pairs.features[spoken, speech][around]
        self.controls[index] = performance.asked[around]
        self.starts[index] = first == 0
        middle = actor.places(performance.motion[[first + self.length // 2]])[0]
        self.regions[index] = face_regions(middle)[REGION_STEP // 2 :: REGION_STEP, REGION_STEP // 2 :: REGION_STEP]

    def asked(self, index: int, around: slice, names: tuple[str, ...]) -> np.ndarray:
        return self.controls[index, around][:, [list(ASKED).index(name) for name in names]]

    def pixels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        raise InputError("Of puppets that speak only latents are kept; set memory_pixel_noise=false.")

    @property
    def encoded(self) -> tuple[np.ndarray, np.ndarray]:
        """Latents of all frames [n,T,C,h,w] and of the portraits [n,C,h,w]."""
        return self.latents[:, 1:], self.latents[:, 0]


@functools.lru_cache(1)
def _autoencoder(path: Path, device: str) -> Autoencoder:
    """Once a process."""
    return load_autoencoder(path).to(device).to(memory_format=torch.channels_last)
