"""From a recording to audio features: decoding, frame counting, log-mel features, and the choice of the encoder.

Every encoder gives features [F, L, E], L blocks of E channels for each of F video frames. The paper (section 3.1) uses
wav2vec2 (wav2vec2.py beside this file); the bundled model uses the log-mel features here, which need no download.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import torch
import torchaudio
from torch import Tensor, nn

from .errors import InputError

SAMPLE_RATE = 16000  # of every encoder's input
MEL_COLUMNS = 4  # L: columns a video frame, 10 ms apart at 25 fps
MEL_BANDS = 80  # E
MEL_WINDOW = 400  # samples: 25 ms
MEL_FFT = 512
MEL_REACH = MEL_FFT // 2  # samples on either side of a column's centre that it may depend on
MEL_FLOOR = 1e-8  # power, where 1 is a full-scale sine: -80 dB
MEL_MEAN, MEL_STD = -5.5, 1.5  # of log10 power over ordinary speech: fixed, so that features are local in time
_LONGEST_PADDING = 8192  # samples that an encoder may append to fill its last packet
_CHUNK_FRAMES = 1500  # video frames of mel computed at a time: bounds memory, changes nothing else


def frame_count(samples: int, sample_rate: int, fps: float = 25.0) -> int:
    """Exactly ceil(samples / sample_rate * fps), in rational arithmetic; InputError unless the rate is at least 1."""
    if sample_rate < 1:
        raise InputError(f"The sample rate is {sample_rate}; it must be greater than 0.")
    return math.ceil(Fraction(samples) * exact_fps(fps) / sample_rate)


def exact_fps(fps: float) -> Fraction:
    """The frame rate as a fraction (29.97002997 becomes 30000/1001); InputError outside 1 to 240."""
    if not 1 <= fps <= 240:
        raise InputError(f"The frame rate is {fps}; choose one between 1 and 240.")
    return Fraction(fps).limit_denominator(10000)


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


def check_file(path: str | Path, kind: str) -> Path:
    """The path, if it is a file that is there, readable and not empty; else InputError. kind: "audio", "picture"..."""
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give the path of one {kind} file.")
    if not os.path.exists(path):  # unlike Path.exists, False for impossible names too
        raise InputError(f"There is no file {path}; check the path of the {kind} file.")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its permissions.") from error
    if empty:
        raise InputError(f"{path} is empty (0 bytes); choose another {kind} file.")
    return path


def audio_blocks(path: str | Path) -> Iterator[tuple[Tensor, int]]:
    """What read_audio reads, as it is decoded: blocks float32 [channels, n >= 1], each with the sample rate.

    Memory does not grow with the length. Raises what read_audio raises, while it is iterated.
    """
    path = check_file(path, "audio")
    rate = position = 0
    held: list[Tensor] = []  # the end, until it is known how much of it is sound
    limits: list[int] = []
    try:
        with av.open(str(path)) as container:
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
    resampler = first = None
    for packet in container.demux(stream):
        for frame in packet.decode():
            if resampler is None:
                first, rate = frame.pts, frame.sample_rate
                # Converts the sample format only, and keeps a stream that changes half way in its first form.
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
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
    """A file that is shorter than its header says is an error (a download cut short), not quietly less sound."""
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


# Encoding ------------------------------------------------------------------------------------------------------------


def to_mono_16k(waveform: Tensor, sample_rate: int) -> Tensor:
    """[channels, S] or [S] at any rate -> float32 [ceil(S / sample_rate * 16000)]: mean of the channels, resampled."""
    if waveform.ndim not in (1, 2) or waveform.shape[-1] == 0:
        raise InputError(f"Audio has the shape [channels, samples] or [samples], not {list(waveform.shape)}.")
    if sample_rate < 1:
        raise InputError(f"The sample rate is {sample_rate}; it must be greater than 0.")
    mono = waveform.float() if waveform.ndim == 1 else waveform.float().mean(dim=0)
    if not torch.isfinite(mono).all():
        raise InputError("The audio has NaN or infinite samples; export it again from the program that made it.")
    if sample_rate == SAMPLE_RATE:
        return mono
    ratio = Fraction(SAMPLE_RATE, sample_rate)
    length = math.ceil(len(mono) * ratio)
    if ratio.numerator * ratio.denominator < 2_000_000:
        resampled = torchaudio.functional.resample(mono, ratio.denominator, ratio.numerator)[:length]
    else:  # 47999 Hz and such: torchaudio's table of filters would take gigabytes
        resampled = _resample_odd(mono, sample_rate)[:length]
    return nn.functional.pad(resampled, (0, length - len(resampled)))


def _resample_odd(mono: Tensor, sample_rate: int) -> Tensor:
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    frame = av.AudioFrame.from_ndarray(mono.detach().cpu().numpy()[None], format="fltp", layout="mono")
    frame.sample_rate = sample_rate
    parts = [out.to_ndarray()[0] for out in (*resampler.resample(frame), *resampler.resample(None))]
    return torch.cat([torch.from_numpy(part) for part in parts]).to(mono.device)


@functools.lru_cache(maxsize=4)
def _mel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """(window [512], scaled so that a full-scale sine has power 1; filters [257, 80], each with a peak of 1)."""
    window = torch.hann_window(MEL_WINDOW, periodic=True, dtype=torch.float64)
    side = (MEL_FFT - MEL_WINDOW) // 2
    window = nn.functional.pad(window * 2 / window.sum(), (side, side)).float()
    filters = torchaudio.functional.melscale_fbanks(
        MEL_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, MEL_BANDS, SAMPLE_RATE, norm=None, mel_scale="slaney"
    )
    return window.to(device), filters.to(device)


def mel_features(waveform: Tensor, frames: int, fps: float = 25.0, first_frame: int = 0) -> Tensor:
    """Log-mel features of video frames first_frame .. first_frame + frames - 1.

    waveform [S] or [B, S], float, 16 kHz, sample 0 at the start of frame 0 -> [frames, 4, 80] or [B, frames, 4, 80],
    about zero mean and unit variance for speech. Column k of frame f is centred at (f + (k + 0.5) / 4) / fps seconds
    (10 ms apart at 25 fps; other frame rates space the four columns evenly). It depends on at most MEL_REACH samples on
    either side of its centre and on nothing else; samples outside the waveform count as silence.
    """
    hop = Fraction(SAMPLE_RATE) / exact_fps(fps) / MEL_COLUMNS
    columns = range(first_frame * MEL_COLUMNS, (first_frame + frames) * MEL_COLUMNS)
    starts = torch.tensor([math.floor((j + Fraction(1, 2)) * hop) - MEL_REACH for j in columns])
    low, high = int(starts[0]), int(starts[-1]) + MEL_FFT
    inside = waveform[..., max(low, 0) : max(high, 0)].float()
    padded = nn.functional.pad(inside, (max(-low, 0), max(high, 0) - max(low, 0) - inside.shape[-1]))
    window, filters = _mel_constants(waveform.device)
    segments = padded.unfold(-1, MEL_FFT, 1)[..., (starts - low).to(waveform.device), :]  # [.., 4F, 512]
    power = torch.fft.rfft(segments * window).abs().square()  # [.., 4F, 257]
    logs = (power @ filters).clamp_min(MEL_FLOOR).log10()
    return ((logs - MEL_MEAN) / MEL_STD).unflatten(-2, (frames, MEL_COLUMNS))


class MelEncoder(nn.Module):
    """The audio encoder of the bundled model: mel_features of a whole recording. Has no weights."""

    name, blocks, channels = "mel", MEL_COLUMNS, MEL_BANDS

    def encode(
        self, waveform: Tensor, sample_rate: int, fps: float = 25.0, callback: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """[channels, S] or [S] -> features [F, 4, 80], F = frame_count(S, sample_rate, fps).

        callback(frames done, frames) after each part; it cancels by raising.
        """
        frames = frame_count(waveform.shape[-1], sample_rate, fps)
        mono = to_mono_16k(waveform, sample_rate)
        parts = []
        for first in range(0, frames, _CHUNK_FRAMES):
            parts.append(mel_features(mono, min(_CHUNK_FRAMES, frames - first), fps, first))
            if callback:
                callback(first + len(parts[-1]), frames)
        return torch.cat(parts)


def load_audio_encoder(name_or_path: str | Path) -> nn.Module:
    """An encoder with .encode(waveform [channels, S] or [S], sample_rate, fps=25, callback) -> features [F, L, E].

    "mel" gives MelEncoder (L 4, E 80); anything else is the path of a wav2vec2 file or folder (L 12, E 768 for the
    base model). Its attributes .name, .blocks and .channels match LetsTalkConfig's audio_* fields. InputError where the
    path holds no wav2vec2 model.
    """
    if str(name_or_path) == MelEncoder.name:
        return MelEncoder()
    from .wav2vec2 import load_wav2vec2

    return load_wav2vec2(name_or_path)
