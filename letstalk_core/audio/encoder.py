"""From a recording to audio features: log-mel features, the choice of the encoder, and features as they are needed.

Every encoder gives features [F, L, E], L blocks of E channels for each of F video frames. The paper (section 3.1) uses
wav2vec2 (wav2vec2.py beside this file); the bundled model uses the log-mel features here, which need no download.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from .recording import SAMPLE_RATE, Recording, SampleReader, exact_fps

MEL_COLUMNS = 4  # L: columns a video frame, 10 ms apart at 25 fps
MEL_BANDS = 80  # E
MEL_WINDOW = 400  # samples: 25 ms
MEL_FFT = 512
MEL_REACH = MEL_FFT // 2  # samples on either side of a column's centre that it may depend on
MEL_FLOOR = 1e-8  # power, where 1 is a full-scale sine: -80 dB
MEL_MEAN, MEL_STD = -5.5, 1.5  # of log10 power over ordinary speech: fixed, so that features are local in time
WINDOW_SECONDS = 30  # of a recording that are encoded at a time
ONE_PASS_SECONDS = 60  # up to here a recording is one window


@dataclass(frozen=True)
class WholeRecording:
    """What windows have to know of the recording that they are of: its frames of video, its samples at 16 kHz, and
    statistics that only some encoders take."""

    frames: int
    fps: Fraction
    samples: int
    statistics: tuple[Tensor, ...] = ()


class AudioEncoder(nn.Module):
    """From recordings to features, window by window, so that memory does not grow with their length.

    A recording of more than ONE_PASS_SECONDS has windows at multiples of WINDOW_SECONDS, wherever one begins to read: a
    frame's features are always the same numbers.
    """

    name: str
    blocks: int  # L
    channels: int  # E
    context_seconds = 0.0  # that a window sees on either side of what is kept of it
    digest = ""  # of what decides its features beside the weights

    def measure(self, recording: Recording, fps: float) -> WholeRecording:
        rate = exact_fps(fps)
        return WholeRecording(
            recording.frames(fps), rate, math.ceil(Fraction(recording.samples * SAMPLE_RATE, recording.rate))
        )

    def reach(self, low: int, high: int, whole: WholeRecording) -> tuple[int, int]:
        """The samples, from .. to, that encode_window needs for frames low .. high - 1."""
        raise NotImplementedError

    def encode_window(self, samples: Tensor, low: int, high: int, whole: WholeRecording) -> Tensor:
        """Features [high - low, L, E] on the CPU of the samples [n] that `reach` named."""
        raise NotImplementedError

    def stream(self, recording: Recording, fps: float, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """(first frame, features [n, L, E] on the CPU) of one window after the other, from that of frame `first` on."""
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


class Samples:
    """Samples of a stream by their place in it, forward only."""

    def __init__(self, stream: Iterator[Tensor]):
        self._reader = SampleReader((block[None], SAMPLE_RATE) for block in stream)
        self._held, self._first = torch.zeros(1, 0), 0

    def take(self, start: int, stop: int) -> Tensor:
        """Samples start .. stop - 1, silence outside the recording. Nothing before `start` can be taken later."""
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
        start = self._held[0][0]
        return torch.cat([features for _, features in self._held])[first - start : last - start]


def _end(window: tuple[int, Tensor]) -> int:
    """The frame after a window's last."""
    return window[0] + len(window[1])


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


def _starts(first: int, frames: int, fps: float) -> list[int]:
    """Where the samples of each column of these frames begin."""
    hop = Fraction(SAMPLE_RATE) / exact_fps(fps) / MEL_COLUMNS
    columns = range(first * MEL_COLUMNS, (first + frames) * MEL_COLUMNS)
    return [math.floor((column + Fraction(1, 2)) * hop) - MEL_REACH for column in columns]


def mel_reach(first_frame: int, frames: int, fps: float) -> tuple[int, int]:
    """The samples, from .. to, that these frames depend on."""
    return _starts(first_frame, 1, fps)[0], _starts(first_frame + frames - 1, 1, fps)[-1] + MEL_FFT


def mel_features(
    waveform: Tensor, frames: int, fps: float = 25.0, first_frame: int = 0, first_sample: int = 0
) -> Tensor:
    """Log-mel features of video frames first_frame .. first_frame + frames - 1.

    waveform [S] or [B, S], float, 16 kHz, which begins at sample first_sample (frame 0 begins at sample 0) ->
    [frames, 4, 80] or [B, frames, 4, 80], about zero mean and unit variance for speech. Column k of frame f is centred
    at (f + (k + 0.5) / 4) / fps seconds (10 ms apart at 25 fps; other frame rates space the four columns evenly). It
    depends on at most MEL_REACH samples on either side of its centre and on nothing else; samples outside the waveform
    count as silence.
    """
    starts = torch.tensor(_starts(first_frame, frames, fps)) - first_sample
    low, high = int(starts[0]), int(starts[-1]) + MEL_FFT
    inside = waveform[..., max(low, 0) : max(high, 0)].float()
    padded = nn.functional.pad(inside, (max(-low, 0), max(high, 0) - max(low, 0) - inside.shape[-1]))
    window, filters = _mel_constants(waveform.device)
    segments = padded.unfold(-1, MEL_FFT, 1)[..., (starts - low).to(waveform.device), :]  # [.., 4F, 512]
    power = torch.fft.rfft(segments * window).abs().square()  # [.., 4F, 257]
    logs = (power @ filters).clamp_min(MEL_FLOOR).log10()
    return ((logs - MEL_MEAN) / MEL_STD).unflatten(-2, (frames, MEL_COLUMNS))


class MelEncoder(AudioEncoder):
    """The audio encoder of the bundled model: mel_features of a recording. Has no weights."""

    name, blocks, channels = "mel", MEL_COLUMNS, MEL_BANDS

    def reach(self, low: int, high: int, whole: WholeRecording) -> tuple[int, int]:
        return mel_reach(low, high - low, whole.fps)

    def encode_window(self, samples: Tensor, low: int, high: int, whole: WholeRecording) -> Tensor:
        return mel_features(samples, high - low, whole.fps, low, first_sample=self.reach(low, high, whole)[0])


def load_audio_encoder(name_or_path: str | Path) -> AudioEncoder:
    """An encoder by its name or file.

    "mel" gives MelEncoder (L 4, E 80); anything else is the path of a wav2vec2 file or folder (L 12, E 768 for the
    base model). Its attributes .name, .blocks and .channels match LetsTalkConfig's audio_* fields. InputError where the
    path holds no wav2vec2 model.
    """
    if str(name_or_path) == MelEncoder.name:
        return MelEncoder()
    from .wav2vec2 import load_wav2vec2

    return load_wav2vec2(name_or_path)
