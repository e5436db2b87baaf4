"""The dry run of a training: what it says, and the table of docs/configurations.md, which says the same."""

import dataclasses
import io
import re
import tarfile
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from letstalk_core.errors import InputError
from letstalk_core.training.config_file import load_config
from letstalk_core.training.dry_run import block_speed, describe_training
from letstalk_core.training.dry_run.counting import count_parameters
from letstalk_core.training.dry_run.description import flop, gib, millions
from letstalk_core.training.dry_run.requirements import estimate_training

from .test_dry_run_counting import tiny
from .test_training_config import VARIANTS


@pytest.fixture(autouse=True)
def in_the_repository(repository, monkeypatch):
    """Paths in configs/ begin there."""
    monkeypatch.chdir(repository)


def described(config, devices=1):
    """The description without its line breaks."""
    return " ".join(describe_training(config, devices).split())


# Telling --------------------------------------------------------------------------------------------------------------


def test_the_description_of_a_small_training():
    text = described(load_config("configs/tiny-avatar.yaml", ["device=cpu", "precision=fp32"]))
    parameters = estimate_training(load_config("configs/tiny-avatar.yaml")).parameters
    assert f"{millions(parameters.all)} parameters" in text and "all of them trained" in text
    for word in ("TFLOP/s", "GiB on the CPU in fp32", "perfect", "margin", "of a large matrix product"):
        assert (word in text) == (word != "perfect"), text


def test_several_devices_share_or_copy():
    config = load_config("configs/linear-XL-512.yaml")
    one, eight = estimate_training(config), estimate_training(config, 8)
    assert eight.clips == 8 * one.clips and eight.flops == one.flops
    assert eight.memory(sharded=True) < one.memory() < eight.memory()
    weights = 4 * one.parameters.all
    parts = one.parts()
    assert parts["weights"] == parts["gradients"] == parts["average"] == parts["AdamW"] / 2 == weights
    assert sum(parts.values()) == one.memory()


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**20, available=2**30))
    text = described(tiny(batch_size=2))
    assert "More than the 0.0 GiB of this computer: choose gradient_checkpointing=selective or a smaller" in text
    text = described(tiny(batch_size=2, gradient_checkpointing="selective"))
    assert "choose gradient_checkpointing=full or a smaller batch_size" in text
    assert "what is cheap and large computed twice" in text
    text = described(tiny(batch_size=1, gradient_checkpointing="full"))
    assert "choose a smaller model, or more devices with FSDP" in text and "blocks computed twice" in text


def test_a_shape_too_slow_for_the_hardware_is_measured_smaller(monkeypatch):
    monkeypatch.setattr(block_speed, "MEASURED_SECONDS", 1e-9)
    plan = estimate_training(tiny(batch_size=4))
    found = block_speed.measure_speed(plan.config, plan.model, plan.step, plan.latent_side)
    assert found.block > 0 and found.shape.startswith("1 clip of 1 frame, 1 of 8 rows (instead of 4 of 4:")


