"""wav2vec2 features against values computed once with the research code (tiny random weights, data/wav2vec2)."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from letstalk_core.audio import encoder as module
from letstalk_core.audio.load_encoder import load_audio_encoder
from letstalk_core.errors import InputError

pytest.importorskip("transformers")
DATA = Path(__file__).parent / "data" / "wav2vec2"


@pytest.fixture(scope="module")
def encoder():
    return load_audio_encoder(DATA)


def test_features_equal_the_reference(encoder):
    reference = load_file(DATA / "io.safetensors")
    features = encoder.encode(reference["waveform_16k"], 16000)
    assert features.shape == reference["features"].shape == (58, encoder.blocks, encoder.channels)
    torch.testing.assert_close(features, reference["features"], atol=1e-4, rtol=0)


def test_layouts_of_the_file(encoder, tmp_path):
    waveform = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    expected = encoder.encode(waveform, 16000)
    weights = load_file(DATA / "model.safetensors")
    assert torch.equal(load_audio_encoder(DATA / "model.safetensors").encode(waveform, 16000), expected)
    # a fine-tuned model: a prefix, a head, and the other generation's names of the weight norm
    renamed = {f"wav2vec2.{key}": value for key, value in weights.items()}
    swaps = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    for old, new in (swaps | {new: old for old, new in swaps.items()}).items():
        key = f"wav2vec2.encoder.pos_conv_embed.conv.{old}"
        if key in renamed and old in swaps:
            renamed[f"wav2vec2.encoder.pos_conv_embed.conv.{new}"] = renamed.pop(key)
    renamed["lm_head.weight"] = torch.zeros(4, 32)
    save_file(renamed, tmp_path / "model.safetensors")
    shutil.copy(DATA / "config.json", tmp_path)
    assert torch.equal(load_audio_encoder(tmp_path).encode(waveform, 16000), expected)


@pytest.mark.parametrize(
    "samples, rate, frames", [(1, 16000, 1), (641, 16000, 2), (48001, 48000, 26), (8000, 11025, 19)]
)
def test_frame_count_and_short_recordings(encoder, samples, rate, frames):
    features = encoder.encode(torch.zeros(2, samples), rate)
    assert len(features) == frames and features.isfinite().all()


@pytest.mark.parametrize("fps", [25.0, 30.0])
@pytest.mark.parametrize("samples", [16000 * 7, 16000 * 7 + 333])
def test_windows_with_all_of_the_context_equal_one_pass(encoder, samples, fps, monkeypatch):
    """What a window takes from the whole recording (levels, the place of its frames) is exact; the rest is context."""
    loud = torch.linspace(0.1, 3, samples) * torch.randn(samples, generator=torch.Generator().manual_seed(0)) + 0.5
    whole = encoder.encode(loud, 16000, fps)
    monkeypatch.setattr(module, "WINDOW_SECONDS", 2)
    monkeypatch.setattr(module, "ONE_PASS_SECONDS", 0)
    monkeypatch.setattr(encoder, "context_seconds", 8.0)
    windows = encoder.encode(loud, 16000, fps)
    torch.testing.assert_close(windows, whole, atol=2e-5, rtol=1e-5)
    monkeypatch.setattr(encoder, "context_seconds", 0.0)  # and a test that can fail
    assert (encoder.encode(loud, 16000, fps) - whole).abs().max() > 1e-3


def test_one_pass_is_that_of_transformers(encoder):
    from torch.nn import functional as F

    waveform = torch.randn(16000 * 3, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.1
    normal = ((waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-7).sqrt())[None]
    with torch.inference_mode():
        convolved = F.interpolate(encoder.model.feature_extractor(normal), size=75, mode="linear", align_corners=True)
        expected = encoder.transform(convolved.transpose(1, 2))
    torch.testing.assert_close(encoder.encode(waveform, 16000), expected, atol=2e-5, rtol=1e-5)


def test_wrong_files(tmp_path):
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    weights = load_file(DATA / "model.safetensors")
    (tmp_path / "part").mkdir()
    shutil.copy(DATA / "config.json", tmp_path / "part")
    weights.pop("encoder.layer_norm.weight")
    save_file(weights, tmp_path / "part" / "model.safetensors")
    (tmp_path / "bert").mkdir()
    shutil.copy(DATA / "model.safetensors", tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "missing": "no audio encoder at",
        "text.safetensors": "not a safetensors file",
        "other.safetensors": "does not hold a wav2vec2",
        "part": "missing encoder.layer_norm.weight; download the model again",
        "bert": "'bert' model",
        "empty": "has no model.safetensors",
    }.items():
        with pytest.raises(InputError, match=expected) as caught:
            load_audio_encoder(tmp_path / name)
        assert "\n" not in str(caught.value)
