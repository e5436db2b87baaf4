"""Recordings, read as they are needed: any media file's sound, or samples in memory. Nothing here grows with length."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..config import FPS_RANGE
from ..errors import InputError
from ..files import check_file

SAMPLE_RATE = 16000  # Hz, of every encoder's input
_BLOCK = 65536  # samples that are handed on at a time
CENTRE, FEWEST = 2, 5  # number of the centre channel, where the dialogue is, of so many channels or more
CENTRE_SHARE = 0.01  # of the loudest channel's power that the centre has at least, where somebody speaks there
CANCELLED = 0.1  # of the power of a mean of independent channels, below which they cancel each other out
FULL_SCALE = 100.0  # samples above it are not of -1..1 but of whole numbers' scale


def frame_count(samples: int, sample_rate: int, fps: float = 25.0) -> int:
    """How many frames of video `samples` last: ceil(samples / sample_rate * fps), in rational arithmetic.

    InputError for a sample rate below 1 or a frame rate outside 1 to 240.
    """
    if sample_rate < 1:
        raise InputError(f"The sample rate is {sample_rate}; it must be greater than 0.")
    return math.ceil(Fraction(samples) * exact_fps(fps) / sample_rate)


def exact_fps(fps: float) -> Fraction:
    """The frame rate as a fraction (29.97002997 becomes 30000/1001); InputError outside 1 to 240."""
    if not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:
        raise InputError(f"The frame rate is {fps}; choose one between {FPS_RANGE[0]} and {FPS_RANGE[1]}.")
    return Fraction(fps).limit_denominator(10000)


@dataclass(frozen=True)
class Scan:
    """What one pass over a recording says of it.

    digest: of its samples. gain: what brings them to full scale -1..1. heard: the channel that speaks for all, or None
    for their mean.
    """

    rate: int
    channels: int
    samples: int
    digest: str
    gain: float
    heard: int | None


class Sound:
    """Samples that can be read again and again, from the start on, without ever being held as a whole.

    rate, channels, samples and digest (of the samples) are exact: what containers say of their length is an estimate.
    They take one pass over the sound, made when first asked for. A kind of sound says what its `_blocks` are.
    """

    path: Path | None = None  # of the file that may change while it is read
    _strict = False

    def _blocks(self, notes: list[str] | None = None) -> Iterator[tuple[Tensor, int]]:
        """The samples, as in `blocks`; notes: what is missing is added to it."""
        raise NotImplementedError

    def blocks(self) -> Iterator[tuple[Tensor, int]]:
        """Yield blocks float32 [channels, n >= 1] from the start to the end, each with the sample rate.

        InputError at the end where a file no longer holds the samples that it was found to hold.
        """
        scan, digest = self._scan, hashlib.sha256()
        for block, rate in self._blocks():
            yield block if scan.gain == 1 else block * scan.gain, rate
            if self.path:
                digest.update(_bytes(block))
        if self.path and digest.hexdigest() != scan.digest:
            raise InputError(f"{self.path} was changed while the video was made; start it again.")

    def mono_16k(self) -> Iterator[Tensor]:
        """What encoders hear: one channel at 16 kHz, float32 [n], ceil(S / rate * 16000) samples in all.

        The mean of the channels; of 5.1 and the like the centre, and the loudest where they cancel each other out.
        Resampled by libswresample, whose filter goes on from block to block.
        """
        resampler, heard = None, self._scan.heard
        for block, rate in self.blocks():
            resampler = resampler or Resampler(rate)
            piece = resampler.push(block.mean(dim=0) if heard is None else block[heard])
            if len(piece):  # not while the filter fills
                yield piece
        if len(piece := resampler.rest()):
            yield piece

    def frames(self, fps: float) -> int:
        """How many frames of video the recording lasts."""
        return frame_count(self.samples, self.rate, fps)

    def sample_of(self, frame: int, fps: float) -> int:
        """The first sample of frame `frame`; for the frame after the last, the number of samples."""
        return min(math.ceil(frame * self.rate / exact_fps(fps)), self.samples)

    @property
    def rate(self) -> int:
        """Samples a second."""
        return self._form[0]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self._form[1]

    @property
    def samples(self) -> int:
        """Samples of each channel."""
        return self._form[2]

    @property
    def digest(self) -> str:
        """The digest of the samples: SHA-256 in hexadecimal."""
        return self._scan.digest

    @property
    def _form(self) -> tuple[int, int, int]:
        """(rate, channels, samples)."""
        return self._scan.rate, self._scan.channels, self._scan.samples

    @functools.cached_property
    def _scan(self) -> Scan:
        digest, notes, samples, peak, powers, mean_power = hashlib.sha256(), [], 0, 0.0, 0.0, 0.0
        for block, rate in self._blocks(notes):  # noqa: B007 (the last one's are used below)
            samples += block.shape[1]
            digest.update(_bytes(block))
            peak = max(peak, float(block.abs().max()))
            powers = powers + block.double().square().sum(1)
            mean_power += float(block.double().mean(0).square().sum())
        gain, heard = 1.0, _heard(powers, mean_power)
        if peak > FULL_SCALE:
            bits = next((bits for bits in (15, 23) if peak <= 2**bits), 31)
            gain = 2.0**-bits
            notes.append(f"The audio has samples up to {peak:.0f}, as {bits + 1}-bit numbers have; it is scaled down.")
        if notes and self._strict:
            raise InputError(notes[0])
        for note in notes:
            warnings.warn(note, stacklevel=1)  # cached_property is what called
        return Scan(rate, block.shape[0], samples, digest.hexdigest(), gain, heard)


class Recording(Sound):
    """The sound of a media file, or samples in memory.

    Args:
        source: any media file with sound, a video included, or (waveform [channels, S] or [S], sample_rate).
        duration: seconds to take; None takes all.
        track: which of a file's several audio tracks; None takes the first in which there is something to hear.
        strict: InputError where something is missing from a file, or unusual in it; else that is said in warnings.

    Everything raises InputError where the source is missing, without sound that can be decoded or without samples, or
    holds NaN or infinite samples.
    """

    def __init__(
        self, source: str | Path | tuple[Tensor, int], duration: float | None = None, track: int | None = None,
        strict: bool = False,
    ):  # fmt: skip
        if duration is not None and not (math.isfinite(duration) and duration > 0):
            raise InputError(f"The duration is {duration} seconds; it must be finite and greater than 0.")
        self.path = check_file(source, "audio") if isinstance(source, str | os.PathLike) else None
        self._samples = None if self.path else checked_samples(*source)
        self._duration, self._track, self._strict = duration, track, strict

    def _blocks(self, notes: list[str] | None = None) -> Iterator[tuple[Tensor, int]]:
        """The samples as they are; notes: what is missing is added to it."""
        from .decoding import audio_blocks  # training on prepared speech does without PyAV

        position, end = 0, math.inf
        for block, rate in audio_blocks(self.path, self._track, notes) if self.path else _pieces(*self._samples):
            if self._duration is not None:
                end = max(1, round(Fraction(self._duration) * rate))
            yield block[:, : end - position] if end < math.inf else block, rate
            position += block.shape[1]
            if position >= end:
                return

    @functools.cached_property
    def _form(self) -> tuple[int, int, int]:
        if self.path:
            return super()._form
        waveform, rate = self._samples  # in memory: it need not be read for that
        wanted = math.inf if self._duration is None else max(1, round(Fraction(self._duration) * rate))
        return rate, waveform.shape[0], min(waveform.shape[1], wanted)


class Resampler:
    """A mono sound at another rate, piece by piece: float32 [n], ceil(S / rate * to) samples in all."""

    def __init__(self, rate: int, to: int = SAMPLE_RATE):
        self.rate, self.to, self._given, self._made, self._filter = rate, to, 0, 0, None
        if rate != to:
            import av  # training on prepared speech does without it

            self._filter = av.AudioResampler(format="fltp", layout="mono", rate=to)

    def push(self, samples: Tensor) -> Tensor:
        """What the next samples [n] add; what the filter still holds comes later."""
        self._given += len(samples)
        if self._filter is None:
            return samples
        import av

        frame = av.AudioFrame.from_ndarray(samples.numpy()[None], format="fltp", layout="mono")
        frame.sample_rate = self.rate
        return self._take(frame)

    def rest(self) -> Tensor:
        """What the filter holds at the end of the sound, and silence up to exactly its length."""
        if self._filter is None:
            return torch.zeros(0)
        missing = math.ceil(Fraction(self._given * self.to, self.rate)) - self._made
        rest = self._take(None)[: max(0, missing)]
        return torch.cat([rest, torch.zeros(max(0, missing) - len(rest))])

    def _take(self, frame) -> Tensor:
        pieces = [torch.from_numpy(out.to_ndarray()[0]) for out in self._filter.resample(frame)]
        made = torch.cat([*pieces, torch.zeros(0)])
        self._made += len(made)
        return made


def _heard(powers: Tensor, mean_power: float) -> int | None:
    """The channel to hear instead of the mean, from the sums of squares of each [channels] and of the mean."""
    count, loudest = len(powers), int(powers.argmax())
    if count >= FEWEST and powers[CENTRE] > CENTRE_SHARE * powers[loudest]:
        return CENTRE
    cancelled = count > 1 and mean_power < CANCELLED * float(powers.sum()) / count**2
    return loudest if cancelled else None


def _bytes(block: Tensor):
    """The samples of a block in the order of time, so that a digest does not depend on how blocks are cut."""
    return block.t().contiguous().numpy()


def checked_samples(waveform: Tensor, rate: int) -> tuple[Tensor, int]:
    """(samples [channels, S], rate) of [channels, S] or [S]; InputError for another shape, none, NaN, infinite ones."""
    waveform = waveform.detach()[None] if waveform.ndim == 1 else waveform.detach()
    if waveform.ndim != 2 or waveform.shape[1] == 0 or waveform.shape[0] == 0:
        raise InputError(f"Audio has the shape [channels, samples] or [samples], not {list(waveform.shape)}.")
    if rate < 1:
        raise InputError(f"The sample rate is {rate}; it must be greater than 0.")
    for piece in waveform.split(1 << 20, dim=1):
        if not torch.isfinite(piece).all():
            raise InputError("The audio has NaN or infinite samples; export it again from the program that made it.")
    return waveform, int(rate)


def _pieces(waveform: Tensor, rate: int) -> Iterator[tuple[Tensor, int]]:
    return ((piece.float().cpu(), rate) for piece in waveform.split(_BLOCK, dim=1))


class SampleReader:
    """Samples of a stream of blocks, taken in any number, forward only.

    The first block is decoded at once, so that errors come early.
    """

    def __init__(self, blocks: Iterator[tuple[Tensor, int]]):
        self._blocks = blocks
        self._held, self.rate = next(blocks)
        self.channels = self._held.shape[0]
        self.position = 0  # samples taken so far

    def read(self, count: int) -> Tensor:
        """The next `count` samples [channels, n]; fewer at the end, none beyond it."""
        parts, missing = [], count
        while missing > 0:
            if self._held.shape[1] == 0:
                self._held = next(self._blocks, (self._held, 0))[0]
                if self._held.shape[1] == 0:
                    break
            parts.append(self._held[:, :missing])
            self._held = self._held[:, missing:]
            missing -= parts[-1].shape[1]
        self.position += count - missing
        return torch.cat(parts, dim=1) if parts else torch.zeros(self.channels, 0)

    def skip(self, count: int) -> None:
        """Leave out the next `count` samples."""
        end = self.position + count
        while self.position < end and self.read(min(_BLOCK, end - self.position)).shape[1]:
            pass


def read_audio(path: str | Path, start: float = 0.0, duration: float | None = None) -> tuple[Tensor, int]:
    """Decode the sound of any media file, a video included.

    start and duration are in seconds; None reads to the end. Returns (waveform float32 [channels, samples] at the
    file's own rate, full scale -1..1, and that sample rate). Encoder delay and padding that the container declares are
    left out, so the sample count is that of the original recording. One sample, and silence, are valid.

    Raises InputError where a Recording does, and where it ends before `start`.
    """
    path = check_file(path, "audio")
    if not (math.isfinite(start) and start >= 0):
        raise InputError(f"The start is {start} seconds; it must be finite, and 0 or later.")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise InputError(f"The duration is {duration} seconds; it must be finite and greater than 0.")
    parts: list[Tensor] = []
    rate = position = begin = 0
    enough = None if duration is None else start + duration + 1  # a file of hours is not read for seconds of it
    for block, rate in Recording(path, enough).blocks():
        begin = round(Fraction(start) * rate)
        end = math.inf if duration is None else begin + max(1, round(Fraction(duration) * rate))
        low, high = (min(max(edge - position, 0), block.shape[1]) for edge in (begin, end))
        parts.append(block[:, low:high].clone())
        position += block.shape[1]
        if position >= end:
            break
    if position <= begin:
        raise InputError(f"The audio in {path} ends before {start} seconds; choose an earlier start.")
    return torch.cat(parts, dim=1), rate
