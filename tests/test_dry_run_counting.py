"""What the dry run counts of a batch is what the real model computes and holds."""

import dataclasses
import gc
import weakref

import pytest
import torch
from torch.nn import functional

from letstalk_core.model import attention
from letstalk_core.model.checkpoint import LetsTalkModel
from letstalk_core.model.transformer import GRADIENT_CHECKPOINTING as WAYS
from letstalk_core.picture.autoencoder import SMALL_DC_AE, build_autoencoder
from letstalk_core.training.dry_run.counting import (
    Watch,
    count_encoding,
    count_parameters,
    count_step,
    denoiser_inputs,
)
from letstalk_core.training.training_config import TransformerTraining
from letstalk_core.training.transformer_loss import Denoiser

SIDE = 8  # of the latents
ONE_BIAS = r"^transformer\.linear_out\.bias$"  # frozen or not: the same work, and nothing is kept for it
BUNDLED = "weights/letstalk-portraits-256.safetensors"


def tiny(model=None, **changes):
    model = {"image_size": 256, "latent_channels": 32, **(model or {})}
    values = {"preset": "tiny", "data": "avatar", "data_path": "none", "device": "cpu", "precision": "fp32", **changes}
    return TransformerTraining(model=model, **values)


def count(config, kind="cpu", dtype=torch.float32):
    return count_step(config, config.model_config(), SIDE, kind, dtype)


class Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor):
        self.tensor = tensor


def really_kept(config, dtype=torch.float32, device="cpu"):
    """Bytes of the storages that are there after a real forward pass: autograd's, without weights and inputs, and the
    cache of positions."""
    torch.manual_seed(0)
    model, every = config.model_config(), weakref.WeakSet()
    denoiser = Denoiser(LetsTalkModel(model).train()).to(device)
    denoiser.model.transformer.gradient_checkpointing = config.gradient_checkpointing
    inputs = [x if x is None else x.to(device) for x in denoiser_inputs(model, config.batch_size, SIDE)]
    known = {x.untyped_storage().data_ptr() for x in (*denoiser.parameters(), *inputs) if x is not None}

    def keep(tensor):
        kept = Kept(tensor)
        every.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            output = denoiser(*inputs)
        gc.collect()  # what led to no output, such as the last block's portrait tokens
        storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage() for kept in every}
        assert output.grad_fn is not None  # so it is there until here
    shape = model.transformer
    positions = (SIDE**2 + shape.memory_frames + shape.clip_frames) * shape.width * dtype.itemsize
    return sum(storage.nbytes() for address, storage in storages.items() if address not in known) + positions


@pytest.mark.parametrize(
    "model", [{}, {"attention": "softmax"}, {"controls": ("eyelids", "yaw"), "add_portrait": True}], ids=str
)
def test_parameters_are_those_of_the_real_model(model):
    config = tiny(model)
    real, counted = LetsTalkModel(config.model_config()), count_parameters(config, config.model_config())
    for part in ("transformer", "audio_projection"):
        assert getattr(counted, part) == sum(p.numel() for p in getattr(real, part).parameters())
    assert counted.all == counted.trained == sum(p.numel() for p in real.parameters())
    assert counted.block == sum(p.numel() for p in real.transformer.blocks[0].parameters())


def test_parameters_of_a_frozen_model_and_of_a_lora():
    pytest.importorskip("peft")
    from letstalk_core.model.lora import add_lora

    config = tiny(frozen="^audio_projection")
    counted = count_parameters(config, config.model_config())
    assert counted.trained == counted.transformer
    config = tiny(lora_rank=4, init_from=BUNDLED)
    real = LetsTalkModel(config.model_config())
    add_lora(real, 4, 4)
    counted = count_parameters(config, config.model_config())
    assert counted.all == sum(p.numel() for p in real.parameters())
    assert counted.adapters == counted.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)


def test_flops_are_those_of_a_formula():
    """The linear model, layer by layer; backward is twice forward, but for layers that see data, not activations."""
    config = tiny(batch_size=3)
    model, batch, positions = config.model_config(), 3, SIDE * SIDE
    m, a = model.transformer, model.audio
    d, frames, memory = m.width, m.clip_frames, m.memory_frames
    tokens, all_tokens = batch * frames * positions, batch * (frames + memory) * positions
    audio = batch * frames * a.tokens
    temporal = 5 * d * d * all_tokens + 2 * d * (frames + memory) * all_tokens
    cross = 2 * d * d * tokens + 2 * a.width * d * audio + 2 * d * a.tokens * tokens
    spatial = 2 * tokens * (4 * d * d + 2 * d * m.linear_head_width + d)  # frame and portrait
    feed_forward = tokens * (d * 8 * d + 9 * 8 * d + 4 * d * d)
    blocks = m.depth * (temporal + cross + spatial + feed_forward + 6 * d * d * batch)
    last = tokens * d * model.output_channels
    data = (all_tokens + batch * positions) * m.latent_channels * d
    data += batch * frames * a.window * a.blocks * a.channels * a.hidden
    second = batch * frames * a.hidden * (a.hidden + a.tokens * a.width)
    by_hand = 2 * (3 * (blocks + last + second) + 2 * data)
    assert count(config).flops == pytest.approx(by_hand, rel=0.01)


