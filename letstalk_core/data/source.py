"""What every source of training clips gives: stretches of talking video by number, cut by a random generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from ..config import LetsTalkConfig


@dataclass(frozen=True)
class Window:
    """What is cut out of a stretch of video for one training example."""

    clip_frames: int  # F
    memory_frames: int  # M, the frames right before the clip
    audio_window: int  # W, odd
    # share of the examples that are the first clip of a video: they remember the portrait M times
    first_clip_share: float = 0.5
    pixel_conditions: bool = False  # portrait and memory as pixels, so that noise can be added before encoding
    controls: tuple[str, ...] = ()  # of config.CONTROLS

    @classmethod
    def of(cls, model: LetsTalkConfig, first_clip_share: float = 0.5, pixel_conditions: bool = False) -> Window:
        """The window of a model's clips."""
        transformer = model.transformer
        return cls(
            transformer.clip_frames, transformer.memory_frames, model.audio.window, first_clip_share, pixel_conditions,
            model.departures.controls,
        )  # fmt: skip


class Source(Protocol):
    """Stretches of talking video.

    read(index, rng) gives one example, decided by the index and the generator alone:

    - "clip" [F,...], "memory" [M,...] and "portrait" [...]: uint8 pixels [.,3,H,W], or latents [.,C,h,w] float32 as
      the autoencoder scales them. With window.pixel_conditions memory and portrait are pixels;
    - "features" float32 [F,W,L,E], windows of audio features;
    - where known: "controls" float32 [F,W,n], those of the window in the units of config.CONTROLS, NaN where one is not
      known, and "regions" uint8 [H,W], 1 in the mouth and 2 in the eyes.

    Where a source has `held` and it is true, examples lie in the device's memory, where other processes do not reach.
    """

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a message calls stretch `index`: the file and place it is from."""
        ...

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One example of stretch `index`, as the class says. InputError where its file is damaged or gone."""
        ...
