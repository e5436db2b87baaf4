"""How loud speech is, as broadcasting measures it (ITU-R BS.1770-4, EBU R128), and the gain that makes all alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .encoder import AudioEncoder, Samples, WholeRecording
from .recording import SAMPLE_RATE, Recording

SPEECH_LEVEL = -23.0  # LUFS that encoders hear speech at: EBU R128's programme level
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU below what is louder than the absolute gate
STEP = SAMPLE_RATE // 10  # gating blocks of 400 ms begin every 100 ms
SETTLED = SAMPLE_RATE // 2  # samples after which the weighting filters have forgotten where they began
PIECE = 10 * SAMPLE_RATE  # samples weighted at a time, a multiple of STEP
HEADROOM = 0.25  # torchaudio's filters clip at 1


def _weighted_power(samples: Tensor) -> Tensor:
    """Mean square, K-weighted, of each whole STEP after the first SETTLED of samples [SETTLED + n] -> [n // STEP]."""
    from torchaudio.functional import highpass_biquad, treble_biquad  # training on prepared speech does without it

    shelved = treble_biquad(samples * HEADROOM, SAMPLE_RATE, 4.0, 1500.0, 1 / math.sqrt(2))
    weighted = highpass_biquad(shelved, SAMPLE_RATE, 38.0, 0.5)[SETTLED:] / HEADROOM
    return weighted[: len(weighted) // STEP * STEP].unflatten(0, (-1, STEP)).double().square().mean(1)


def loudness(blocks: Iterable[Tensor], count: int) -> float:
    """Integrated loudness in LUFS of a mono recording of `count` samples at 16 kHz; -inf where nothing of it is louder
    than -70. What is shorter than 400 ms counts as if silence followed.

    blocks: the samples in pieces [n] of any length, read in one pass.
    """
    samples, end = Samples(iter(blocks)), max(count, 4 * STEP)
    power = torch.zeros(end // STEP, dtype=torch.float64)
    for start in range(0, end, PIECE):
        piece = _weighted_power(samples.take(start - SETTLED, min(start + PIECE, end)))
        power[start // STEP :][: len(piece)] = piece
    momentary = power.unfold(0, 4, 1).mean(1)  # of 400 ms
    loud = momentary[momentary > _power(ABSOLUTE_GATE)]
    if not len(loud):
        return -math.inf
    return _level(loud[loud > _power(_level(loud.mean()) + RELATIVE_GATE)].mean())


def _level(power: Tensor) -> float:
    """LUFS of a K-weighted mean square."""
    return -0.691 + 10 * math.log10(float(power))


def _power(level: float) -> float:
    return 10 ** ((level + 0.691) / 10)


def speech_gain(blocks: Iterable[Tensor], count: int) -> float:
    """The factor that brings a recording (as `loudness` takes it) to SPEECH_LEVEL; 1 for silence."""
    level = loudness(blocks, count)
    return 10 ** ((SPEECH_LEVEL - level) / 20) if math.isfinite(level) else 1.0


class LevelledEncoder(AudioEncoder):
    """An audio encoder that hears every recording at SPEECH_LEVEL.

    One gain for the whole recording, measured in a pass of its own: how loud somebody was recorded says nothing about
    the mouth, how loud a word is beside the others does.
    """

    def measure(self, recording: Recording, fps: float) -> WholeRecording:
        """AudioEncoder.measure with one statistic: the gain []."""
        whole = super().measure(recording, fps)
        gain = torch.tensor(speech_gain(recording.mono_16k(), whole.samples))
        return dataclasses.replace(whole, statistics=(gain,))
