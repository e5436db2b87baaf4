"""Configurations of trainings: a file, the file it changes, the command line; configs/ and docs/configurations.md."""

import dataclasses
import json
import math
import re

import pytest
import yaml

from letstalk_core.cli import main
from letstalk_core.config import FLAT_NAMES, PARTS, LetsTalkConfig
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.errors import InputError
from letstalk_core.presets import PRESETS
from letstalk_core.training.config_file import load_config
from letstalk_core.training.training_config import AutoencoderTraining, TrainingConfig, TransformerTraining

VARIANTS = [
    f"{attention}-{name}-{px}"
    for attention in ("linear", "softmax")
    for px in (256, 512)
    for name in ("S", "B", "L", "XL")
]
TINY = ["preset=tiny", "data_path=x"]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(*said, path=None, changes=()):
    with pytest.raises(InputError) as caught:
        load_config(path, changes)
    message = str(caught.value)
    assert all(part in message for part in said) and "\n" not in message, message


# Files and changes ----------------------------------------------------------------------------------------------------


def test_the_configuration_is_a_file_with_changes(tmp_path):
    path = write(tmp_path / "c.yaml", "preset: tiny\ndata_path: x\nsteps: 7\nlearning_rate: 1e-3\nmodel:\n  depth: 3\n")
    config = load_config(path, ["steps=9", "model.heads=2"])
    assert isinstance(config, TransformerTraining)
    assert (config.steps, config.learning_rate, config.model) == (9, 1e-3, {"depth": 3, "heads": 2})
    transformer = config.model_config().transformer
    assert (transformer.depth, transformer.heads, transformer.width) == (3, 2, 64)
    refused("not a mapping", path=write(path, "- a\n"))
    refused("not readable YAML", path=write(path, "a: ["))
    refused("no configuration file", path=tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps", "'steps' is not key=value"),
        ("steps=many", "steps is 'many', not a whole number"),
        ("steps=1.5", "steps is 1.5, not a whole number"),
        ("compile=1", "compile is 1, not true or false"),
        ("stepz=3", "unknown key stepz; did you mean steps?"),
        ("model=3", "model is 3, not a mapping"),
        ("model.depht=3", "unknown key model.depht; did you mean model.depth?"),
        ("model.depth=x", "model.depth is 'x', not a whole number"),
        ("model.transformer=3", "unknown key model.transformer"),
        ("model.objective=flow", "learn_variance goes with objective 'noise', not with 'flow'"),
        ("model.default_sampler=euler", "default_sampler 'euler' does not go with objective 'noise'"),
        ("task=both", "task is 'both', not one of transformer, autoencoder"),
        ("gradient_checkpointing=some", "gradient_checkpointing is 'some', not one of none, selective, full"),
        ("gradient_checkpointing=", "gradient_checkpointing is '', not one of none, selective, full"),
    ],
)
def test_changes_that_cannot_be_used(change, said):
    refused(said, changes=[*TINY, change])


def test_a_path_stays_text():
    assert load_config(None, [*TINY, "run=2024", "autoencoder=a#b"]).run == "2024"


@pytest.mark.parametrize(
    ("value", "way"),
    [("false", "none"), ("true", "full"), ("none", "none"), ("selective", "selective"), ("full", "full")],
)
def test_gradient_checkpointing_was_once_true_or_false(tmp_path, value, way):
    path = write(tmp_path / "c.yaml", f"preset: tiny\ndata_path: x\ngradient_checkpointing: {value}\n")
    assert load_config(path).gradient_checkpointing == way
    assert load_config(None, [*TINY, f"gradient_checkpointing={value}"]).gradient_checkpointing == way


def test_other_values_are_not_taken_for_former_ones(tmp_path):
    path = write(tmp_path / "c.yaml", "preset: tiny\ndata_path: x\ngradient_checkpointing: 1\n")
    refused("gradient_checkpointing is 1, not", path=path)
    with pytest.raises(InputError, match="gradient_checkpointing is True, not one of none, selective, full"):
        TransformerTraining(preset="tiny", data_path="x", gradient_checkpointing=True)


# The two tasks --------------------------------------------------------------------------------------------------------


