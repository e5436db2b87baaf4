"""Log-mel features, an audio encoder without weights."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from .encoder import WholeRecording
from .loudness import SPEECH_LEVEL, LevelledEncoder
from .recording import SAMPLE_RATE, exact_fps

MEL_COLUMNS = 4  # L: columns of a video frame, 10 ms apart at 25 fps
MEL_BANDS = 80  # E
MEL_WINDOW = 400  # samples: 25 ms
MEL_FFT = 512
MEL_REACH = MEL_FFT // 2  # samples on either side of a column's centre that it may depend on
MEL_FLOOR = 1e-8  # power, where 1 is a full-scale sine: -80 dB
# Mean and deviation of log10 power over ordinary speech: fixed, so that features are local in time.
MEL_MEAN, MEL_STD = -5.5, 1.5


@functools.lru_cache(maxsize=4)
def _mel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """(window [512], scaled so that a full-scale sine has power 1; filters [257, 80], each with a peak of 1)."""
    import torchaudio  # training on prepared speech does without it

    window = torch.hann_window(MEL_WINDOW, periodic=True, dtype=torch.float64)
    side = (MEL_FFT - MEL_WINDOW) // 2
    window = nn.functional.pad(window * 2 / window.sum(), (side, side)).float()
    filters = torchaudio.functional.melscale_fbanks(
        MEL_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, MEL_BANDS, SAMPLE_RATE, norm=None, mel_scale="slaney"
    )
    return window.to(device), filters.to(device)


def _starts(first: int, frames: int, fps: float) -> list[int]:
    """The first sample of each column of frames first .. first + frames - 1, which may be negative."""
    hop = Fraction(SAMPLE_RATE) / exact_fps(fps) / MEL_COLUMNS
    columns = range(first * MEL_COLUMNS, (first + frames) * MEL_COLUMNS)
    return [math.floor((column + Fraction(1, 2)) * hop) - MEL_REACH for column in columns]


def mel_reach(first_frame: int, frames: int, fps: float) -> tuple[int, int]:
    """(start, stop) of the samples at 16 kHz that frames first_frame .. first_frame + frames - 1 depend on."""
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


class MelEncoder(LevelledEncoder):
    """mel_features of a recording at the level of speech. Has no weights."""

    name, blocks, channels = "mel", MEL_COLUMNS, MEL_BANDS
    settings = f"speech at {SPEECH_LEVEL} LUFS"

    def reach(self, low: int, high: int, whole: WholeRecording) -> tuple[int, int]:
        return mel_reach(low, high - low, whole.fps)

    def encode_window(self, samples: Tensor, low: int, high: int, whole: WholeRecording) -> Tensor:
        (gain,) = whole.statistics
        return mel_features(samples * gain, high - low, whole.fps, low, first_sample=self.reach(low, high, whole)[0])
