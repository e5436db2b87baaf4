"""Audio features [F, L, E] of a recording: L blocks of E channels for each of F video frames (paper, Section 3.1).

AudioEncoder is what mel.py and wav2vec2.py have in common; FeatureStream computes features as they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from .recording import SAMPLE_RATE, Recording, SampleReader, exact_fps

WINDOW_SECONDS = 30  # seconds of a recording that are encoded at a time
ONE_PASS_SECONDS = 60  # seconds; a recording up to this length is one window


@dataclass(frozen=True)
class WholeRecording:
    """What encoding a window needs to know of the whole recording: its frames of video, the frame rate, its samples at
    16 kHz, and statistics that only some encoders take (see their `measure`)."""

    frames: int
    fps: Fraction
    samples: int
    statistics: tuple[Tensor, ...] = ()


class AudioEncoder(nn.Module):
    """Turns recordings into features, window by window, so that memory does not grow with their length.

    A recording of more than ONE_PASS_SECONDS has windows at multiples of WINDOW_SECONDS, wherever one begins to read: a
    frame's features are always the same numbers.
    """

    name: str
    blocks: int  # L
    channels: int  # E
    context_seconds = 0.0  # seconds that a window sees on either side of what is kept of it
    settings = ""  # what decides its features beside the weights, as text

    def measure(self, recording: Recording, fps: float) -> WholeRecording:
        """What encoding needs to know of the whole recording. InputError for a frame rate outside 1 to 240."""
        rate = exact_fps(fps)
        return WholeRecording(
            recording.frames(fps), rate, math.ceil(Fraction(recording.samples * SAMPLE_RATE, recording.rate))
        )

    def reach(self, low: int, high: int, whole: WholeRecording) -> tuple[int, int]:
        """(start, stop) of the samples at 16 kHz that encode_window needs for frames low .. high - 1."""
        raise NotImplementedError

    def encode_window(self, samples: Tensor, low: int, high: int, whole: WholeRecording) -> Tensor:
        """Features [high - low, L, E] on the CPU of frames low .. high - 1, from the samples [n] that `reach` names."""
        raise NotImplementedError

    def stream(self, recording: Recording, fps: float, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Yield (first frame, features [n, L, E] on the CPU) of each window, from the one with frame `first` on."""
        whole, samples = self.measure(recording, fps), Samples(recording.mono_16k())
        part = whole.frames if whole.frames <= ONE_PASS_SECONDS * whole.fps else round(WINDOW_SECONDS * whole.fps)
        context = math.ceil(self.context_seconds * whole.fps)
        for begin in range(first - first % part, whole.frames, part):
            end = min(begin + part, whole.frames)
            low, high = max(begin - context, 0), min(end + context, whole.frames)
            with torch.no_grad():
                window = samples.take(*self.reach(low, high, whole))
                features = self.encode_window(window, low, high, whole)[begin - low : end - low]
            yield begin, features

    def encode(self, waveform: Tensor, sample_rate: int, fps: float = 25.0) -> Tensor:
        """All features at once: [channels, S] or [S] -> [F, L, E] on the CPU, F = ceil(S / sample_rate * fps)."""
        return torch.cat([features for _, features in self.stream(Recording((waveform, sample_rate)), fps)])


@contextmanager
def layer_outputs(layers: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """What each of `layers` of a transformers model puts out while the context is open, in order: transformers 5
    returns no hidden states of encoders. Its layers give tensors, those before it tuples."""
    outputs: list[Tensor] = []

    def keep(_module, _inputs, output) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class Samples:
    """Mono samples of a 16 kHz stream, taken by their place in it, forward only."""

    def __init__(self, stream: Iterator[Tensor]):
        self._reader = SampleReader((block[None], SAMPLE_RATE) for block in stream)
        self._held, self._first = torch.zeros(1, 0), 0

    def take(self, start: int, stop: int) -> Tensor:
        """Samples start .. stop - 1 [stop - start], silence outside. Nothing before `start` can be taken later."""
        begin = max(0, start)
        self._reader.skip(begin - self._reader.position)
        kept = self._held[:, max(0, begin - self._first) :]
        self._held = torch.cat([kept, self._reader.read(max(0, stop - self._reader.position))], dim=1)
        self._first = begin
        inside = self._held[0, : stop - begin]
        return nn.functional.pad(inside, (begin - start, stop - begin - len(inside)))


class FeatureStream:
    """The features of a recording, computed as they are needed: len() frames, and [first:last] -> [n, L, E].

    Meant to be read from the start to the end; reading an earlier part decodes the recording anew.
    """

    def __init__(self, encoder: AudioEncoder, recording: Recording, fps: float):
        self.encoder, self.recording, self.fps = encoder, recording, fps
        self._windows: Iterator[tuple[int, Tensor]] | None = None
        self._held: list[tuple[int, Tensor]] = []

    def __len__(self) -> int:
        return self.recording.frames(self.fps)

    def __getitem__(self, frames: slice) -> Tensor:
        first, last, _ = frames.indices(len(self))
        if not self._held or first < self._held[0][0]:
            self._windows, self._held = self.encoder.stream(self.recording, self.fps, first), []
        try:
            while not self._held or _end(self._held[-1]) < last:
                self._held.append(next(self._windows))
                while len(self._held) > 1 and _end(self._held[0]) <= first:
                    del self._held[0]
        except BaseException:
            self._held = []  # a generator that failed gives no more: begin again
            raise
        return torch.cat([features[max(first - start, 0) : max(last - start, 0)] for start, features in self._held])


def _end(window: tuple[int, Tensor]) -> int:
    """The frame after a window's last."""
    return window[0] + len(window[1])
