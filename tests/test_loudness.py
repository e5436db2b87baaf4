"""One level for every recording: the loudness of broadcasting, in pieces, and what the mel encoder makes of it."""

import math

import numpy as np
import pytest
import torch
import torchaudio

from letstalk_core.audio import loudness as levels
from letstalk_core.audio.loudness import SPEECH_LEVEL, loudness, speech_gain
from letstalk_core.audio.mel import MelEncoder, mel_features
from letstalk_core.audio.recording import SAMPLE_RATE, Recording


def loudness_of(samples):
    return loudness([samples], len(samples))


def speech_gain_of(samples):
    return speech_gain([samples], len(samples))


def syllables(seconds, seed=0):
    """Noise [S] that comes and goes four times a second, in sentences with pauses."""
    rng, count = np.random.default_rng(seed), int(seconds * SAMPLE_RATE)
    times = np.arange(count) / SAMPLE_RATE
    shape = np.sin(np.pi * 4 * times) ** 2 * (np.sin(2 * np.pi * times / 3) > -0.3)
    coloured = np.convolve(rng.standard_normal(count), np.hanning(8), "same")
    return torch.from_numpy((0.1 * coloured * shape).astype(np.float32))


@pytest.mark.parametrize("seconds", [0.5, 3.0, 29.95, 30.5, 95.3])
@pytest.mark.parametrize("block", [1600, 7777, 10**9])
def test_it_is_that_of_bs_1770_whatever_the_blocks(seconds, block):
    samples = syllables(seconds)
    expected = float(torchaudio.functional.loudness(samples[None], SAMPLE_RATE))
    assert loudness(samples.split(block), len(samples)) == pytest.approx(expected, abs=0.05)


def test_a_sine_of_1_khz_has_its_level():
    sine = torch.sin(2 * math.pi * 997 * torch.arange(5 * SAMPLE_RATE) / SAMPLE_RATE)
    assert loudness_of(0.1 * sine) == pytest.approx(-23.01, abs=0.1)  # -20 dB, of which a sine has the root mean square


def test_pauses_and_what_is_too_quiet_do_not_count():
    samples = syllables(6.0)
    with_pauses = torch.cat([torch.zeros(20 * SAMPLE_RATE), samples, torch.zeros(40 * SAMPLE_RATE)])
    assert loudness_of(with_pauses) == pytest.approx(loudness_of(samples), abs=0.3)
    for silence in (torch.zeros(0), torch.zeros(5), torch.zeros(90000), 1e-5 * samples):
        assert loudness_of(silence) == -math.inf and speech_gain_of(silence) == 1.0
    assert math.isfinite(loudness_of(samples[: SAMPLE_RATE // 5]))  # shorter than a gating block


@pytest.mark.parametrize("decibels", [-50, -25, -10, 0])
def test_the_mel_encoder_hears_every_level_alike(decibels):
    samples = syllables(8.0)
    samples = samples / samples.abs().max()
    quiet = samples * 10 ** (decibels / 20)
    features, expected = (MelEncoder().encode(one[None], SAMPLE_RATE) for one in (quiet, samples))
    assert (features - expected).abs().max() < (0.02 if decibels < -40 else 1e-3)  # LUFS -70 is near
    wanted = SPEECH_LEVEL - loudness_of(samples) - decibels
    assert 20 * math.log10(speech_gain_of(quiet)) == pytest.approx(wanted, abs=0.3)


def test_one_gain_for_the_whole_recording(monkeypatch):
    """A quiet minute and a loud one stay as far apart as they are, and no window has a gain of its own."""
    samples = torch.cat([0.1 * syllables(40), syllables(40, seed=1)])
    features = MelEncoder().encode(samples[None], SAMPLE_RATE)
    assert torch.allclose(features, mel_features(samples * speech_gain_of(samples), 2000), atol=1e-4)
    monkeypatch.setattr(levels, "PIECE", 10 * SAMPLE_RATE)
    assert torch.allclose(features, MelEncoder().encode(samples[None], SAMPLE_RATE), atol=1e-4)


def test_another_rate_and_two_channels_have_the_same_gain():
    samples = syllables(4.0)
    stereo = torch.stack([samples, samples])
    for given, rate in ((samples[None], 16000), (stereo, 16000)):
        gain = float(MelEncoder().measure(Recording((given, rate)), 25.0).statistics[0])
        assert gain == pytest.approx(speech_gain_of(samples))
