"""How loud speech is, as broadcasting measures it (ITU-R BS.1770-4, EBU R128), and the gain that makes all alike."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torchaudio.functional import highpass_biquad, treble_biquad

from .recording import SAMPLE_RATE

SPEECH_LEVEL = -23.0  # LUFS that encoders hear speech at: EBU R128's programme level
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU below what is louder than the absolute gate
STEP = SAMPLE_RATE // 10  # gating blocks of 400 ms begin every 100 ms
SETTLED = SAMPLE_RATE // 2  # samples after which the weighting filters have forgotten where they began
PIECE = 30 * SAMPLE_RATE  # samples weighted at a time, a multiple of STEP


def _weighted_power(samples: Tensor) -> Tensor:
    """Mean square [n] of each whole STEP of samples [SETTLED + n * STEP ...] after the first SETTLED, K-weighted."""
    shelved = treble_biquad(samples, SAMPLE_RATE, 4.0, 1500.0, 1 / math.sqrt(2))
    weighted = highpass_biquad(shelved, SAMPLE_RATE, 38.0, 0.5)[SETTLED:]
    return weighted[: len(weighted) // STEP * STEP].unflatten(0, (-1, STEP)).double().square().mean(1)


def loudness(blocks: Iterable[Tensor]) -> float:
    """Integrated loudness in LUFS of a mono recording at 16 kHz, given as blocks [n] of any length, in one pass; -inf
    where nothing of it is louder than -70. What is shorter than 400 ms counts as if silence followed."""
    held, powers = torch.zeros(SETTLED), []
    for block in blocks:
        held = torch.cat([held, block.float()])
        while len(held) >= SETTLED + PIECE:
            powers.append(_weighted_power(held[: SETTLED + PIECE]))
            held = held[PIECE:]
    rest = len(held) - SETTLED
    if rest > 0:
        short = sum(map(len, powers)) * STEP + rest < 4 * STEP
        whole = 4 * STEP if short else rest
        powers.append(_weighted_power(torch.nn.functional.pad(held, (0, whole - rest))))
    power = torch.cat(powers) if powers else torch.zeros(0)
    if len(power) < 4:
        return -math.inf
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


def speech_gain(blocks: Iterable[Tensor]) -> float:
    """The factor that brings a recording (as `loudness` takes it) to SPEECH_LEVEL; 1 for silence."""
    level = loudness(blocks)
    return 10 ** ((SPEECH_LEVEL - level) / 20) if math.isfinite(level) else 1.0
