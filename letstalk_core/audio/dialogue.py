"""The sound of several speakers: each one's own voice, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from ..errors import InputError
from .recording import Resampler, SampleReader, Sound, exact_fps

CHANNELS = {"left": 0, "right": 1}
_BLOCK = 65536  # samples that are mixed at a time


class Channel(Sound):
    """One channel of a sound, as where each speaker has one of a stereo recording.

    number: 0 is the first; or "left", "right". InputError, when it is first read, where there is no such channel.
    """

    def __init__(self, source: Sound, number: int | str):
        if str(number) not in CHANNELS and not str(number).isdecimal():
            raise InputError(f"The channel is {number!r}; choose left, right or a number (0 is the first).")
        self.source, self.number = source, CHANNELS.get(number) if number in CHANNELS else int(number)

    def _blocks(self, notes: list[str] | None = None) -> Iterator[tuple[Tensor, int]]:
        if self.number >= self.source.channels:
            raise InputError(
                f"{self.source.path or 'The recording'} has {self.source.channels} channel(s), and channel "
                f"{self.number} is not among them (0 is the first); choose another, or give each speaker a recording."
            )
        return ((block[self.number, None], rate) for block, rate in self.source.blocks())


class Lasting(Sound):
    """A sound that lasts `seconds`: silence follows it."""

    def __init__(self, source: Sound, seconds: Fraction):
        self.source, self.seconds = source, seconds

    def frames(self, fps: float) -> int:
        """Of exactly `seconds`, which may end between two samples."""
        return math.ceil(self.seconds * exact_fps(fps))

    def _blocks(self, notes: list[str] | None = None) -> Iterator[tuple[Tensor, int]]:
        missing = math.ceil(self.seconds * self.source.rate)
        for block, rate in self.source.blocks():
            missing -= block.shape[1]
            yield block, rate
        while missing > 0:
            yield torch.zeros(len(block), min(missing, _BLOCK)), rate
            missing -= _BLOCK


class Mix(Sound):
    """The sum of sounds that begin together: as long as the longest, at the highest of their rates, in mono, or in
    stereo where one of them is not mono; one of more than two channels is mixed to one first."""

    def __init__(self, sounds: Sequence[Sound]):
        self.sounds = tuple(sounds)

    def _blocks(self, notes: list[str] | None = None) -> Iterator[tuple[Tensor, int]]:
        rate = max(sound.rate for sound in self.sounds)
        readers = [SampleReader(_resampled(sound, rate)) for sound in self.sounds]
        channels = min(2, max(reader.channels for reader in readers))
        while True:
            pieces = [reader.read(_BLOCK) for reader in readers]
            length = max(piece.shape[1] for piece in pieces)
            if not length:
                return
            mixed = torch.zeros(channels, length)
            for piece in pieces:
                mixed[:, : piece.shape[1]] += piece if len(piece) <= 2 else piece.mean(0)
            yield mixed, rate


def _resampled(sound: Sound, rate: int) -> Iterator[tuple[Tensor, int]]:
    """The blocks of a sound at another rate."""
    if sound.rate == rate:
        yield from sound.blocks()
        return
    resamplers = [Resampler(sound.rate, rate) for _ in range(sound.channels)]
    for block, _ in sound.blocks():
        pieces = [resampler.push(channel) for resampler, channel in zip(resamplers, block, strict=True)]
        if len(pieces[0]):  # not while the filter fills
            yield torch.stack(pieces), rate
    if len((rest := torch.stack([resampler.rest() for resampler in resamplers]))[0]):
        yield rest, rate


def together(voices: Sequence[Sound]) -> Sound:
    """What is heard of voices in one video: the one, the recording that all of them are channels of, or their mix."""
    first = voices[0]
    if len(voices) == 1:
        return first
    if all(isinstance(voice, Channel) for voice in voices) and len({voice.source.digest for voice in voices}) == 1:
        return first.source
    return Mix(voices)


def seconds_of(sound: Sound) -> Fraction:
    """How long a sound lasts."""
    return Fraction(sound.samples, sound.rate)
