"""The autoencoder module: shapes, scaling, chunks, and loading from the layouts that users have."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from letstalk_core.autoencoders import bundled_autoencoder
from letstalk_core.errors import CheckpointError, InputError
from letstalk_core.model.checkpoint import BundledAutoencoder, load_checkpoint, save_checkpoint
from letstalk_core.picture.autoencoder import SMALL_DC_AE, build_autoencoder, load_autoencoder

from .tiny import AUTOENCODER, write_tiny_checkpoint

TINY_KL = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
TINY_DC = SMALL_DC_AE | {
    "encoder_block_out_channels": [8, 8, 16],
    "decoder_block_out_channels": [8, 8, 16],
    "encoder_layers_per_block": [0, 1, 1],
    "decoder_layers_per_block": [0, 1, 1],
    "encoder_qkv_multiscales": [[], [], []],
    "decoder_qkv_multiscales": [[], [], []],
    "latent_channels": 8,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("config, shape", [(TINY_KL, (5, 4, 16, 24)), (TINY_DC, (5, 8, 8, 12))])
def test_shapes_scaling_and_chunks(config, shape):
    images = torch.rand(5, 3, 32, 48) * 2 - 1
    plain, scaled = (
        build_autoencoder(config, latent_scale=1.0).eval(),
        build_autoencoder(config, latent_scale=0.5).eval(),
    )
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        latents = plain.encode(images)
        assert latents.shape == shape
        assert torch.equal(latents, plain.encode(images)), "encoding is deterministic: the mean, not a sample"
        torch.testing.assert_close(scaled.encode(images), latents * 0.5)
        torch.testing.assert_close(plain.encode(images, chunk=2), latents, atol=1e-5, rtol=1e-4)
        decoded = plain.decode(latents)
        torch.testing.assert_close(scaled.decode(latents * 0.5, chunk=2), decoded, atol=1e-5, rtol=1e-4)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    assert plain.decode(latents * 1e4).abs().max() <= 1
    assert not hasattr(type(plain), "device")


def test_scale_comes_from_the_file_unless_given():
    assert build_autoencoder(TINY_KL).latent_scale == 0.18215
    assert build_autoencoder(TINY_KL, latent_scale=2.0).latent_scale == 2.0


def test_small_dc_ae_is_small_and_has_gradients():
    autoencoder = build_autoencoder(SMALL_DC_AE)
    assert 3e6 < sum(p.numel() for p in autoencoder.parameters()) < 6e6
    assert autoencoder.downscale == 16
    latents = autoencoder.encode(torch.zeros(1, 3, 128, 128))
    assert latents.shape == (1, 32, 8, 8)
    autoencoder.decode(latents).square().mean().backward()
    assert all(p.grad is not None for p in autoencoder.parameters())


def test_half_precision_weights_keep_the_dtype_of_the_images():
    autoencoder = build_autoencoder(TINY_DC).to(torch.bfloat16)
    assert autoencoder.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.float32


@pytest.mark.parametrize("config", [TINY_KL, TINY_DC])
def test_folder_single_file_and_metadata(tmp_path, config):
    autoencoder = build_autoencoder(config).eval()
    images = torch.rand(1, 3, 32, 32)
    expected = autoencoder.encode(images)
    weights = autoencoder.model.state_dict()
    autoencoder.model.save_pretrained(tmp_path / "folder")
    save_file(weights, tmp_path / "alone.safetensors", {"config": json.dumps(autoencoder.config)})
    save_file(weights, tmp_path / "bare.safetensors")
    for loaded in (
        load_autoencoder(tmp_path / "folder"),
        load_autoencoder(tmp_path / "folder" / "diffusion_pytorch_model.safetensors"),
        load_autoencoder(tmp_path / "alone.safetensors"),
        load_autoencoder(tmp_path / "bare.safetensors", config=config),
    ):
        assert torch.equal(loaded.encode(images), expected)
        assert not any(p.requires_grad for p in loaded.parameters())


def test_the_autoencoder_in_a_models_file_has_the_models_scale(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "tiny.safetensors", latent_scale=0.5)
    loaded, images = bundled_autoencoder(path), torch.rand(1, 3, 32, 32)
    torch.manual_seed(0)
    expected = build_autoencoder(AUTOENCODER, latent_scale=0.5).eval()
    assert expected.config["scaling_factor"] == 1.0 and torch.equal(loaded.encode(images), expected.encode(images))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    save_checkpoint(path, load_checkpoint(path), BundledAutoencoder(TINY_DC, expected.model.state_dict()))
    with pytest.raises(
        CheckpointError, match=r"tiny\.safetensors: autoencoder: missing .*; unexpected .* in all"
    ) as caught:
        bundled_autoencoder(path)
    assert "\n" not in str(caught.value)
    assert bundled_autoencoder(write_tiny_checkpoint(path, bundle=False)) is None


def _original_layout(weights: dict) -> dict:
    """Weights of a two-level AutoencoderKL under the names of the original latent diffusion code."""
    rules = [
        (r"conv_norm_out", "norm_out"),
        (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
        (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{1 - int(m[1])}.block.{m[2]}"),
        (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    original = {}
    for key, value in weights.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        is_convolution = "attn_1" in key and "norm" not in key and value.ndim == 2
        original[key] = value[..., None, None].contiguous() if is_convolution else value
    return original


def _older_diffusers(weights: dict) -> dict:
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    return {re.sub("|".join(map(re.escape, names)), lambda m: names[m[0]], key): v for key, v in weights.items()}


@pytest.mark.parametrize("layout", [_original_layout, _older_diffusers])
def test_other_layouts_of_the_sd_vae(tmp_path, layout):
    autoencoder = build_autoencoder(TINY_KL).eval()
    renamed = layout(autoencoder.model.state_dict())
    assert set(renamed) != set(autoencoder.model.state_dict())
    save_file(renamed, tmp_path / "vae.safetensors")
    images = torch.rand(1, 3, 32, 32)
    loaded = load_autoencoder(tmp_path / "vae.safetensors", config=TINY_KL)
    torch.testing.assert_close(loaded.encode(images), autoencoder.encode(images))


def test_bad_inputs_are_one_sentence(tmp_path):
    autoencoder = build_autoencoder(TINY_DC)
    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file(autoencoder.model.state_dict(), tmp_path / "dc.safetensors")
    cases = {
        "multiples of 4": lambda: autoencoder.encode(torch.zeros(1, 3, 30, 32)),
        "shape \\[n, 3, H, W\\]": lambda: autoencoder.encode(torch.zeros(1, 4, 32, 32)),
        "do not belong together": lambda: autoencoder.decode(torch.zeros(1, 4, 8, 8)),
        "at least one": lambda: autoencoder.encode(torch.zeros(0, 3, 32, 32)),
        "chunk size": lambda: autoencoder.encode(torch.zeros(1, 3, 32, 32), chunk=0),
        "no autoencoder at": lambda: load_autoencoder(tmp_path / "missing"),
        "has no diffusion_pytorch_model": lambda: load_autoencoder(tmp_path / "folder"),
        "not a safetensors": lambda: load_autoencoder(tmp_path / "text.safetensors"),
        "not an SD-VAE or DC-AE": lambda: load_autoencoder(tmp_path / "other.safetensors"),
        "does not fit": lambda: load_autoencoder(tmp_path / "dc.safetensors", config=TINY_KL),
        "class 'UNet'": lambda: build_autoencoder({"_class_name": "UNet"}),
        "latent scale": lambda: build_autoencoder(TINY_DC, latent_scale=0.0),
    }
    for expected, call in cases.items():
        with pytest.raises(InputError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_fewer_frames_at_a_time_where_memory_is_short(monkeypatch):
    model = build_autoencoder(TINY_DC).eval()
    latents = torch.randn(7, model.latent_channels, 2, 2)
    whole, real, sizes = model.decode(latents), model.model.decode, []

    def decode(part):
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.cuda.OutOfMemoryError("too much")
        return real(part)

    monkeypatch.setattr(model.model, "decode", decode)
    with pytest.warns(UserWarning, match="does not hold 4 frames at a time; going on with 2"):
        torch.testing.assert_close(model.decode(latents), whole, rtol=1e-4, atol=1e-5)
    assert sizes == [7, 7, 4, 2, 2, 2, 1]  # 16, 8, 4, then 2 at a time
    sizes.clear()
    torch.testing.assert_close(model.decode(latents), whole, rtol=1e-4, atol=1e-5)
    assert sizes == [2, 2, 2, 1]  # not tried again
    monkeypatch.setattr(model.model, "decode", lambda part: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model.decode(latents)
