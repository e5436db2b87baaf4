"""Sounds that nobody speaks: coloured noise, and music of chords, melody, bass and drums."""

from __future__ import annotations

import numpy as np
import torch

from .synthesis import SAMPLE_RATE

NOISE_BLOCK = 32768  # samples of noise before it repeats
NOISE_SLOPES = (0.0, -0.5, -1.0, 0.5)  # amplitude ~ f**slope: white, pink, brown, blue
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 3, 5, 7, 10))  # semitones: major, minor, pentatonic
TRIAD = (0, 2, 4)  # steps of the scale


def noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Coloured noise float32 [count] of power 1 (repeating every 2 s), its level drifting slowly half of the time."""
    bins = NOISE_BLOCK // 2 + 1
    white = rng.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
    slope = NOISE_SLOPES[int(rng.integers(len(NOISE_SLOPES)))]
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, bins, dtype=np.float32)
    spectrum = white * np.maximum(frequencies, 40.0) ** np.float32(slope)
    block = torch.fft.irfft(torch.from_numpy(spectrum), NOISE_BLOCK).numpy()
    result = np.resize(block, count)
    if rng.random() < 0.2:  # mains hum
        angle = np.arange(count, dtype=np.float32) * np.float32(2 * np.pi * rng.choice((50.0, 60.0)) / SAMPLE_RATE)
        result += result.std() * np.sin(angle)
    if rng.random() < 0.5:
        knots = rng.uniform(0.4, 1.6, 8)
        result *= np.interp(np.arange(count), np.linspace(0, count, 8), knots).astype(np.float32)
    return result / max(float(result.std()), 1e-9)


def music(count: int, rng: np.random.Generator) -> np.ndarray:
    """Music without a voice, float32 [count] at 16 kHz, of power 1: some of chords, melody, bass and drums, in time."""
    beat = SAMPLE_RATE * 60 / rng.uniform(70, 160)  # samples
    scale, key = SCALES[int(rng.integers(len(SCALES)))], rng.uniform(-5, 7)
    result = np.zeros(count, np.float32)
    parts = rng.random(4) < (0.8, 0.7, 0.6, 0.6)
    if not parts.any():
        parts[0] = True
    # Beats before the first sample, too: nothing begins at once when the clip does.
    for number in range(-4, int(count / beat) + 1):
        start, degree = int(number * beat), int(rng.integers(7))
        if parts[0] and number % 4 == 0:
            for step in TRIAD:
                _add(result, start, _note(_hertz(key, scale, degree + step), 4 * beat, rng, decay=0.6), 0.5)
        if parts[1]:
            for eighth in range(2):
                if rng.random() < 0.7:
                    pitch = _hertz(key + 12, scale, int(rng.integers(10)))
                    _add(result, start + int(eighth * beat / 2), _note(pitch, beat, rng, decay=2.5), 0.6)
        if parts[2]:
            _add(result, start, _note(_hertz(key - 24, scale, degree), beat, rng, decay=2.0), 0.9)
        if parts[3]:
            _add(result, start, _drum(rng, low=number % 2 == 0), 1.0)
            _add(result, start + int(beat / 2), _drum(rng, low=False), 0.3)
    return result / max(float(result.std()), 1e-9)


def _hertz(key: float, scale: tuple[int, ...], degree: int) -> float:
    octave, step = divmod(degree, len(scale))
    return 220.0 * 2 ** ((key + 12 * octave + scale[step]) / 12)


def _note(hertz: float, samples: float, rng: np.random.Generator, decay: float) -> np.ndarray:
    """A note of an instrument of its own, plucked or bowed."""
    time = np.arange(int(samples), dtype=np.float32) / SAMPLE_RATE
    partials = np.arange(1, min(9, int(7000 / hertz) + 1))
    weights = rng.uniform(0.3, 1.0, len(partials)) / partials ** rng.uniform(0.6, 1.8)
    vibrato = rng.uniform(0, 0.01) * np.sin(2 * np.pi * rng.uniform(4, 6.5) * time)
    phase = 2 * np.pi * hertz * (time + vibrato / 30)
    wave = sum(w * np.sin(n * phase) for n, w in zip(partials, weights, strict=True))
    attack = np.minimum(time / rng.uniform(0.004, 0.08), 1.0)
    end = np.minimum((time[-1] - time) / 0.03, 1.0)
    return (wave * attack * end * np.exp(-decay * time)).astype(np.float32)


def _drum(rng: np.random.Generator, low: bool) -> np.ndarray:
    time = np.arange(int(0.2 * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    hiss = rng.standard_normal(len(time), dtype=np.float32) * np.exp(-time * rng.uniform(20, 60))
    thump = np.sin(2 * np.pi * (50 * time + 4 * (1 - np.exp(-time * 30)))) * np.exp(-time * 18)
    return (2.0 * thump + 0.1 * hiss if low else 0.6 * hiss).astype(np.float32)


def _add(whole: np.ndarray, start: int, part: np.ndarray, level: float) -> None:
    """Add a part to the whole from `start` on, which may lie before it; what sticks out is left away."""
    begin, end = max(start, 0), min(start + len(part), len(whole))
    if end > begin:
        whole[begin:end] += level * part[begin - start : end - start]