@pytest.mark.parametrize("way", ["none", "selective"])  # autograd's hooks do not see the tuples that "full" keeps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_activations_are_what_autograd_keeps(kind, dtype, way):
    config = tiny({"attention": kind, "depth": 3}, batch_size=2, gradient_checkpointing=way)
    counted, kept = count(config, "cpu", dtype), really_kept(config, dtype)
    if dtype == torch.float32:
        assert counted.activations == kept
    else:  # a fake LayerNorm keeps means and deviations in 16 bits
        assert counted.activations + counted.copies == pytest.approx(kept, rel=0.005)
    assert (counted.copies > 0) == (dtype == torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_activations_are_what_autograd_keeps_on_a_card(kind):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = tiny({"attention": kind, "depth": 3, "width": 128}, batch_size=2, device="auto", precision="bf16")
    counted = count(config, "cuda", torch.bfloat16)
    kept = really_kept(config, torch.bfloat16, "cuda")
    assert counted.activations + counted.copies == pytest.approx(kept, rel=0.03)


def test_memory_grows_linearly_with_the_batch():
    """But for one set of positions: the tokens' of place and time, and the portrait's, in bfloat16."""
    transformer = tiny().model_config().transformer
    frames = transformer.memory_frames + transformer.clip_frames
    positions = transformer.width * (4 * (SIDE**2 + frames) + 2 * SIDE**2)
    one, two, five = (count(tiny(batch_size=size), "cuda", torch.bfloat16) for size in (1, 2, 5))
    assert five.activations - one.activations == 4 * (two.activations - one.activations)
    assert two.activations == 2 * one.activations - positions
    assert one.copies == five.copies and five.flops == 5 * one.flops


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_checkpointing_holds_less_and_computes_more(kind):
    model = {"attention": kind, "depth": 6}
    usual, some, again = (count(tiny(model, batch_size=2, gradient_checkpointing=way)) for way in WAYS)
    assert again.activations < 0.2 * usual.activations
    # One block's activations come back in the backward pass, no more.
    assert again.activations + again.working < 0.4 * (usual.activations + usual.working)
    assert 1.2 * usual.flops < again.flops < 1.4 * usual.flops
    assert 2 * again.activations < some.activations < 0.8 * usual.activations
    assert some.activations + some.working < 0.8 * (usual.activations + usual.working)
    assert usual.flops <= some.flops < 1.05 * usual.flops


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_no_product_is_computed_again_where_checkpointing_is_selective(kind):
    """Of a real forward and backward pass; linear attention itself is, which is a small part of the work."""
    config, flops = tiny({"attention": kind, "depth": 3, "width": 256}), {}
    given = denoiser_inputs(config.model_config(), 1, SIDE)
    denoiser = Denoiser(LetsTalkModel(config.model_config()))
    for way in WAYS:
        denoiser.model.transformer.gradient_checkpointing = way
        with Watch() as watch:
            denoiser(*given).sum().backward()
        flops[way] = watch.flops
    assert flops["none"] <= flops["selective"] < 1.01 * flops["none"] < 1.25 * flops["none"] < flops["full"]
    assert (flops["selective"] == flops["none"]) == (kind == "softmax")


@pytest.mark.parametrize("checkpointing", WAYS)
@pytest.mark.parametrize("portrait", ["direct", "siamese", "symbiotic"])
@pytest.mark.parametrize("audio", ["direct", "siamese", "symbiotic"])
def test_deep_models_are_counted_from_two_blocks(portrait, audio, checkpointing):
    """Where something is frozen the whole model is counted."""
    model = {"portrait_fusion": portrait, "audio_fusion": audio, "depth": 5}
    config = tiny(model, gradient_checkpointing=checkpointing)
    quick, whole = count(config), count(dataclasses.replace(config, frozen=ONE_BIAS))
    assert (quick.flops, quick.activations) == (whole.flops, whole.activations)
    assert quick.working == pytest.approx(whole.working, rel=0.1)


def test_frozen_blocks_are_counted_where_they_are():
    usual, frozen = count(tiny({"depth": 5})), count(tiny({"depth": 5}, frozen=r"blocks\.[2-4]\."))
    assert 0.6 * usual.flops < frozen.flops < 0.9 * usual.flops  # three of five need no gradient of their weights


def test_a_watch_counts_storages_once_and_forgets_what_is_gone():
    known = torch.zeros(1000)
    with Watch([known], []) as watch:
        first = known + 1
        views = [first[:10], first.view(10, 100)]
        assert watch.held == 4000
        second = first * 2
        del first, views
        assert watch.held == 4000 and watch.peak == 8000
        known.to(torch.bfloat16)
        assert watch.held == 4000 and watch.copies == 0
        copy = known.to(torch.bfloat16)
        assert watch.held == 6000 and watch.copies == 2000
    del second, copy


def test_counting_changes_nothing():
    before = (attention.PLAIN_KEYS, functional.layer_norm, functional.group_norm, torch.get_default_dtype())
    config = tiny()
    count(config, "cuda", torch.bfloat16)
    count_encoding(SMALL_DC_AE, 3, 64, "cuda", torch.bfloat16)
    assert (attention.PLAIN_KEYS, functional.layer_norm, functional.group_norm, torch.get_default_dtype()) == before
    model = config.model_config()
    output = Denoiser(LetsTalkModel(model))(*denoiser_inputs(model, 1, SIDE))
    assert type(output) is torch.Tensor and torch.isfinite(output).all()


def test_encoding_is_counted_like_a_real_run():
    torch.manual_seed(0)
    images, autoencoder = torch.zeros(3, 3, 64, 64), build_autoencoder(SMALL_DC_AE).eval()
    with torch.no_grad(), Watch(autoencoder.parameters(), [images]) as watch:
        autoencoder.encode(images)
    counted = count_encoding(SMALL_DC_AE, 3, 64, "cpu", torch.float32)
    assert counted.flops == watch.flops > 0
    assert counted.working == watch.peak + 3 * images.nbytes
