"""wav2vec2 features against values computed once with the research code (tiny random weights, data/wav2vec2)."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from letstalk_core.audio import load_audio_encoder
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


def test_long_recordings_in_parts(encoder, monkeypatch):
    import letstalk_core.wav2vec2 as module

    waveform = torch.randn(16000 * 7 + 5, generator=torch.Generator().manual_seed(0))
    whole = encoder.encode(waveform, 16000)
    monkeypatch.setattr(module, "LONG_SECONDS", 3)
    monkeypatch.setattr(module, "PART_SECONDS", 2)
    monkeypatch.setattr(module, "CONTEXT_SECONDS", 1)
    parts = encoder.encode(waveform, 16000)
    assert parts.shape == whole.shape == (176, encoder.blocks, encoder.channels)
    # Random weights attend to everything alike, so only the time alignment can be checked: a part equals itself alone.
    monkeypatch.setattr(module, "LONG_SECONDS", 60)
    mono = (waveform - waveform.mean()) / waveform.std(unbiased=False)
    alone = encoder._encode_part(mono[16000 : 5 * 16000], 100)  # frames 25 to 125: the part 50..100 and its context
    torch.testing.assert_close(parts[50:100], alone[25:75], atol=1e-4, rtol=1e-4)


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
        "part": "1 tensors are missing",
        "bert": "'bert' model",
        "empty": "has no model.safetensors",
    }.items():
        with pytest.raises(InputError, match=expected) as caught:
            load_audio_encoder(tmp_path / name)
        assert "\n" not in str(caught.value)
