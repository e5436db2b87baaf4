"""Training examples from shards of prepared footage, read at random."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config import CONTROLS
from ...errors import InputError
from ...model.audio_projection import whole_windows, window_features
from ..source import Window
from .shard_index import ShardEntry, find_shards, index_shard

HELD = ("latents.npy", "portrait_latents.npy", "features.npy")  # what may lie in a device's memory


class ShardSource:
    """Training examples from shards: a Source (data/source.py), each index one stretch.

    Args:
        paths: a folder of tar files, or the files.
        window: what is cut out.
        latents_digest: encoder_digest of the model's autoencoder; where every stretch has latents of it, clips are
            latents, else pixels. None: always pixels.
        features_shape: (L, E) of the model's audio features.

    Stretches too short for a clip and its memory are left out with a warning. Raises InputError where there is no data,
    where it does not fit the arguments or itself (size, frame rate, audio encoder), or where a file is damaged.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        window: Window,
        *,
        latents_digest: str | None,
        features_shape: tuple[int, int],
    ):
        self.window = window
        entries = [entry for path in find_shards(paths) for entry in index_shard(path)]
        self._entries = self._long_enough(entries)
        self.fps: float = self._same("frames a second", lambda entry: entry.fps)
        self.size: tuple[int, int] = self._same("[H, W]", lambda entry: entry.size)
        self.audio_encoder: str = self._same("audio encoder", lambda entry: entry.audio_encoder)
        shape = self._same("shape of features", lambda entry: entry.arrays["features.npy"].shape[1:])
        if shape != tuple(features_shape):
            raise InputError(
                f"The features of {self._entries[0].path} have the shape {shape} ({self.audio_encoder}), but the model "
                f"needs {tuple(features_shape)}; prepare the videos with the model's audio encoder."
            )
        self.uses_latents, self.held = self._choose_form(latents_digest), False

    def _long_enough(self, entries: list[ShardEntry]) -> list[ShardEntry]:
        length, memory = self.window.clip_frames, self.window.memory_frames
        needed = length + memory
        kept = [entry for entry in entries if entry.frames >= needed]
        if not kept:
            longest = max(entry.frames for entry in entries)
            raise InputError(
                f"The longest stretch of the training data has {longest} frames, but a clip of {length} and its memory "
                f"of {memory} need {needed}; prepare longer stretches, or train shorter clips."
            )
        if len(kept) < len(entries):
            warnings.warn(
                f"{len(entries) - len(kept)} of {len(entries)} stretches have fewer than {needed} frames, which a clip "
                "and its memory need; they are left out.",
                stacklevel=3,
            )
        return kept

    def _same(self, what: str, value_of: Callable[[ShardEntry], Any]) -> Any:
        """The value that all stretches have in common; InputError where they differ."""
        first = self._entries[0]
        for entry in self._entries:
            if value_of(entry) != value_of(first):
                raise InputError(
                    f"{first.path} and {entry.path} do not go together: {what} {value_of(first)} and "
                    f"{value_of(entry)}; train with data that was prepared alike."
                )
        return value_of(first)

    def _choose_form(self, digest: str | None) -> bool:
        """Whether clips are latents. Examples of one source are alike: one stretch without latents makes all pixels."""
        blind = [entry for entry in self._entries if "mp4" not in entry.members]
        foreign = [entry for entry in blind if entry.autoencoder != digest]
        if foreign:
            raise InputError(
                f"{foreign[0].path} has no frames, only latents of the autoencoder {foreign[0].autoencoder}, but "
                f"{'pixels are asked for' if digest is None else f'the model has the autoencoder {digest}'}; "
                "prepare the videos with the model's, or with frames kept."
            )
        without = [
            entry for entry in self._entries if entry.autoencoder != digest or "latents.npy" not in entry.members
        ]
        if blind and without:
            raise InputError(
                f"{blind[0].path} has only latents and {without[0].path} none of the model's autoencoder; train with "
                "data that was prepared alike."
            )
        if blind and self.window.pixel_conditions:
            raise InputError(
                f"{blind[0].path} has latents but no frames, which noise on pixels needs; turn pixel noise off, or "
                "prepare the videos with frames kept."
            )
        return not without

    def hold(self, device: torch.device, most_bytes: float) -> bool:
        """Bring all latents and features into a device's memory, from where examples are cut then; False, and nothing
        is done, where they take more than `most_bytes` or examples need pixels."""
        needed = sum(entry.size_of(HELD) for entry in self._entries)
        if self.uses_latents and not self.window.pixel_conditions and needed <= most_bytes:
            self._entries = [entry.holding(HELD, device) for entry in self._entries]
            self.held = True
        return self.held

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """The name of stretch `index` and the shard it lies in."""
        return self._entries[index].title

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One example of stretch `index`; see Source. Raises InputError where the shard is damaged or gone."""
        entry, window = self._entries[index], self.window
        memory_frames, length = window.memory_frames, window.clip_frames
        first_clip = bool(rng.random() < window.first_clip_share)
        start = int(rng.integers(0 if first_clip else memory_frames, entry.frames - length + 1))
        chosen = int(rng.integers(entry.frames))  # the portrait, where it is one of the frames
        low = start if first_clip else start - memory_frames

        shown = entry.latents if self.uses_latents else entry.pixels
        frames = shown(low, start + length)
        clip, memory = frames[start - low :], frames[: start - low]
        in_latents = self.uses_latents and not window.pixel_conditions
        if self.uses_latents and window.pixel_conditions and start > low:
            memory = entry.pixels(low, start)
        portrait = entry.portrait(chosen, in_latents)
        if first_clip or not memory_frames:
            memory = portrait[None].repeat(memory_frames, 1, 1, 1)
        example = {"clip": clip, "memory": memory, "portrait": portrait, "features": self._windows(entry, start)}
        if window.controls:
            example["controls"] = self._controls(entry, start, chosen)
        return example

    def _controls(self, entry: ShardEntry, start: int, chosen: int) -> Tensor:
        """Windows of the controls of the clip from frame `start` on, [F,W,n]: what differs from the portrait, which is
        frame `chosen` unless the stretch has one of its own. NaN where it is not known."""
        half = self.window.audio_window // 2
        around = torch.arange(start - half, start + self.window.clip_frames + half).clamp(0, entry.frames - 1)
        found = torch.full((len(around), len(self.window.controls)), float("nan"))
        tracks = entry.rows("controls.npy", 0, entry.frames).T if entry.controls else ()
        for name, track in zip(entry.controls, tracks):
            absolute = name == "eyelids"
            if name in self.window.controls and (absolute or "portrait.png" not in entry.members):
                differing = track[around] - (0.0 if absolute else track[chosen])
                found[:, self.window.controls.index(name)] = differing.clamp(*CONTROLS[name])
        return whole_windows(found, self.window.audio_window)

    def _windows(self, entry: ShardEntry, start: int) -> Tensor:
        """Audio windows of the clip from frame `start` on, [F,W,L,E]; the context reaches beyond the stretch."""
        half, first = self.window.audio_window // 2, start + entry.context
        low = max(first - half, 0)
        high = min(first + self.window.clip_frames + half, entry.frames + 2 * entry.context)
        windows = window_features(entry.rows("features.npy", low, high), self.window.audio_window)
        return windows[first - low : first - low + self.window.clip_frames]
