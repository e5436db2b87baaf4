"""The dry run of a training: what it counts is what a training computes and holds; configs/ and their table agree."""

import dataclasses
import gc
import json
import math
import re
import weakref

import pytest
import torch
from torch.nn import functional

from letstalk_core.config import PRESETS
from letstalk_core.errors import InputError
from letstalk_core.model import attention
from letstalk_core.model.checkpoint import LetsTalkModel
from letstalk_core.training.dry_run import counting
from letstalk_core.training.dry_run import description as plan
from letstalk_core.training.dry_run import speed as measuring
from letstalk_core.training.dry_run.counting import Watch, count_parameters, count_step, denoiser_inputs
from letstalk_core.training.dry_run.description import describe, estimate, flop, gib, millions
from letstalk_core.training.training_config import TrainingConfig, load_config
from letstalk_core.training.transformer_loss import Denoiser

SIDE = 8  # of the latents
BUNDLED = "weights/letstalk-avatar-128.safetensors"
VARIANTS = [
    f"{attention}-{name}-{px}"
    for attention in ("linear", "softmax")
    for px in (256, 512)
    for name in ("S", "B", "L", "XL")
]


@pytest.fixture(autouse=True)
def in_the_repository(repository, monkeypatch):
    """Paths in configs/ begin there."""
    monkeypatch.chdir(repository)


def described(config, devices=1):
    """The description without its line breaks."""
    return " ".join(describe(config, devices).split())


def tiny(model=None, **changes):
    model = {"image_size": 256, "latent_channels": 32, **(model or {})}
    values = {"preset": "tiny", "data": "avatar", "data_path": "none", "device": "cpu", "precision": "fp32", **changes}
    return TrainingConfig(model=model, **values)


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
    positions = (SIDE**2 + model.memory_frames + model.clip_frames) * model.width * dtype.itemsize
    return sum(storage.nbytes() for address, storage in storages.items() if address not in known) + positions


