"""Recording conditions for clean synthetic speech: `augment` keeps every sound where it is in time;
`change_speed_pitch` moves waveform and phonemes together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .background import noise
from .synthesis import SAMPLE_RATE, Speech

FFT_BLOCK = 4096  # lengths are rounded up to a multiple, which keeps the transform fast
# Where sound is sent at low rates: encoder, decoder, least and most bits a second.
CODECS = (("libmp3lame", "mp3float", 16000, 48000), ("libopus", "libopus", 6000, 24000), ("aac", "aac", 12000, 40000))
CODEC_SHARE = 0.2


def change_speed_pitch(speech: Speech, factor: float) -> Speech:
    """Play `speech` `factor` times as fast (0.5..2): shorter, higher in pitch and formants, phonemes in step.

    Raises:
        ValueError: factor out of range.
    """
    if not 0.5 <= factor <= 2.0:
        raise ValueError(f"factor must be 0.5..2, got {factor}")
    count = max(int(round(len(speech.waveform) / factor)), 1)
    waveform = _low_pass_for(speech.waveform, factor)
    positions = np.arange(count) * factor
    index = np.minimum(positions.astype(np.int64), len(waveform) - 1)
    # Catmull-Rom between samples: exact enough below 6 kHz, and fast.
    padded = np.pad(waveform, (1, 2), mode="edge")
    x = (positions - index).astype(np.float32)
    a, b, c, d = (padded[index + offset] for offset in range(4))
    resampled = b + 0.5 * x * (c - a + x * (2 * a - 5 * b + 4 * c - d + x * (3 * (b - c) + d - a)))
    phonemes = tuple((symbol, start / factor, end / factor) for symbol, start, end in speech.phonemes)
    return replace(speech, waveform=resampled.astype(np.float32), phonemes=phonemes)


def _low_pass_for(waveform: np.ndarray, factor: float) -> np.ndarray:
    """The waveform without what would fold back when played faster; up to 1.15 that is only what lies above 7 kHz."""
    if factor <= 1.15:
        return waveform
    size = _fft_size(len(waveform))
    spectrum = _rfft(waveform, size)
    frequencies = np.linspace(0.0, 1.0, len(spectrum))
    spectrum *= np.clip((1.0 / factor - frequencies) / 0.05 + 1.0, 0.0, 1.0)
    return _irfft(spectrum, size)[: len(waveform)].astype(np.float32)


def _rfft(samples: np.ndarray, size: int) -> np.ndarray:
    """The spectrum, complex64 [size // 2 + 1]; torch transforms float32 far faster than numpy does float64."""
    return torch.fft.rfft(torch.from_numpy(np.ascontiguousarray(samples, np.float32)), size).numpy()


def _irfft(spectrum: np.ndarray, size: int) -> np.ndarray:
    return torch.fft.irfft(torch.from_numpy(spectrum.astype(np.complex64)), size).numpy()


def _fft_size(count: int) -> int:
    return -(-count // FFT_BLOCK) * FFT_BLOCK


def _equalise(frequencies: np.ndarray, rng: np.random.Generator, mild: bool) -> np.ndarray:
    """Magnitude response [len(frequencies)]: a tilt, a broad hump, and band limits; zero phase, so nothing moves."""
    octaves = np.log2(np.maximum(frequencies, 30.0) / 1000.0)
    strength = 1.0 if mild else 3.0
    decibels = rng.uniform(-1.0, 0.7) * strength * octaves
    decibels += rng.uniform(-2.0, 2.0) * strength * np.exp(-0.5 * ((octaves - rng.uniform(-2.0, 2.5)) / 0.6) ** 2)
    low, high, kind = 0.0, 8000.0, rng.random()
    if not mild and kind < 0.12:
        low, high = 300.0, 3400.0  # telephone
    elif not mild and kind < 0.30:
        high = rng.uniform(3000.0, 7000.0)
    elif not mild and kind < 0.45:
        low = rng.uniform(60.0, 250.0)
    order = 6.0
    response = 10.0 ** (np.clip(decibels, -25.0, 15.0) / 20.0)
    if low > 0:
        response /= np.sqrt(1.0 + (low / np.maximum(frequencies, 1.0)) ** order)
    if high < 8000.0:
        response /= np.sqrt(1.0 + (frequencies / high) ** (2 * order))
    return response


def _room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response float32 [R]: the direct sound at lag 0, then decaying noise from 2 to 12 ms on."""
    seconds = rng.uniform(0.08, 0.5)
    count = int(seconds * SAMPLE_RATE)
    tail = rng.standard_normal(count, dtype=np.float32)
    tail *= np.exp(np.linspace(0.0, -6.9, count, dtype=np.float32))
    tail[: int(rng.uniform(0.002, 0.012) * SAMPLE_RATE)] = 0.0
    energy = 10.0 ** (rng.uniform(-16.0, -1.0) / 10.0)  # the tail's, where the direct sound has 1
    tail *= np.sqrt(energy / max(float(np.sum(tail**2)), 1e-9))
    tail[0] = 1.0
    return tail


def _degrade(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The waveform, rarely with mild clipping and rarely with coarse quantisation."""
    kind, peak = rng.random(), float(np.abs(waveform).max(initial=0.0))
    if kind < 0.08 and peak > 0:
        limit = peak * rng.uniform(0.35, 0.9)
        return np.clip(waveform, -limit, limit)
    if kind < 0.16 and peak > 0:  # logarithmic steps, as of a low bit rate
        steps = float(2 ** rng.integers(5, 8))
        bent = np.sign(waveform) * np.log1p(255.0 * np.abs(waveform) / peak) / np.log(256.0)
        bent = np.round(bent * steps) / steps
        return np.sign(bent) * np.expm1(np.abs(bent) * np.log(256.0)) / 255.0 * peak
    return waveform


def _coded(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The waveform after a codec at a low rate, where it was in time: what the codec delays it by is taken away."""
    encoder_name, decoder_name, least, most = CODECS[int(rng.integers(len(CODECS)))]
    import av  # training on prepared speech does without it

    encoder = av.CodecContext.create(encoder_name, "w")
    encoder.sample_rate, encoder.layout, encoder.bit_rate = SAMPLE_RATE, "mono", int(rng.uniform(least, most))
    encoder.format = encoder.codec.audio_formats[0]
    encoder.open()
    decoder = av.CodecContext.create(decoder_name, "r")
    decoder.extradata = encoder.extradata
    convert = av.AudioResampler(format=encoder.format, layout="mono", rate=SAMPLE_RATE, frame_size=encoder.frame_size)
    back = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    padded = np.pad(waveform, (0, 2 * 4096)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(padded[None], format="fltp", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    packets = [packet for part in (frame, None) for made in convert.resample(part) for packet in encoder.encode(made)]
    packets += encoder.encode(None)
    frames = [f for packet in packets for f in decoder.decode(packet)] + list(decoder.decode(None))
    heard = np.concatenate([f.to_ndarray()[0] for part in (*frames, None) for f in back.resample(part)])
    return _undelayed(heard, waveform)


def _undelayed(heard: np.ndarray, waveform: np.ndarray) -> np.ndarray:
    """[len(waveform)] of `heard` from where it is most like the waveform, within a quarter of a second."""
    size = _fft_size(len(heard) + len(waveform))
    likeness = _irfft(_rfft(heard, size) * np.conj(_rfft(waveform, size)), size)
    delay = int(np.argmax(likeness[: SAMPLE_RATE // 4]))
    return np.pad(heard[delay:], (0, len(waveform)))[: len(waveform)].astype(np.float32)


def augment(
    waveform: np.ndarray, rng: np.random.Generator, background: np.ndarray | None = None, mild: bool = False
) -> np.ndarray:
    """Another recording of the same sounds, float32 [S] at 16 kHz, none of them moved in time.

    Gain, tilt and band limits, a room, coloured noise at 0..40 dB (or none), clipping or quantisation, a codec.

    Args:
        waveform: [S] at 16 kHz.
        rng: decides everything.
        background: other speech or music, any length > 0, mixed in at 3..20 dB below; None for none.
        mild: only a light tilt, noise at 25..45 dB and gain, as for held-out clips.
    """
    count = len(waveform)
    active = waveform[np.abs(waveform) > 1e-3]
    power = float(np.mean(np.square(active))) if len(active) else 1e-4
    room = _room(rng) if not mild and rng.random() < 0.5 else np.ones(1, np.float32)
    size = _fft_size(count + len(room))
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, size // 2 + 1, dtype=np.float32)
    spectrum = _rfft(waveform, size)
    if len(room) > 1:
        spectrum *= _rfft(room, size)
    response = _equalise(frequencies, rng, mild).astype(np.float32)
    result = _irfft(spectrum * response, size)[:count].astype(np.float32)
    if background is not None and len(background):
        other = np.resize(np.roll(background, int(rng.integers(len(background)))), count)
        level = np.sqrt(power / max(float(np.mean(np.square(other))), 1e-9))
        result += other * level * 10.0 ** (-rng.uniform(3.0, 20.0) / 20.0)
    if rng.random() < 0.8:
        snr = rng.uniform(25.0, 45.0) if mild else rng.uniform(0.0, 40.0)
        level = np.sqrt(max(float(np.mean(np.square(result))), 0.05 * power)) * 10.0 ** (-snr / 20.0)
        result += level * noise(count, rng)
    if not mild:
        result = _degrade(result, rng)
        if count and rng.random() < CODEC_SHARE:
            result = _coded(result, rng)
    result = result * 10.0 ** (rng.uniform(-18.0, 6.0) / 20.0)
    return np.clip(result, -1.0, 1.0).astype(np.float32)
