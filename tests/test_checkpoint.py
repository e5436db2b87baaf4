"""Checkpoints: what goes in comes out, and everything else is refused with one sentence."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from letstalk_core.errors import CheckpointError, InputError
from letstalk_core.model.checkpoint import (
    BundledAutoencoder,
    LetsTalkModel,
    describe_checkpoint,
    load_bundled_autoencoder,
    load_checkpoint,
    save_checkpoint,
)
from letstalk_core.pipeline import BUNDLED_MODEL
from letstalk_core.presets import PRESETS

from .tiny import write_tiny_checkpoint

TINY = PRESETS["tiny"].with_changes(width=32, heads=2, audio_width=16)
AUTOENCODER = BundledAutoencoder(
    {"_class_name": "AutoencoderDC", "latent_channels": 4},
    {"decoder.weight": torch.randn(3, 2), "steps": torch.tensor(7)},
)


@pytest.fixture
def model():
    return LetsTalkModel(TINY)


@pytest.fixture
def path(model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", model, AUTOENCODER, notes={"trained_on": "nothing"})
    return tmp_path / "model.safetensors"


def rewrite(path, change):
    """Change a checkpoint's tensors and metadata in place, as change(tensors, metadata) does."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def test_round_trip(model, path):
    loaded = load_checkpoint(path)
    assert loaded.config == model.config
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())
    bundled = load_bundled_autoencoder(path)
    assert bundled.config == {**AUTOENCODER.config, "scaling_factor": TINY.latent_scale}
    assert bundled.weights.keys() == AUTOENCODER.weights.keys()
    for key, value in AUTOENCODER.weights.items():
        assert torch.equal(bundled.weights[key], value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    save_checkpoint(path, loaded, bundled)  # onto the file that it came from
    assert load_checkpoint(path).config == model.config
    assert torch.equal(load_bundled_autoencoder(path).weights["steps"], torch.tensor(7))


def test_without_an_autoencoder(tmp_path):
    save_checkpoint(tmp_path / "new" / "m.safetensors", LetsTalkModel(TINY))
    assert load_checkpoint(tmp_path / "new" / "m.safetensors").config == TINY
    assert load_bundled_autoencoder(tmp_path / "new" / "m.safetensors") is None


def test_half_precision_halves_the_file_and_loads_as_float32(model, path):
    half = path.with_name("half.safetensors")
    save_checkpoint(half, model, AUTOENCODER, dtype=torch.float16)
    assert half.stat().st_size < 0.6 * path.stat().st_size
    loaded = load_checkpoint(half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    types = {key: value.dtype for key, value in load_bundled_autoencoder(half).weights.items()}
    assert types == {"decoder.weight": torch.float32, "steps": torch.int64}
    types = {key: value.dtype for key, value in load_bundled_autoencoder(half, dtype=None).weights.items()}
    assert types == {"decoder.weight": torch.float16, "steps": torch.int64}
    assert {parameter.dtype for parameter in load_checkpoint(half, dtype=None).parameters()} == {torch.float16}
    first = next(iter(model.parameters()))
    torch.testing.assert_close(next(iter(loaded.parameters())), first, rtol=1e-3, atol=1e-3)


def test_a_failed_save_leaves_the_old_file(model, path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="cannot be written .no space.*check the free space"):
        save_checkpoint(path, model)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_places_that_cannot_be_written_are_named(model, path, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for target in (path / "inside.safetensors", tmp_path / "folder.safetensors", tmp_path / ("a" * 300)):
        with pytest.raises(InputError, match="cannot be written|is a folder") as caught:
            save_checkpoint(target, model)
        assert str(target) in str(caught.value) and "\n" not in str(caught.value)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "folder.safetensors"}


def test_description(path):
    text = describe_checkpoint(path)
    for part in ("transformer: 0.", "audio_projection: 0.", "bundled, AutoencoderDC", "F32", "trained_on: nothing"):
        assert part in text
    assert "width = 32" in text


def test_files_that_are_no_checkpoint(path, tmp_path):
    def refused(name, sentence, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for function in (load_checkpoint, describe_checkpoint, load_bundled_autoencoder):
            with pytest.raises(CheckpointError, match=sentence) as caught:
                function(tmp_path / name)
            assert "\n" not in str(caught.value)

    whole = path.read_bytes()
    refused("nowhere.safetensors", "no such file")
    refused(".", "not a file")
    refused("empty.safetensors", "is empty", b"")
    refused("picture.safetensors", "not a safetensors file", b"\xff\xd8\xff\xe0 a jpeg image")
    refused("half.safetensors", "truncated", whole[: len(whole) // 2])
    refused("head.safetensors", "truncated", whole[:100])
    torch.save({"ema": {}}, tmp_path / "official.ckpt")
    refused("official.ckpt", "convert")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    refused("other.safetensors", "another architecture")


def drop_keys(tensors, metadata):
    for key in [key for key in tensors if "temporal" in key]:
        del tensors[key]


def add_key(tensors, metadata):
    tensors["transformer.new"] = torch.zeros(1)


def add_part(tensors, metadata):
    tensors["vocoder.weight"] = torch.zeros(1)


def reshape_key(tensors, metadata):
    tensors["transformer.linear_out.bias"] = torch.zeros(3)


def drop_autoencoder(tensors, metadata):
    for key in [key for key in tensors if key.startswith("autoencoder.")]:
        del tensors[key]


def rewrite_configuration(change):
    def rewritten(tensors, metadata):
        values = json.loads(metadata["letstalk_config"])
        change(values)
        metadata["letstalk_config"] = json.dumps(values)

    return rewritten


newer_key = rewrite_configuration(lambda values: values["audio"].update(hyperdrive=1))
newer_part = rewrite_configuration(lambda values: values.update(hyperdrive={"speed": 1}))


def test_a_model_that_was_always_told_of_the_eyelids_means_the_same(tmp_path):
    """As versions 1 and 2 wrote it: blink_condition, and weights that take no more than the closure."""
    path = write_tiny_checkpoint(tmp_path / "model.safetensors")
    model = load_checkpoint(path)
    blink = model.audio_projection.control
    blink[0].weight.data.view(len(blink[0].weight), -1, 2)[..., 1] = 0  # whether it is asked for did not matter
    always = blink[0].weight.data.view(len(blink[0].weight), -1, 2)[..., 0]

    def as_before(tensors, metadata):
        for name in [name for name in tensors if name.startswith("audio_projection.control.")]:
            tensors[name.replace(".control.", ".blink.")] = tensors.pop(name)
        tensors["audio_projection.blink.0.weight"] = always.contiguous()
        config = json.loads(metadata["letstalk_config"])
        assert config["departures"].pop("controls") == ["eyelids"]
        metadata["letstalk_config"] = json.dumps(
            {**config, "version": 2} | {"departures": {**config["departures"], "blink_condition": True}}
        )

    rewrite(path, as_before)
    before = load_checkpoint(path)
    audio = before.config.audio
    features = torch.randn(1, 3, audio.window, audio.blocks, audio.channels)
    closure = torch.rand(1, 3, audio.window, 1)
    assert before.config == model.config
    tokens = before.audio_projection(features, closure)
    assert torch.equal(tokens, model.audio_projection(features, closure))
    by_hand = blink[1:](closure[..., 0] @ always.T + blink[0].bias)  # its sums are rounded otherwise on some CPUs
    torch.testing.assert_close(tokens[:, :, -1], by_hand)


newer_version = rewrite_configuration(lambda values: values.update(version=4))
older_key = rewrite_configuration(lambda values: (values.clear(), values.update(hyperdrive=1)))
other_fusion = rewrite_configuration(lambda values: values["transformer"].update(portrait_fusion="osmotic"))


def newer_format(tensors, metadata):
    metadata["format"] = "letstalk-9"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop_keys, r"missing blocks\.0\.temporal.*more \(16 in all\)"),
        (add_key, "unexpected new"),
        (add_part, r"unknown tensors vocoder\.weight"),
        (reshape_key, r"linear_out\.bias is \(3,\), the configuration needs \(8,\)"),
        (drop_autoencoder, "lacks its weights"),
        (newer_key, "unknown keys.*'audio.hyperdrive'"),
        (newer_part, "unknown keys.*'hyperdrive'"),
        (older_key, "unknown keys.*'hyperdrive'"),
        (newer_version, "version is 4, and 3 is the newest that is known here"),
        (newer_format, "letstalk-9"),
        (other_fusion, "portrait_fusion is 'osmotic', not one of"),
    ],
)
def test_contradictions_are_named(path, change, sentence):
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.skipif(not BUNDLED_MODEL.exists(), reason="no bundled model in this repository yet")
def test_a_file_with_a_flat_configuration_is_read_whole(tmp_path):
    """As the first versions wrote it."""
    config = load_checkpoint(BUNDLED_MODEL).config
    with safe_open(BUNDLED_MODEL, "pt") as file:
        notes, tensors = file.metadata(), load_file(BUNDLED_MODEL)
    assert json.loads(notes["letstalk_config"])["version"] > 1
    path = tmp_path / "flat.safetensors"
    save_file(tensors, path, metadata={**notes, "letstalk_config": json.dumps(config.flat())})
    assert load_checkpoint(path).config == config