# Counting -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [{}, {"attention": "softmax"}, {"blink_condition": True, "add_portrait": True}], ids=str
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
    m, batch, positions = config.model_config(), 3, SIDE * SIDE
    d, frames, memory = m.width, m.clip_frames, m.memory_frames
    tokens, all_tokens = batch * frames * positions, batch * (frames + memory) * positions
    audio = batch * frames * m.audio_tokens
    temporal = 5 * d * d * all_tokens + 2 * d * (frames + memory) * all_tokens
    cross = 2 * d * d * tokens + 2 * m.audio_width * d * audio + 2 * d * m.audio_tokens * tokens
    spatial = 2 * tokens * (4 * d * d + 2 * d * m.linear_head_width + d)  # frame and portrait
    feed_forward = tokens * (d * 8 * d + 9 * 8 * d + 4 * d * d)
    blocks = m.depth * (temporal + cross + spatial + feed_forward + 6 * d * d * batch)
    last = tokens * d * m.output_channels
    data = (all_tokens + batch * positions) * m.latent_channels * d
    data += batch * frames * m.audio_window * m.audio_blocks * m.audio_channels * m.audio_hidden
    second = batch * frames * m.audio_hidden * (m.audio_hidden + m.audio_tokens * m.audio_width)
    by_hand = 2 * (3 * (blocks + last + second) + 2 * data)
    assert count(config).flops == pytest.approx(by_hand, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_activations_are_what_autograd_keeps(kind, dtype):
    config = tiny({"attention": kind, "depth": 3}, batch_size=2)
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
    one, two, five = (count(tiny(batch_size=size), "cuda", torch.bfloat16) for size in (1, 2, 5))
    assert five.activations - one.activations == 4 * (two.activations - one.activations)
    assert two.activations == pytest.approx(2 * one.activations, rel=0.001)
    assert one.copies == five.copies and five.flops == 5 * one.flops


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_checkpointing_holds_less_and_computes_more(kind):
    model = {"attention": kind, "depth": 6}
    usual, again = (count(tiny(model, batch_size=2, gradient_checkpointing=on)) for on in (False, True))
    assert again.activations < 0.2 * usual.activations
    # One block's activations come back in the backward pass, no more.
    assert again.activations + again.working < 0.4 * (usual.activations + usual.working)
    assert 1.2 * usual.flops < again.flops < 1.4 * usual.flops


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("portrait", ["direct", "siamese", "symbiotic"])
@pytest.mark.parametrize("audio", ["direct", "siamese", "symbiotic"])
def test_deep_models_are_counted_from_two_blocks(portrait, audio, checkpointing):
    model = {"portrait_fusion": portrait, "audio_fusion": audio, "depth": 5}
    config = tiny(model, gradient_checkpointing=checkpointing)
    whole = counting._count_batch(config, config.model_config(), SIDE, "cpu", torch.float32)
    quick = count(config)
    assert (quick.flops, quick.activations) == (whole.flops, whole.activations)
    assert quick.working == pytest.approx(whole.working, rel=0.1)


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
    counting.count_encoding(plan.SMALL_DC_AE, 3, 64, "cuda", torch.bfloat16)
    assert (attention.PLAIN_KEYS, functional.layer_norm, functional.group_norm, torch.get_default_dtype()) == before
    model = config.model_config()
    output = Denoiser(LetsTalkModel(model))(*denoiser_inputs(model, 1, SIDE))
    assert type(output) is torch.Tensor and torch.isfinite(output).all()


def test_encoding_is_counted_like_a_real_run():
    from letstalk_core.picture.autoencoder import build_autoencoder

    torch.manual_seed(0)
    images, autoencoder = torch.zeros(3, 3, 64, 64), build_autoencoder(plan.SMALL_DC_AE).eval()
    with torch.no_grad(), Watch(autoencoder.parameters(), [images]) as watch:
        autoencoder.encode(images)
    counted = counting.count_encoding(plan.SMALL_DC_AE, 3, 64, "cpu", torch.float32)
    assert counted.flops == watch.flops > 0
    assert counted.working == watch.peak + 3 * images.nbytes


# Telling --------------------------------------------------------------------------------------------------------------


def test_the_description_of_a_small_training():
    text = described(load_config("configs/tiny-avatar.yaml", ["device=cpu", "precision=fp32"]))
    parameters = estimate(load_config("configs/tiny-avatar.yaml")).parameters
    assert f"{millions(parameters.all)} parameters" in text and "all of them trained" in text
    for word in ("TFLOP/s", "GiB on the CPU in fp32", "perfect", "margin", "of a large matrix product"):
        assert (word in text) == (word != "perfect"), text


def test_several_devices_share_or_copy():
    config = load_config("configs/linear-XL-512.yaml")
    one, eight = estimate(config), estimate(config, 8)
    assert eight.clips == 8 * one.clips and eight.flops == one.flops
    assert eight.memory(sharded=True) < one.memory() < eight.memory()
    weights = 4 * one.parameters.all
    parts = one.parts()
    assert parts["weights"] == parts["gradients"] == parts["average"] == parts["AdamW"] / 2 == weights
    assert sum(parts.values()) == one.memory()


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr(plan, "_device_memory", lambda config: ("this card", 2**20))
    text = described(tiny(batch_size=2))
    assert "More than the 0.0 GiB of this card: choose gradient_checkpointing=true or a smaller batch_size" in text
    text = described(tiny(batch_size=1, gradient_checkpointing=True))
    assert "choose a smaller model, or more devices with FSDP" in text


def test_a_shape_too_slow_for_the_hardware_is_measured_smaller(monkeypatch):
    monkeypatch.setattr(measuring, "_product_rate", lambda device, dtype: 1e6)
    plan_of = estimate(tiny(batch_size=4))
    speed = measuring.measure(plan_of.config, plan_of.model, plan_of.step, plan_of.latent_side)
    assert speed.block > 0 and speed.shape.startswith("1 clip of 1 frame, 1 of 8 rows (instead of 4 of 4:")


def test_shards_are_looked_into(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("x.json", "x.mp4", "y.json", "y.mp4"):
            shard.addfile(tarfile.TarInfo(name))
    config = tiny(data="shards", data_path=str(tmp_path), steps=10, batch_size=2)
    plan_of = estimate(config)
    assert plan_of.encoded == 1 + plan_of.model.memory_frames + plan_of.model.clip_frames
    text = "\n".join(text for _, text in plan._model_lines(plan_of))
    assert "20 clips" in text and "10 epochs of 2 stretches" in text and "the shards hold no latents" in text
    with tarfile.open(tmp_path / "a.tar", "a") as shard:
        shard.addfile(tarfile.TarInfo("x.latents.npy"))
    assert estimate(config).encoded == 3
    assert estimate(dataclasses.replace(config, memory_pixel_noise=False)).encoded == 0


def test_an_autoencoder_is_described_shortly():
    text = describe(load_config("configs/autoencoder-avatar.yaml", ["steps=100", "batch_size=4"]), 2)
    assert "5.52 M parameters; 800 images in 100 steps of 8" in text and "\n" not in text


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({}, 0, "one device or more"),
        ({"model": {"image_size": 40}}, 1, "40 pixels"),
        ({"frozen": "nothing"}, 1, "no parameter has such a name"),
        ({"preset": "", "init_from": "nowhere.safetensors"}, 1, "no such file"),
    ],
)
def test_errors_are_one_sentence(changes, devices, message):
    with pytest.raises(InputError, match=message):
        describe(tiny(**changes), devices)


