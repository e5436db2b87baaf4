"""Checkpoints in the official layout: converted whole and unchanged, or refused with one sentence."""

import json
import pickle

import pytest
import torch

from letstalk_core.errors import CheckpointError
from letstalk_core.model.checkpoint import load_checkpoint
from letstalk_core.model.official import convert_checkpoint

from .test_checkpoint import rewrite

# The configuration that the previous release wrote when it converted linear_long.ckpt, before there were parts.
OLD_CONFIG = (
    '{"add_portrait": false, "attention": "linear", "audio_blocks": 3, "audio_channels": 16, "audio_convolutions": '
    'false, "audio_encoder": "wav2vec2", "audio_fusion": "direct", "audio_hidden": 32, "audio_tokens": 8, '
    '"audio_width": 24, "audio_window": 5, "autoencoder": "dc-ae", "blink_condition": false, "border_smoothing": '
    '0.0, "clip_frames": 6, "default_guidance_scale": 1.0, "default_sampler": "ddpm", "default_steps": 250, '
    '"depth": 3, "fps": 25.0, "heads": 4, "image_size": 128, "latent_channels": 32, "latent_scale": 0.41407, '
    '"learn_variance": true, "linear_head_width": 32, "memory_frames": 2, "memory_scale": 1.0, "mlp_ratio": 4.0, '
    '"noise_scale": 1.0, "objective": "noise", "patch_size": 1, "portrait_each_frame": true, "portrait_fusion": '
    '"symbiotic", "relative_latents": false, "relative_scale": 1.0, "time_shift": 1.0, "width": 64}'
)


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
    expected = json.loads(OLD_CONFIG) | {"controls": ()}
    assert not expected.pop("blink_condition") and config.flat() == expected
    assert convert(official, tmp_path, clip_frames=4).transformer.memory_frames == 4


def test_a_file_that_the_previous_release_converted_is_the_same_model(official, tmp_path):
    config, path = convert(official, tmp_path), tmp_path / "out.safetensors"
    now = load_checkpoint(path)
    rewrite(path, lambda tensors, metadata: metadata.update(letstalk_config=OLD_CONFIG))
    loaded = load_checkpoint(path)
    assert loaded.config == now.config == config
    assert loaded.state_dict().keys() == now.state_dict().keys()
    assert all(torch.equal(value, now.state_dict()[key]) for key, value in loaded.state_dict().items())


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