class Products(TorchDispatchMode):
    """The types in which matrices are multiplied."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.types.add(args[-1].dtype)
        return function(*args, **(kwargs or {}))


def test_device_cpu_has_the_cpus_precision_beside_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setattr("letstalk_core.precision._cpu_computes_bf16", lambda: False)
    assert estimate_training(tiny(device="auto", precision="auto")).precision == "bf16"
    plan = estimate_training(tiny(precision="auto"))
    assert (plan.kind, plan.precision, plan.step.copies) == ("cpu", "no", 0)
    with Products() as products:
        block_speed.measure_speed(plan.config, plan.model, plan.step, plan.latent_side)
    assert products.types == {torch.float32}


def test_shards_are_looked_into(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name in ("x.json", "x.mp4", "y.json", "y.mp4"):
            shard.addfile(tarfile.TarInfo(name))
    config = tiny(data="shards", data_path=str(tmp_path), steps=10, batch_size=2)
    plan = estimate_training(config)
    assert plan.encoded == 1 + plan.model.transformer.memory_frames + plan.model.transformer.clip_frames
    text = described(config)
    assert "20 clips" in text and "10 epochs of 2 stretches" in text and "the shards hold no latents" in text
    with tarfile.open(tmp_path / "a.tar", "a") as shard:
        shard.addfile(tarfile.TarInfo("x.latents.npy"))
    assert estimate_training(config).encoded == 3
    without = dataclasses.replace(config, memory_pixel_noise=False)
    assert estimate_training(without).encoded == 0
    with tarfile.open(tmp_path / "b.tar", "w") as shard:
        for name in ("z.latents.npy", "z.features.npy", "z.video.npy"):
            info = tarfile.TarInfo(name)
            info.size = 54_000_000
            shard.addfile(info, io.BytesIO(bytes(info.size)))
    kept = "0.1 GiB more for all latents and features of the shards, if 10% of what is free is enough"
    on_a_card, with_pixels = (dataclasses.replace(one, device="auto") for one in (without, config))
    assert kept in described(on_a_card)
    for other in (with_pixels, without):  # pixels are read from the files; a CPU reads all of it so
        assert "latents and features" not in described(other)


def test_an_autoencoder_is_described_shortly():
    text = describe_training(load_config("configs/autoencoder-avatar.yaml", ["steps=100", "batch_size=4"]), 2)
    assert "5.52 M parameters; 800 images in 100 steps of 8" in text and "\n" not in text


def test_the_portrait_guided_autoencoder_is_known():
    text = describe_training(
        load_config(None, ["task=autoencoder", "data=people", "guided=true", "steps=5", "data_path=x", "run=x"]), 1
    )
    assert "8.50 M parameters; 5 images" in text
    model = ["model.autoencoder=portrait", "model.image_size=256", "model.latent_channels=32"]
    estimate = estimate_training(load_config(None, ["data=avatar", "data_path=x", "run=x", "preset=tiny", *model]))
    assert estimate.latent_side == 8 and estimate.encoding.flops > 0


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
        describe_training(tiny(**changes), devices)


def test_the_command_prints_it(capsys):
    from letstalk_core.cli import main

    changes = ["preset=tiny", "data=avatar", "data_path=none", "device=cpu", "precision=fp32", "model.image_size=128"]
    assert main(["train", "--dry-run", "--devices", "2", *changes]) == 0
    printed = capsys.readouterr().out
    assert "with FSDP over 2" in printed and "perfect scaling" in printed
    assert max(len(line) for line in printed.splitlines()) <= 112


# The table of docs/configurations.md ----------------------------------------------------------------------------------


def rows(repository):
    """The table of the document: name -> its other cells."""
    text = (repository / "docs" / "configurations.md").read_text()
    lines = re.finditer(r"^\| `([\w-]+)` \|(.+)\|$", text.partition("## All keys")[0], re.M)
    return {line[1]: [cell.strip() for cell in line[2].split("|")] for line in lines}


def row_of(plan):
    """Cells of the table."""
    batches = f"{plan.config.batch_size} x {plan.config.accumulation}"
    memory = (gib(plan.memory()), gib(plan.memory(sharded=True)))
    return [millions(plan.parameters.all), batches, *memory, flop(plan.flops), flop(plan.encoding_flops)]


def test_the_table_has_every_variant_with_its_parameters(repository):
    table = rows(repository)
    assert list(table) == VARIANTS
    for name, cells in table.items():
        config = load_config(repository / "configs" / f"{name}.yaml")
        assert cells[0] == millions(count_parameters(config, config.model_config()).all)


@pytest.mark.parametrize("name", ["linear-B-512", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)])
def test_the_table_is_what_the_dry_run_says(repository, name):
    plan = estimate_training(load_config(repository / "configs" / f"{name}.yaml"), devices=8)
    assert rows(repository)[name] == row_of(plan)
    assert plan.memory() < 75 * 2**30  # of a card with 80 GB