def test_the_command_prints_it(capsys):
    from letstalk_core.cli import main

    changes = ["preset=tiny", "data=avatar", "data_path=none", "device=cpu", "precision=fp32", "model.image_size=128"]
    assert main(["train", "--dry-run", "--devices", "2", *changes]) == 0
    printed = capsys.readouterr().out
    assert "with FSDP over 2" in printed and "perfect scaling" in printed
    assert max(len(line) for line in printed.splitlines()) <= 112


# configs/ and docs/configurations.md ----------------------------------------------------------------------------------


def test_every_variant_has_a_configuration(repository):
    names = {path.stem for path in (repository / "configs").glob("*.yaml")}
    assert names == {*VARIANTS, "finetune-speaker", "tiny-avatar", "autoencoder-avatar"}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_the_papers_recipe(repository, name):
    config = load_config(repository / "configs" / f"{name}.yaml")
    preset, px = name.rsplit("-", 1)
    model = config.model_config()
    assert (config.preset, model.image_size, config.run) == (preset, int(px), f"runs/{name}")
    assert model == dataclasses.replace(PRESETS[preset], image_size=int(px), memory_frames=2)
    recipe = TrainingConfig(preset=preset, data_path="none", audio_dropout=0.1, portrait_dropout=0.05)
    for key in ("steps", "learning_rate", "schedule", "beta1", "beta2", "weight_decay", "gradient_clip", "ema_decay",
                "gradient_clip_start", "audio_dropout", "portrait_dropout", "memory_pixel_noise", "memory_noise_steps",
                "memory_mask", "memory_mask_share", "memory_shared_noise"):  # fmt: skip
        assert getattr(config, key) == getattr(recipe, key), key
    assert config.batch_size * config.accumulation == 8


@pytest.mark.parametrize("name", ["finetune-speaker", "tiny-avatar", "autoencoder-avatar"])
def test_the_other_configurations_are_valid(repository, name):
    load_config(repository / "configs" / f"{name}.yaml")


def rows(repository):
    """The table of the document: name -> its other cells."""
    text = (repository / "docs" / "configurations.md").read_text()
    lines = re.finditer(r"^\| `([\w-]+)` \|(.+)\|$", text.partition("## All keys")[0], re.M)
    return {line[1]: [cell.strip() for cell in line[2].split("|")] for line in lines}


def row_of(plan_of):
    """Cells of the table."""
    batches = f"{plan_of.config.batch_size} x {plan_of.config.accumulation}"
    memory = (gib(plan_of.memory()), gib(plan_of.memory(sharded=True)))
    return [millions(plan_of.parameters.all), batches, *memory, flop(plan_of.flops), flop(plan_of.encoding_flops)]


def test_the_table_has_every_variant_with_its_parameters(repository):
    table = rows(repository)
    assert list(table) == VARIANTS
    for name, cells in table.items():
        config = load_config(repository / "configs" / f"{name}.yaml")
        assert cells[0] == millions(count_parameters(config, config.model_config()).all)


@pytest.mark.parametrize("name", ["linear-B-512", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)])
def test_the_table_is_what_the_dry_run_says(repository, name):
    plan_of = estimate(load_config(repository / "configs" / f"{name}.yaml"), devices=8)
    assert rows(repository)[name] == row_of(plan_of)
    assert plan_of.memory() < 75 * 2**30  # of a card with 80 GB


def test_the_document_has_every_key_with_its_default(repository):
    text = (repository / "docs" / "configurations.md").read_text().partition("## All keys")[2]
    documented = re.findall(r"^\| `(\w+)` \|(.*?)\|", text, re.M)
    fields = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
    assert sorted(key for key, _ in documented) == sorted(fields)
    for key, default in documented:
        value = "" if fields[key] is dataclasses.MISSING else fields[key]
        assert default.strip() == (str(value).lower() if isinstance(value, bool) else str(value)), key


def test_the_tiny_configuration_trains(repository, tmp_path):
    from letstalk_core.cli import main
    from letstalk_core.data.speech.synthesis import available_engines

    if "espeak" not in available_engines():
        pytest.skip("espeak-ng is not installed")
    changes = ["steps=4", "log_every=2", "save_every=2", "sample_every=0", "avatar_clips=4", "batch_size=2"]
    changes += [f"run={tmp_path / 'run'}", f"data_path={tmp_path / 'data'}", "device=cpu"]
    assert main(["train", "--config", str(repository / "configs" / "tiny-avatar.yaml"), *changes]) == 0
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 1e6
    losses = [json.loads(line).get("loss", 0.0) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) >= 2 and all(math.isfinite(loss) for loss in losses)
