"""Features of sound that is still coming in."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from ..errors import InputError
from .encoder import AudioEncoder
from .recording import SAMPLE_RATE, Recording, Resampler, checked_samples, exact_fps, frame_count

KEPT_SECONDS = 30  # seconds of the latest sound that are kept, which its level is measured on


class LiveFeatures:
    """Audio features of sound that arrives piece by piece, as a ClipSampler takes them: len() frames so far, and
    [first:last] -> [n,L,E].

    They are those of a recording that ends where the sound ends so far and of which the latest KEPT_SECONDS are known:
    what has not come yet is silence to the encoder, and the level is that of what has. So the latest frames' features
    still change with what follows them, and a sound that came whole has the features of a recording. Memory does not
    grow.
    """

    def __init__(self, encoder: AudioEncoder, fps: float, sample_rate: int):
        self.encoder, self.fps, self.sample_rate = encoder, fps, sample_rate
        self._resampler = Resampler(sample_rate)
        self._known, self._first = torch.zeros(0), 0  # the latest samples at 16 kHz, and the place of the first of them
        self._given, self._ended = 0, False

    def add(self, samples: Tensor) -> None:
        """Take the next samples, [channels, n] or [n] in -1..1; the mean of the channels is heard.

        InputError for another shape, none, NaN, and after the end.
        """
        if self._ended:
            raise InputError("The sound has ended; begin another stream for what follows.")
        samples, _ = checked_samples(samples, self.sample_rate)
        self._given += samples.shape[1]
        self._keep(self._resampler.push(samples.float().cpu().mean(0)))

    def end(self) -> None:
        """Nothing more comes: the frame that the sound ends in counts, too."""
        self._keep(self._resampler.rest())
        self._ended = True

    def _keep(self, samples: Tensor) -> None:
        kept = self._known[-KEPT_SECONDS * SAMPLE_RATE :]  # and all that is new, however long
        self._first += len(self._known) - len(kept)
        self._known = torch.cat([kept, samples])

    def __len__(self) -> int:
        if self._ended:
            return frame_count(self._given, self.sample_rate, self.fps)
        return math.floor((self._first + len(self._known)) * exact_fps(self.fps) / SAMPLE_RATE)

    def __getitem__(self, frames: slice) -> Tensor:
        low, high, _ = frames.indices(len(self))
        context = math.ceil(self.encoder.context_seconds * self.fps)
        begin, end = max(low - context, 0), min(high + context, len(self))
        known = self.encoder.measure(Recording((self._known, SAMPLE_RATE)), self.fps)
        whole = dataclasses.replace(known, frames=len(self), samples=self._first + len(self._known))
        with torch.no_grad():
            window = self._window(*self.encoder.reach(begin, end, whole))
            return self.encoder.encode_window(window, begin, end, whole)[low - begin : high - begin]

    def _window(self, start: int, stop: int) -> Tensor:
        """Samples start .. stop - 1, silence where they are not known."""
        start, stop = start - self._first, stop - self._first
        inside = self._known[max(0, start) : max(0, stop)]
        before = min(max(0, -start), stop - start)
        return nn.functional.pad(inside, (before, stop - start - before - len(inside)))
