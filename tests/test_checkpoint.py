"""Checkpoints: what goes in comes out, and everything else is refused with one sentence."""

import dataclasses
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from letstalk_core.config import PRESETS
from letstalk_core.model.checkpoint import (
    CheckpointError,
    LetsTalkModel,
    describe_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from letstalk_core.model.official import convert_checkpoint

TINY = dataclasses.replace(PRESETS["tiny"], width=32, heads=2, audio_width=16)


@pytest.fixture
def model():
    autoencoder = {"decoder.weight": torch.randn(3, 2), "steps": torch.tensor(7)}
    return LetsTalkModel(TINY, autoencoder, {"_class_name": "AutoencoderDC", "latent_channels": 4})


@pytest.fixture
def path(model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", model, notes={"trained_on": "nothing"})
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
    assert loaded.autoencoder_config == model.autoencoder_config
    assert loaded.autoencoder_state.keys() == model.autoencoder_state.keys()
    for key, value in model.autoencoder_state.items():
        assert torch.equal(loaded.autoencoder_state[key], value)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    save_checkpoint(path, loaded)  # onto the file that it came from
    assert load_checkpoint(path).config == model.config


def test_without_an_autoencoder(tmp_path):
    save_checkpoint(tmp_path / "new" / "m.safetensors", LetsTalkModel(TINY))
    loaded = load_checkpoint(tmp_path / "new" / "m.safetensors")
    assert loaded.autoencoder_state is None
    assert loaded.autoencoder_config is None


def test_half_precision_halves_the_file_and_loads_as_float32(model, path):
    half = path.with_name("half.safetensors")
    save_checkpoint(half, model, dtype=torch.float16)
    assert half.stat().st_size < 0.6 * path.stat().st_size
    loaded = load_checkpoint(half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.autoencoder_state["steps"].dtype == torch.int64
    assert {parameter.dtype for parameter in load_checkpoint(half, dtype=None).parameters()} == {torch.float16}
    first = next(iter(model.parameters()))
    torch.testing.assert_close(next(iter(loaded.parameters())), first, rtol=1e-3, atol=1e-3)


def test_a_failed_save_leaves_the_old_file(model, path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written .no space.*check the folder's space"):
        save_checkpoint(path, model)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_places_that_cannot_be_written_are_named(model, path, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for target in (path / "inside.safetensors", tmp_path / "folder.safetensors", tmp_path / ("a" * 300)):
        with pytest.raises(CheckpointError, match="cannot be written") as caught:
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
        for function in (load_checkpoint, describe_checkpoint):
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


def newer_configuration(tensors, metadata):
    metadata["letstalk_config"] = json.dumps({**json.loads(metadata["letstalk_config"]), "hyperdrive": 1})


def other_fusion(tensors, metadata):
    metadata["letstalk_config"] = json.dumps({**json.loads(metadata["letstalk_config"]), "portrait_fusion": "osmotic"})


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
        (newer_configuration, "unknown keys.*hyperdrive"),
        (newer_format, "letstalk-9"),
        (other_fusion, "portrait_fusion is 'osmotic', not one of"),
    ],
)
def test_contradictions_are_named(path, change, sentence):
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=sentence):
        load_checkpoint(path)


class Trap:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize(
    "write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, write):
    sprung = tmp_path / "sprung"
    write({"ema": Trap(sprung), "audioproj": {}}, tmp_path / "trap.ckpt")
    with pytest.raises(CheckpointError, match="could run code"):
        convert_checkpoint(tmp_path / "trap.ckpt", tmp_path / "out.safetensors")
    assert not sprung.exists()
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(CheckpointError, match="PyTorch checkpoint"):
        load_checkpoint(tmp_path / "trap.ckpt")
    assert not sprung.exists()


@pytest.fixture
def official(repository):
    return repository / "tests/data/reference/linear_long.ckpt"


def convert(source, folder, **options):
    return convert_checkpoint(source, folder / "out.safetensors", **{"num_heads": 4, "audio_blocks": 3, **options})


def test_conversion_reads_the_shapes(official, tmp_path):
    config = convert(official, tmp_path)
    assert (config.depth, config.width, config.heads, config.attention) == (3, 64, 4, "linear")
    assert (config.memory_frames, config.clip_frames, config.image_size) == (2, 6, 128)
    assert (config.audio_tokens, config.audio_width, config.audio_channels) == (8, 24, 16)
    assert (config.autoencoder, config.mlp_ratio, config.learn_variance) == ("dc-ae", 4.0, True)
    assert convert(official, tmp_path, clip_frames=4).memory_frames == 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(num_heads=None), "num_heads must be given"),
        (dict(num_heads=5), "not a multiple of heads 5"),
        (dict(num_heads=0), "num_heads is 0"),
        (dict(memory_frames=2, clip_frames=16), "contradict its 8 time positions"),
        (dict(memory_frames=8), "contradict its 8 time positions"),
        (dict(audio_blocks=None), "audio_blocks or audio_channels is needed"),
        (dict(audio_blocks=3, audio_channels=17), "contradict its 240 audio inputs"),
        (dict(audio_blocks=7), "contradict its 240 audio inputs"),
    ],
)
def test_conversion_options_that_contradict_the_file(official, tmp_path, options, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        convert(official, tmp_path, **options)
    assert not (tmp_path / "out.safetensors").exists()


def without_audio(content):
    del content["audioproj"]


def without_block_key(content):
    del content["ema"]["blocks.1.attn.qkv.weight"]


def without_embedding(content):
    del content["ema"]["x_embedder.proj.weight"]


def with_stranger(content):
    content["ema"]["lora.weight"] = torch.zeros(1)


def trained_positions(content):
    content["ema"]["pos_embed"] = content["ema"]["pos_embed"] + 1


def other_layout(content):
    content["state_dict"] = content.pop("ema")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_audio, "'audioproj'"),
        (without_block_key, r"missing blocks\.1\.spatial\.qkv\.weight"),
        (without_embedding, r"patch_embedding\.weight is missing"),
        (with_stranger, r"lora\.weight"),
        (trained_positions, "pos_embed is not the fixed"),
        (other_layout, "not in the official layout"),
    ],
)
def test_official_files_that_are_not_whole(official, tmp_path, change, sentence):
    content = torch.load(official, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(CheckpointError, match=sentence):
        convert(tmp_path / "changed.ckpt", tmp_path)


def test_ema_is_preferred(official, tmp_path):
    content = torch.load(official, weights_only=True)
    content["model"] = {key: torch.zeros_like(value) for key, value in content["ema"].items()}
    torch.save(content, tmp_path / "both.ckpt")
    convert(tmp_path / "both.ckpt", tmp_path)
    assert load_checkpoint(tmp_path / "out.safetensors").transformer.linear_out.weight.abs().max() > 0


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_official_files_that_are_damaged_or_something_else(official, tmp_path):
    contents = [
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02X\xff\xff",
        b"this is a text\n",
        b"config: of something\nelse: 1\n",
        pickle.dumps({"ema": {}}, protocol=5),
        official.read_bytes()[:5000],
        official.read_bytes()[:-5000],
    ]
    for content in contents:
        (tmp_path / "bad.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged or not a PyTorch checkpoint") as caught:
            convert(tmp_path / "bad.ckpt", tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_checkpoint_is_not_converted_onto_itself(official, tmp_path):
    source = tmp_path / "model.ckpt"
    source.write_bytes(official.read_bytes())
    (tmp_path / "link").symlink_to(source)
    for target in (source, tmp_path / "link"):
        with pytest.raises(CheckpointError, match="choose another target"):
            convert_checkpoint(source, target, num_heads=4, audio_blocks=3)
    assert source.read_bytes() == official.read_bytes()
