"""Short talking clips that were made once and lie in arrays, as training examples: drawings."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from ..errors import InputError
from ..model.audio_projection import whole_windows
from .source import Window

CONTEXT = 4  # frames of features and controls kept before and after a clip, for the window of the audio tokens


class StoredClips(Protocol):
    """`count` clips of `length` frames: features float16 [n,T + 2 * CONTEXT,L,E]; regions uint8 [n,H,W], 1 in the mouth
    and 2 in the eyes; starts bool [n], whether the clip begins where the speech begins."""

    count: int
    length: int
    features: np.ndarray
    regions: np.ndarray
    starts: np.ndarray

    def asked(self, index: int, around: slice, names: tuple[str, ...]) -> np.ndarray:
        """Controls [F,n] of config.CONTROLS in those frames, CONTEXT of them before the clip; NaN where unknown."""
        ...

    def pixels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 frames [T,3,H,W] and portrait [3,H,W]; InputError where only latents were kept."""
        ...


class StoredClipSource:
    """The clips of a store as training examples (data/source.py).

    latents: float16 of all frames [n,T,C,h,w] and of the portraits [n,C,h,w], or None to give pixels.
    """

    def __init__(self, store: StoredClips, window: Window, latents: tuple[np.ndarray, np.ndarray] | None):
        if window.memory_frames + window.clip_frames > store.length:
            raise InputError(
                f"The drawn clips have {store.length} frames, fewer than {window.memory_frames} of memory and "
                f"{window.clip_frames} of a clip."
            )
        if window.audio_window // 2 > CONTEXT:
            raise InputError(f"audio_window is {window.audio_window}; drawn clips know {2 * CONTEXT + 1} at most.")
        self.store, self.window, self.latents = store, window, latents

    def __len__(self) -> int:
        return self.store.count

    def name(self, index: int) -> str:
        return f"drawn clip {index}"

    def read(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        store, memory, length = self.store, self.window.memory_frames, self.window.clip_frames
        begin = int(rng.integers(memory, store.length - length + 1))
        if store.starts[index] and rng.random() < self.window.first_clip_share:
            begin = 0
        before = slice(begin - memory, begin)
        reach = self.window.audio_window // 2
        around = slice(CONTEXT + begin - reach, CONTEXT + begin + length + reach)
        frames, portrait = store.pixels(index) if self.latents is None else (part[index] for part in self.latents)
        clip = frames[begin : begin + length]
        if self.window.pixel_conditions:
            frames, portrait = store.pixels(index)
        remembered = frames[before] if begin else np.repeat(portrait[None], memory, 0)
        controls = store.asked(index, around, self.window.controls)
        return {
            "clip": _tensor(clip),
            "memory": _tensor(remembered),
            "portrait": _tensor(portrait),
            "features": whole_windows(_tensor(store.features[index, around]), self.window.audio_window),
            "controls": whole_windows(_tensor(controls), self.window.audio_window),
            "regions": _tensor(store.regions[index]),
        }


def _tensor(values: np.ndarray) -> torch.Tensor:
    """A copy as uint8 where it is that, else as float32."""
    return torch.from_numpy(np.array(values, np.uint8 if values.dtype == np.uint8 else np.float32))