def test_each_task_has_its_own_keys():
    autoencoder = load_config(None, ["task=autoencoder", "data=images", "data_path=x"])
    assert type(autoencoder) is AutoencoderTraining and autoencoder.image_size == 0
    assert load_config(None, ["task=autoencoder", "data_path=x", "image_size=64"]).image_size == 64
    assert load_config(None, [*TINY, "task="]).task == "transformer"
    refused("image_size goes with task autoencoder", "set model.image_size", changes=[*TINY, "image_size=64"])
    refused("avatar_people goes with task autoencoder", changes=[*TINY, "avatar_people=3"])
    refused("data is 'images'", "which task transformer learns from", changes=[*TINY, "data=images"])
    refused("preset is ''", changes=["data_path=x"])
    for change in ("model.image_size=64", "gradient_checkpointing=true", "preset=tiny", "lora_rank=4"):
        name = change.split("=")[0].split(".")[0]
        said = f"{name} goes with task transformer, and the task is autoencoder"
        refused(said, changes=["task=autoencoder", "data_path=x", change])
    refused("avatar_people is 0", changes=["task=autoencoder", "data_path=x", "avatar_people=0"])


# A file that changes another ------------------------------------------------------------------------------------------


def test_a_base_is_changed_key_by_key(tmp_path):
    write(tmp_path / "base.yaml", "preset: tiny\ndata_path: x\nsteps: 7\nmodel: {depth: 3, clip_frames: 8}\n")
    path = write(tmp_path / "own" / "c.yaml", "base: ../base.yaml\nsteps: 9\nmodel: {clip_frames: 2}\n")
    config = load_config(path)
    assert (config.preset, config.data_path, config.steps) == ("tiny", "x", 9)
    assert config.model == {"depth": 3, "clip_frames": 2}
    further = write(tmp_path / "further.yaml", "base: own/c.yaml\nrun: here\nmodel: {heads: 2}\n")
    config = load_config(further, ["steps=11", "model.depth=1"])
    assert (config.run, config.steps) == ("here", 11)
    assert config.model == {"depth": 1, "clip_frames": 2, "heads": 2}
    write(path, f"base: {tmp_path / 'base.yaml'}\n")
    assert load_config(path).model == {"depth": 3, "clip_frames": 8}
    write(path, "base: ../base.yaml\nmodel:\n")
    assert load_config(path).model == {"depth": 3, "clip_frames": 8}


def test_bases_that_cannot_be_used(tmp_path):
    path, base = tmp_path / "c.yaml", tmp_path / "base.yaml"
    refused("c.yaml is its own base", path=write(path, "base: c.yaml\npreset: tiny\ndata_path: x\n"))
    write(base, "base: ./c.yaml\n")
    refused("is its own base", path=write(path, "base: base.yaml\npreset: tiny\ndata_path: x\n"))
    refused("no configuration file", "missing.yaml", path=write(path, "base: missing.yaml\npreset: tiny\n"))
    refused("base in", "c.yaml", "is 3, not the name of a file", path=write(path, "base: 3\npreset: tiny\n"))
    write(base, "- a\n")
    refused("base.yaml is not a mapping", path=write(path, "base: base.yaml\npreset: tiny\ndata_path: x\n"))
    write(base, "stepz: 3\n")
    refused("unknown key stepz; did you mean steps?", path=path)
    write(base, "model: {depht: 3}\n")
    refused("unknown key model.depht", path=path)
    write(base, "avatar_people: 3\n")
    refused("avatar_people goes with task autoencoder", path=path)
    write(base, "model: 3\n")
    refused("model is 3, not a mapping", path=write(path, "base: base.yaml\npreset: tiny\nmodel: {depth: 3}\n"))
    refused("unknown key base", changes=[*TINY, "base=base.yaml"])


# configs/ -------------------------------------------------------------------------------------------------------------


