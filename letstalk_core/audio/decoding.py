"""The sound of any media file, block by block as it is decoded, with notes on what is missing from it.

One rule for every container: what can be decoded is used, and what is missing is said, in a note. Refused is only what
gives no sound at all, and what is not a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from ..errors import InputError
from ..files import check_file

LONGEST_PADDING = 8192  # samples that an encoder may append to fill its last packet
SILENT = 1e-3  # largest sample of a track in which nobody speaks
UNKNOWN = 1_900_000_000  # bytes from which on the length in a WAV's header may stand for one that was not known
SLACK = 0.02  # seconds by which a file may be shorter than it says; by 0.25 where edit lists and delays count


class Losses:
    """What could not be read of a file."""

    def __init__(self):
        self.parts, self.seconds = 0, Fraction(0)
        self.error: Exception | None = None

    def add(self, error: Exception, seconds: Fraction = Fraction(0)) -> None:
        self.parts, self.seconds, self.error = self.parts + 1, self.seconds + seconds, error


def audio_blocks(
    path: str | Path, track: int | None = None, notes: list[str] | None = None
) -> Iterator[tuple[Tensor, int]]:
    """Yield a file's sound as it is decoded: blocks float32 [channels, n >= 1] and the sample rate.

    track: which of several; None takes the first in which there is something to hear. notes: sentences on what is
    missing are added to it at the end. Memory does not grow with the length. Raises InputError, while it is iterated,
    where the file is missing, has no sound that can be decoded, or holds samples that are not finite.
    """
    path = check_file(path, "audio")
    notes, losses, limits, cut = [] if notes is None else notes, Losses(), [], []
    rate = position = 0
    held: list[Tensor] = []  # the end, until it is known how much of it is sound
    try:
        with _opened(path) as container:
            stream = _track(path, container, track, notes)
            for block, rate in _decoded(container, stream, limits, losses):
                _check_finite(path, block, position, rate)
                position += block.shape[1]
                held.append(block)
                while sum(other.shape[1] for other in held[1:]) >= LONGEST_PADDING:
                    yield held.pop(0), rate
            cut = _missing(path, container, stream, position, rate, limits)
    except av.FFmpegError as error:
        losses.add(error)
    if position == 0 and losses.error:
        raise InputError(
            f"{path} cannot be decoded ({losses.error.strerror or losses.error}): it is damaged, cut short or not a "
            "media file; export or download it again."
        ) from losses.error
    if position == 0:
        raise InputError(f"The audio in {path} has no samples; choose a recording that is not empty.")
    notes += cut
    if losses.parts and not cut:
        several = "a part" if losses.parts == 1 else f"{losses.parts} parts"
        notes.append(
            f"{path} has {several} that cannot be decoded, {float(losses.seconds):.2f} seconds; that is left out."
        )
    rest = torch.cat(held, dim=1)
    padding = position - limits[0] if limits else 0
    if 0 < padding < min(LONGEST_PADDING, rest.shape[1]):
        rest = rest[:, :-padding]
    yield rest, rate


def _opened(path: Path):
    """PyAV's container. A name with a colon is no protocol, and tags of any encoding are none of our business.

    A WAV comes in packets of 64 KiB: in the usual ones of 1 KiB (8 kHz) or 2 KiB (16 kHz) it takes three times as long.
    """
    return av.open(f"file:{path}", options={"max_size": "65536"}, metadata_errors="replace")


def _track(path: Path, container, track: int | None, notes: list[str]):
    """The stream to read; InputError where there is none."""
    streams = container.streams.audio
    if not streams:
        raise InputError(f"{path} has no audio stream; choose a file with sound.")
    if track is not None:
        if not 0 <= track < len(streams):
            raise InputError(f"{path} has {len(streams)} audio tracks; choose 0 to {len(streams) - 1}, not {track}.")
        return streams[track]
    if len(streams) == 1 or _is_heard(path, 0):
        return streams[0]
    heard = next((number for number in range(1, len(streams)) if _is_heard(path, number)), 0)
    if heard:
        notes.append(f"The first of the {len(streams)} audio tracks in {path} is silent; number {heard} is used.")
    return streams[heard]


def _is_heard(path: Path, track: int) -> bool:
    with _opened(path) as container:
        blocks = _decoded(container, container.streams.audio[track], [], Losses())
        return any(float(block.abs().max()) > SILENT for block, _ in blocks)


def _decoded(container, stream, limits: list[int], losses: Losses) -> Iterator[tuple[Tensor, int]]:
    """Decoded blocks [channels, n] with their rate. Puts the stream's true sample count in `limits` where it says one.

    Decoders drop what the encoder put in front, but give the last packet whole; its declared duration says how much of
    it is sound. What cannot be decoded is left out.
    """
    resampler = form = first = None
    for packet in _packets(container, stream, losses):
        for frame in _frames(packet, stream, losses):
            if resampler is None:
                first, rate, layout = frame.pts, frame.sample_rate, frame.layout
            if form != (frame.format.name, frame.layout.name, frame.sample_rate):
                # Converts the sample format only; a stream that changes half way is kept in its first form.
                for out in resampler.resample(None) if resampler else ():
                    yield _planes(out), rate
                form = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
            for out in resampler.resample(frame):
                yield _planes(out), rate
        if packet.pts is not None and first is not None and packet.duration and stream.time_base <= Fraction(1, rate):
            limits[:] = [round((packet.pts + packet.duration - first) * stream.time_base * rate)]
    for out in resampler.resample(None) if resampler else ():
        if out.samples:
            yield _planes(out), rate


def _packets(container, stream, losses: Losses):
    try:
        yield from container.demux(stream)
    except av.FFmpegError as error:  # nothing comes after it
        losses.add(error)


def _frames(packet, stream, losses: Losses):
    try:
        return packet.decode()
    except av.FFmpegError as error:
        losses.add(error, Fraction(packet.duration or 0) * (stream.time_base or 0))
        return []


def _planes(frame) -> Tensor:
    """Packed samples -> [channels, n]; PyAV cannot read more than eight planes."""
    return torch.from_numpy(frame.to_ndarray()).view(-1, len(frame.layout.channels)).T.contiguous()


def _check_finite(path: Path, block: Tensor, position: int, rate: int) -> None:
    bad = ~torch.isfinite(block).all(dim=0)
    if bad.any():
        raise InputError(
            f"The audio in {path} has samples that are NaN or infinite, the first at "
            f"{(position + int(bad.nonzero()[0])) / rate:.3f} seconds; export it again from the program that made it."
        )


# What is missing -----------------------------------------------------------------------------------------------------


def _missing(path: Path, container, stream, samples: int, rate: int, limits: list[int]) -> list[str]:
    """A note where a file is shorter than it says: a download cut short."""
    formats, declared, slack = container.format.name.split(","), None, SLACK
    if "wav" in formats:
        declared = _declared_by_riff(path, samples, rate)
    elif "mp4" in formats:
        slack = 0.25  # the duration of a track may count what edit lists and encoder delay take away
        declared = _duration(stream)
        samples = max(samples, *limits, 0)  # by the clock: a track may have gaps
    elif "mp3" in formats:
        slack = 0.25
        declared = _duration(stream) if _counts_its_frames(path) else None
    elif "matroska" in formats:
        declared = container.duration / av.time_base if container.duration and _segment_is_cut(path) else None
    elif "ogg" in formats:
        if not _has_last_page(path):
            return [f"{path} is cut short: it has no end. What is there is used."]
    elif set(formats) & {"flac", "aiff", "w64", "caf"}:
        declared = _duration(stream)  # the others' lengths are estimates
    if declared is None or samples / max(rate, 1) >= declared - slack:
        return []
    read = samples / max(rate, 1)
    return [f"{path} is cut short or damaged: of its {declared:.2f} seconds {read:.2f} can be read; these are used."]


def _duration(stream) -> float | None:
    return float(stream.duration * stream.time_base) if stream.duration else None


def _declared_by_riff(path: Path, samples: int, rate: int) -> float | None:
    """Seconds by a WAV's header, where that is longer than the file: libavformat takes the length from the file's size.

    Who writes to a pipe does not know the length, and puts something large there.
    """
    header, actual = _read(path, 0, 8), path.stat().st_size
    size = int.from_bytes(header[4:8], "little") + 8
    if header[:4] != b"RIFF" or not actual + 4096 < size < UNKNOWN or not rate:
        return None
    return samples / rate * size / actual


def _counts_its_frames(path: Path) -> bool:
    """Whether an MP3 begins with a frame that says how many there are: else its length is an estimate."""
    head = _read(path, 0, 10)
    tags = 0
    if head[:3] == b"ID3":  # its size in seven bits a byte
        tags = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    first = _read(path, tags, 400)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def _segment_is_cut(path: Path) -> bool:
    """Whether a Matroska or WebM file ends before its segment does."""
    head = _read(path, 0, 4096)
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return False
    length = 9 - head[at].bit_length()  # bytes of the number that follows
    size = int.from_bytes(head[at : at + length], "big") - (1 << 7 * length)
    unknown = (1 << 7 * length) - 1
    return size != unknown and at + length + size > path.stat().st_size


def _has_last_page(path: Path) -> bool:
    """Whether the last page of an Ogg file is marked as the last, and whole."""
    size = path.stat().st_size
    tail = _read(path, max(0, size - 131072), 131072)
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return False
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    return bool(tail[at + 5] & 4) and len(tail) >= at + 27 + tail[at + 26] + sum(segments)


def _read(path: Path, start: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(count)
