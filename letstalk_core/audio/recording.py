"""Recordings, read as they are needed: any media file's sound, or samples in memory. Nothing here grows with length."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from ..config import FPS_RANGE
from ..errors import InputError
from ..files import check_file

SAMPLE_RATE = 16000  # Hz, of every encoder's input
_LONGEST_PADDING = 8192  # samples that an encoder may append to fill its last packet
_BLOCK = 65536  # samples that are handed on at a time


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


class Recording:
    """A recording that can be read again and again, from its start on, without ever being held as a whole.

    Args:
        source: any media file with sound, a video included, or (waveform [channels, S] or [S], sample_rate).
        duration: seconds to take; None takes all.

    rate, channels, samples and digest (of the samples) are exact: what containers say of their length is an estimate.
    They take one pass over a file, made when first asked for. Everything raises InputError where the source is missing,
    damaged, without sound or samples, or holds NaN or infinite samples.
    """

    def __init__(self, source: str | Path | tuple[Tensor, int], duration: float | None = None):
        if duration is not None and not (math.isfinite(duration) and duration > 0):
            raise InputError(f"The duration is {duration} seconds; it must be finite and greater than 0.")
        self.path = check_file(source, "audio") if isinstance(source, str | os.PathLike) else None
        self._samples = None if self.path else _checked(*source)
        self._duration = duration

    def blocks(self) -> Iterator[tuple[Tensor, int]]:
        """Yield blocks float32 [channels, n >= 1] from the start to the end, each with the sample rate.

        InputError at the end where a file no longer holds the samples that it was found to hold.
        """
        known = self.__dict__.get("_scanned")
        digest = hashlib.sha256()
        for block, rate in self._blocks():
            yield block, rate
            if known and self.path:
                digest.update(_bytes(block))
        if known and self.path and digest.hexdigest() != known[1]:
            raise InputError(f"{self.path} was changed while the video was made; start it again.")

    def _blocks(self) -> Iterator[tuple[Tensor, int]]:
        position, end = 0, math.inf
        for block, rate in audio_blocks(self.path) if self.path else _pieces(*self._samples):
            if self._duration is not None:
                end = max(1, round(Fraction(self._duration) * rate))
            yield block[:, : end - position] if end < math.inf else block, rate
            position += block.shape[1]
            if position >= end:
                return

    def mono_16k(self) -> Iterator[Tensor]:
        """What encoders hear: the mean of the channels at 16 kHz, float32 [n], ceil(S / rate * 16000) samples in all.

        Resampled by libswresample, whose filter goes on from block to block.
        """
        resampler = None
        given = made = 0
        for block, rate in self.blocks():
            mono = block.mean(dim=0)
            given += len(mono)
            if rate == SAMPLE_RATE:
                yield mono
                continue
            resampler = resampler or av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
            frame = av.AudioFrame.from_ndarray(mono.numpy()[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            for out in resampler.resample(frame):
                made += out.samples
                yield torch.from_numpy(out.to_ndarray()[0])
        if resampler is not None:  # what the filter still holds, and exactly as long as the sound
            length = math.ceil(Fraction(given * SAMPLE_RATE, rate))
            rest = [torch.from_numpy(out.to_ndarray()[0]) for out in resampler.resample(None)]
            rest = torch.cat([*rest, torch.zeros(max(0, length - made))])[: max(0, length - made)]
            if len(rest):
                yield rest

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
        return self._scanned[1]

    @functools.cached_property
    def _form(self) -> tuple[int, int, int]:
        """(rate, channels, samples); a recording in memory need not be read for that."""
        if self.path:
            return self._scanned[0]
        waveform, rate = self._samples
        wanted = math.inf if self._duration is None else max(1, round(Fraction(self._duration) * rate))
        return rate, waveform.shape[0], min(waveform.shape[1], wanted)

    @functools.cached_property
    def _scanned(self) -> tuple[tuple[int, int, int], str]:
        """(`_form`, digest), from one pass over the recording."""
        digest, samples = hashlib.sha256(), 0
        for block, rate in self._blocks():  # noqa: B007 (the last one's are used below)
            samples += block.shape[1]
            digest.update(_bytes(block))
        return (rate, block.shape[0], samples), digest.hexdigest()


def _bytes(block: Tensor):
    """The samples of a block in the order of time, so that a digest does not depend on how blocks are cut."""
    return block.t().contiguous().numpy()


def _checked(waveform: Tensor, rate: int) -> tuple[Tensor, int]:
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


# Decoding ------------------------------------------------------------------------------------------------------------


def read_audio(path: str | Path, start: float = 0.0, duration: float | None = None) -> tuple[Tensor, int]:
    """Decode the first audio stream of any media file, a video included.

    start and duration are in seconds; None reads to the end. Returns (waveform float32 [channels, samples] at the
    file's own rate, full scale -1..1, and that sample rate). Encoder delay and padding that the container declares are
    left out, so the sample count is that of the original recording. One sample, and silence, are valid.

    Raises InputError where the file is missing, empty, damaged, has no audio stream or no samples, holds NaN or
    infinite samples, or ends before `start`.
    """
    path = check_file(path, "audio")
    if not (math.isfinite(start) and start >= 0):
        raise InputError(f"The start is {start} seconds; it must be finite, and 0 or later.")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise InputError(f"The duration is {duration} seconds; it must be finite and greater than 0.")
    parts: list[Tensor] = []
    rate = position = begin = 0
    for block, rate in audio_blocks(path):
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


def audio_blocks(path: str | Path) -> Iterator[tuple[Tensor, int]]:
    """Yield the sound that read_audio reads as it is decoded: blocks float32 [channels, n >= 1] and the sample rate.

    Memory does not grow with the length. Raises InputError, while it is iterated, for files that read_audio refuses.
    """
    path = check_file(path, "audio")
    rate = position = 0
    held: list[Tensor] = []  # the end, until it is known how much of it is sound
    limits: list[int] = []
    try:
        with av.open(f"file:{path}") as container:  # a name with a colon is no protocol
            if not container.streams.audio:
                raise InputError(f"{path} has no audio stream; choose a file with sound.")
            stream = container.streams.audio[0]
            for block, rate in _decoded(container, stream, limits):
                _check_finite(path, block, position, rate)
                position += block.shape[1]
                held.append(block)
                while sum(other.shape[1] for other in held[1:]) >= _LONGEST_PADDING:
                    yield held.pop(0), rate
            _check_whole(path, container, stream, position, rate, limits)
    except (av.FFmpegError, UnicodeDecodeError) as error:
        at = f" at {position / rate:.2f} seconds" if rate else ""
        raise InputError(
            f"{path} cannot be decoded{at} ({getattr(error, 'strerror', None) or error}): it is damaged, cut short or "
            "not a media file; export or download it again."
        ) from error
    if position == 0:
        raise InputError(f"The audio in {path} has no samples; choose a recording that is not empty.")
    rest = torch.cat(held, dim=1)
    padding = position - limits[0] if limits else 0
    if 0 < padding < min(_LONGEST_PADDING, rest.shape[1]):
        rest = rest[:, :-padding]
    yield rest, rate


def _decoded(container, stream, limits: list[int]) -> Iterator[tuple[Tensor, int]]:
    """Decoded blocks [channels, n] with their rate. Puts the stream's true sample count in `limits` where it says one.

    Decoders drop what the encoder put in front, but give the last packet whole; its declared duration says how much of
    it is sound.
    """
    resampler = form = first = None
    for packet in container.demux(stream):
        for frame in packet.decode():
            if resampler is None:
                first, rate, layout = frame.pts, frame.sample_rate, frame.layout
            if form != (frame.format.name, frame.layout.name, frame.sample_rate):
                # Converts the sample format only; a stream that changes half way is kept in its first form.
                for out in resampler.resample(None) if resampler else ():
                    yield torch.from_numpy(out.to_ndarray()), rate
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            for out in resampler.resample(frame):
                yield torch.from_numpy(out.to_ndarray()), rate
        if packet.pts is not None and first is not None and packet.duration and stream.time_base <= Fraction(1, rate):
            limits[:] = [round((packet.pts + packet.duration - first) * stream.time_base * rate)]
    for out in resampler.resample(None) if resampler else ():
        if out.samples:
            yield torch.from_numpy(out.to_ndarray()), rate


def _check_finite(path: Path, block: Tensor, position: int, rate: int) -> None:
    bad = ~torch.isfinite(block).all(dim=0)
    if bad.any():
        raise InputError(
            f"The audio in {path} has samples that are NaN or infinite, the first at "
            f"{(position + int(bad.nonzero()[0])) / rate:.3f} seconds; export it again from the program that made it."
        )


def _check_whole(path: Path, container, stream, samples: int, rate: int, limits: list[int]) -> None:
    """Raises InputError where a file is shorter than its header says (a download cut short): not quietly less sound."""
    slack = 0.02  # seconds
    declared = float(stream.duration * stream.time_base) if stream.duration and rate else 0.0
    if container.format.name == "wav":  # libavformat takes the length from the file's size
        with path.open("rb") as file:
            header = file.read(8)
        size = int.from_bytes(header[4:8], "little") + 8
        actual = path.stat().st_size
        if header[:4] == b"RIFF" and actual + 4096 < size < 0x7FFF0000:  # larger: written to a pipe, length unknown
            declared = samples / rate * size / actual if samples else 0.0
    elif "mp4" in container.format.name.split(","):
        slack = 0.25  # the duration of a track may count what edit lists and encoder delay take away
        samples = max(samples, *limits, 0)  # by the clock: a track may have gaps
    elif container.format.name not in ("flac", "aiff", "w64", "caf"):
        return  # the others' lengths are estimates
    if samples / max(rate, 1) < declared - slack:
        raise InputError(
            f"{path} is cut short: it should last {declared:.2f} seconds and ends at {samples / rate:.2f}; "
            "export or download it again."
        )