def test_every_variant_has_a_configuration(repository):
    names = {path.stem for path in (repository / "configs").glob("*.yaml")}
    assert names == {*VARIANTS, "paper", "finetune-speaker", "tiny-avatar", "autoencoder-avatar"}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_the_papers_recipe(repository, name):
    config = load_config(repository / "configs" / f"{name}.yaml")
    preset, px = name.rsplit("-", 1)
    model = config.model_config()
    assert (config.preset, model.image_size, config.run) == (preset, int(px), f"runs/{name}")
    assert model == PRESETS[preset].with_changes(image_size=int(px), memory_frames=2)
    recipe = TransformerTraining(preset=preset, data_path="none", audio_dropout=0.1, portrait_dropout=0.05)
    for key in ("steps", "learning_rate", "schedule", "beta1", "beta2", "weight_decay", "gradient_clip", "ema_decay",
                "gradient_clip_start", "audio_dropout", "portrait_dropout", "memory_pixel_noise", "memory_noise_steps",
                "memory_mask", "memory_mask_share", "memory_shared_noise"):  # fmt: skip
        assert getattr(config, key) == getattr(recipe, key), key
    assert config.batch_size * config.accumulation == 8
    assert config.precision == "bf16" and ("sd-vae" in config.autoencoder) == preset.startswith("softmax")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_says_only_what_is_its_own(repository, name):
    own = yaml.safe_load((repository / "configs" / f"{name}.yaml").read_text())
    common = yaml.safe_load((repository / "configs" / "paper.yaml").read_text())
    assert own.pop("base") == "paper.yaml"
    assert set(own) - {"gradient_checkpointing"} == {
        "preset", "model", "run", "autoencoder", "batch_size", "accumulation"
    }  # fmt: skip
    assert all(own[key] != common.get(key) for key in own)


@pytest.mark.parametrize("name", ["finetune-speaker", "tiny-avatar", "autoencoder-avatar"])
def test_the_other_configurations_are_valid(repository, name):
    load_config(repository / "configs" / f"{name}.yaml")


def test_the_tiny_configuration_trains(repository, tmp_path):
    if "espeak" not in available_engines():
        pytest.skip("espeak-ng is not installed")
    changes = ["steps=4", "log_every=2", "save_every=2", "sample_every=0", "avatar_clips=4", "batch_size=2"]
    changes += [f"run={tmp_path / 'run'}", f"data_path={tmp_path / 'data'}", "device=cpu"]
    assert main(["train", "--config", str(repository / "configs" / "tiny-avatar.yaml"), *changes]) == 0
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 1e6
    losses = [json.loads(line).get("loss", 0.0) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) >= 2 and all(math.isfinite(loss) for loss in losses)


# docs/configurations.md -----------------------------------------------------------------------------------------------


def keys_in(text) -> dict[str, str]:
    """The keys of a document's tables with their defaults."""
    found = re.findall(r"^\| `(\w+)` \|(.*?)\|", text, re.M)
    assert len(found) == len(dict(found)), "a key is there twice"
    return {key: default.strip() for key, default in found}


def sections(text, level) -> dict[str, str]:
    """The parts of a document by their headings of a level."""
    parts = re.split(rf"^{'#' * level} (.+)$", text, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def written(value) -> str:
    value = list(value) if isinstance(value, tuple) else value  # as YAML has it
    return str(value).lower() if isinstance(value, bool) else str(value)


def fields_of(task) -> dict[str, str]:
    """Its keys with their defaults."""
    missing = dataclasses.MISSING
    return {f.name: "" if f.default is missing else written(f.default) for f in dataclasses.fields(task)}


def test_the_document_has_every_key_with_its_default(repository):
    document = sections((repository / "docs" / "configurations.md").read_text(), 2)
    of_tasks = sections(document["All keys"], 3)
    both = fields_of(TrainingConfig) | {"task": "transformer"}
    assert keys_in(of_tasks.pop("Both tasks")) == both
    for task in (TransformerTraining, AutoencoderTraining):
        own = {key: default for key, default in fields_of(task).items() if key not in both}
        assert keys_in(of_tasks.pop(f"Task `{task.task}`")) == own
    assert not of_tasks


def test_the_document_has_every_key_of_the_model_in_its_part(repository):
    parts = sections(sections((repository / "docs" / "configurations.md").read_text(), 2)["The model's keys"], 3)
    headings = {name: name.capitalize() for name in PARTS} | {
        "": "The whole",
        "departures": "Departures from the paper",
    }
    defaults = LetsTalkConfig().flat()
    for part, heading in headings.items():
        expected = {name: written(defaults[name]) for name, (owner, _) in FLAT_NAMES.items() if owner == part}
        assert keys_in(parts.pop(heading)) == expected
    assert not parts


def test_the_documents_example_of_a_base_can_be_used(repository, tmp_path):
    text = (repository / "docs" / "configurations.md").read_text()
    example = re.search(r"```yaml\n(base:.*?)```", text, re.S)[1]
    (tmp_path / "configs").symlink_to(repository / "configs")
    config = load_config(write(tmp_path / "mine.yaml", example))
    assert config.model == {"image_size": 512, "clip_frames": 8} and config.run == "runs/mine"
    assert config.learning_rate == load_config(repository / "configs" / "linear-B-512.yaml").learning_rate
