"""The whisper encoder: its input is Whisper's, its windows do not show, and it keeps time."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from letstalk_core.audio import whisper
from letstalk_core.audio.encoder import FeatureStream, layer_outputs
from letstalk_core.audio.load_encoder import load_audio_encoder
from letstalk_core.audio.recording import SAMPLE_RATE, Recording, frame_count
from letstalk_core.data.speech.synthesis import Voice, available_engines, join, synthesize

needs_espeak = pytest.mark.skipif("espeak" not in available_engines(), reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def encoder():
    return load_audio_encoder("whisper")


@pytest.fixture(scope="module")
def speech():
    """20 s of somebody who speaks, [S] at 16 kHz."""
    text = "My mother baked five warm blueberry muffins before breakfast, and papa took a happy baby to the pet shop."
    parts = [synthesize(text, Voice("espeak", "en-us", "m1"), rate) for rate in (140, 150, 160, 170)]
    return torch.from_numpy(join(parts, [0.2, 0.5, 0.1]).crop(0.0, 20.0).waveform)


def noise(seconds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=generator)


def test_its_input_is_that_of_transformers(monkeypatch):
    from transformers import WhisperFeatureExtractor

    samples = noise(3.0)
    extractor = WhisperFeatureExtractor(feature_size=80)
    expected = extractor(samples.numpy(), sampling_rate=16000, padding="do_not_pad", return_tensors="np")
    expected = torch.from_numpy(expected.input_features[0])
    monkeypatch.setattr(whisper, "LOUDEST", float(expected.max()) * 4 - 4)  # that of the recording, as it does
    own = whisper.log_mel(torch.nn.functional.pad(samples, (200, 200)))[:, : expected.shape[1]]
    assert (own - expected)[:, 2:-2].abs().max() < 1e-4  # it mirrors the samples at both ends


def test_its_layers_are_those_of_transformers(encoder):
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=whisper.WIDTH, encoder_layers=whisper.LAYERS, encoder_attention_heads=whisper.HEADS,
        encoder_ffn_dim=4 * whisper.WIDTH, num_mel_bins=whisper.MELS, max_source_positions=whisper.POSITIONS,
    )  # fmt: skip
    theirs = WhisperEncoder(config).eval()
    weights = {key: value.float() for key, value in load_file(whisper.WEIGHTS).items()}
    missing = theirs.load_state_dict(weights, strict=False).missing_keys
    assert sorted(missing) == ["embed_positions.weight", "layer_norm.bias", "layer_norm.weight"]  # its own positions
    with torch.no_grad(), layer_outputs(theirs.layers) as outputs:
        mel = whisper.log_mel(noise(10.0 + 0.02))[None, :, : 2 * whisper.POSITIONS]
        theirs(mel)
        assert torch.allclose(encoder.model(mel), torch.cat(outputs, -1), atol=1e-4)


@pytest.mark.parametrize("fps", [25.0, 24.0, 30000 / 1001, 60.0])
@pytest.mark.parametrize("samples", [1, 640, 16000 * 6, 16000 * 7 + 123])
def test_a_frame_for_every_frame_of_video(encoder, samples, fps):
    features = encoder.encode(noise(8.0)[None, :samples], SAMPLE_RATE, fps)
    assert features.shape == (frame_count(samples, SAMPLE_RATE, fps), encoder.blocks, encoder.channels)
    assert torch.isfinite(features).all()


def test_a_frame_has_the_same_features_wherever_one_begins_to_read(encoder, speech):
    recording = Recording((torch.cat([speech, speech, speech, speech])[None], SAMPLE_RATE))  # 80 s: several windows
    whole = encoder.encode(*recording._samples)
    stream = FeatureStream(encoder, recording, 25.0)
    for first, last in ((0, 10), (700, 900), (1990, 2000), (3, 160)):
        assert torch.equal(stream[first:last], whole[first:last])
    stats = encoder.measure(recording, 25.0)
    samples = torch.nn.functional.pad(torch.cat([speech] * 4), (10 * SAMPLE_RATE, 10 * SAMPLE_RATE))
    for low, high in ((0, 1), (149, 151), (310, 311)):
        start, stop = (10 * SAMPLE_RATE + at for at in encoder.reach(low, high, stats))
        assert torch.allclose(encoder.encode_window(samples[start:stop], low, high, stats), whole[low:high], atol=1e-5)


@needs_espeak
def test_features_are_about_zero_mean_and_unit_variance(encoder, speech):
    features = encoder.encode(speech[None], SAMPLE_RATE)
    assert features.mean().abs() < 0.2 and features.std() == pytest.approx(1.0, abs=0.25)


@needs_espeak
def test_the_borders_of_its_windows_do_not_show(encoder, speech):
    features = encoder.encode(speech[None], SAMPLE_RATE).flatten(0, 1)  # columns, 20 ms apart
    change = (features[1:] - features[:-1]).square().mean(1).sqrt()
    per_cell = whisper.CELL * 50
    borders = [change[i - 1] / change[i - 12 : i + 11].mean() for i in (per_cell, 2 * per_cell, 3 * per_cell)]
    assert np.mean(borders) < 1.5


@needs_espeak
@pytest.mark.parametrize("decibels", [-50, -30, -10])
def test_it_hears_every_level_alike(encoder, speech, decibels):
    loud = speech / speech.abs().max()
    expected = encoder.encode(loud[None], SAMPLE_RATE)
    features = encoder.encode(loud[None] * 10 ** (decibels / 20), SAMPLE_RATE)
    assert (features - expected).square().mean().sqrt() < 0.05


@pytest.mark.parametrize("second", [1.0, 5.98, 6.5, 11.13])
def test_a_sound_is_heard_when_it_is_there(encoder, second):
    """The features of noise with a burst in it differ most from those without it in the burst's own frames."""
    still = noise(14.0)
    burst = still.clone()
    middle = int(second * SAMPLE_RATE)
    burst[middle - 480 : middle + 480] += 3 * noise(0.06, seed=1)
    stats = encoder.measure(Recording((still[None], SAMPLE_RATE)), 25.0)
    low, high = encoder.reach(0, 350, stats)
    padded = [torch.nn.functional.pad(one, (-low, high - len(one))) for one in (still, burst)]
    a, b = (encoder.encode_window(one, 0, 350, stats).flatten(0, 1) for one in padded)
    difference = (a - b).square().mean(1)
    centre = float((difference * (difference > difference.max() / 3) * torch.arange(700)).sum())
    centre /= float(difference[difference > difference.max() / 3].sum())
    assert abs((centre + 0.5) / 50 - second) < 0.02
