"""python -m letstalk_core train on the tiny preset: what learns, what is seen, what is written, what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from letstalk_core.autoencoders import find_autoencoder
from letstalk_core.cli import main
from letstalk_core.config import FUSIONS, OBJECTIVES
from letstalk_core.data.footage.shards import ShardSource
from letstalk_core.errors import InputError
from letstalk_core.model.checkpoint import LetsTalkModel, load_checkpoint
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.training.build import build_model
from letstalk_core.training.loop import make_accelerator
from letstalk_core.training.train import train
from letstalk_core.training.transformer_loss import TransformerLoss

from .training_runs import changes, configured, losses, write_latents


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("data"))


def initial(config) -> LetsTalkModel:
    torch.manual_seed(config.seed)
    return build_model(config, find_autoencoder(config.autoencoder, config.init_from), make_accelerator(config, None))


@pytest.mark.parametrize("memory_frames", [0, 2])
@pytest.mark.parametrize("portrait", FUSIONS)
@pytest.mark.parametrize("audio", FUSIONS)
def test_every_parameter_learns_in_every_fusion(tmp_path, data, portrait, audio, memory_frames):
    """The audio projection's too, which the research code left out of its optimizer."""
    model = dict(portrait_fusion=portrait, audio_fusion=audio, memory_frames=memory_frames, controls=("eyelids",))
    config = configured(tmp_path, data, steps=4, model=model, learning_rate=0.01, audio_dropout=0.0)
    before = initial(config).state_dict()
    after = load_checkpoint(train(config)).state_dict()
    assert any(name.startswith("audio_projection.") for name in after)
    same = [name for name in after if torch.equal(before[name], after[name])]
    assert same == [] or same == ["audio_projection.control.0.weight"]  # of shards without controls


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_carried_by_its_checkpoint(tmp_path, data, objective):
    sampler = "euler" if objective in ("flow", "x0") else "ddim"
    model = dict(
        objective=objective, learn_variance=objective == "noise", default_sampler=sampler, default_steps=2, fps=25.0
    )
    path = train(configured(tmp_path, data, model=model))
    assert load_checkpoint(path).config.diffusion.objective == objective
    assert main(["demo", "--model", str(path), "--output", str(tmp_path / "o.mp4"), "--max-seconds", "0.5"]) == 0
    numbers = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert ("vlb" in numbers) == (objective == "noise")


def test_the_loss_falls_on_one_stretch(tmp_path):
    data = write_latents(tmp_path / "data", stretches=1)
    model = dict(objective="x0", learn_variance=False, default_sampler="euler", memory_frames=0)
    train(configured(tmp_path / "run", data, steps=150, learning_rate=3e-3, save_every=150, model=model))
    found = losses(tmp_path / "run")
    assert np.mean(found[-20:]) < 0.7 * np.mean(found[:20])


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, data):
    """With everything that is random, and with other processes that load the data."""
    options = dict(steps=6, audio_dropout=0.3, portrait_dropout=0.3, memory_mask=0.5, schedule="linear")
    whole = train(configured(tmp_path / "whole", data, **options))
    part = configured(tmp_path / "part", data, workers=1, **options)
    usual, calls = TransformerLoss.__call__, []

    def crash_at_5(self, denoiser, batch):
        calls.append(batch["name"])
        if len(calls) == 6:
            raise RuntimeError("crash")
        return usual(self, denoiser, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        patch.setattr(TransformerLoss, "__call__", crash_at_5)
        train(part)
    resumed = train(part)
    assert losses(tmp_path / "whole") == losses(tmp_path / "part")
    for name, value in load_file(whole).items():
        assert torch.equal(value, load_file(resumed)[name])
    states = [sorted((tmp_path / run / "checkpoints").glob("*"))[-1] for run in ("whole", "part")]
    for name in ("model.safetensors", "optimizer.bin", "average.safetensors"):
        assert (states[0] / name).read_bytes() == (states[1] / name).read_bytes()


def test_speed_options_change_no_loss(tmp_path, data):
    plain = configured(tmp_path / "plain", data)
    train(plain)
    for way in ("selective", "full"):
        train(dataclasses.replace(plain, run=str(tmp_path / way), gradient_checkpointing=way))
        assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / way), abs=1e-6)
    train(dataclasses.replace(plain, run=str(tmp_path / "half"), precision="bf16"))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "half"), rel=0.05)
    assert losses(tmp_path / "plain") != losses(tmp_path / "half")


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(tmp_path, data):
    plain = configured(tmp_path / "plain", data, steps=2)
    train(plain)
    for way in ("none", "selective"):
        path = train(dataclasses.replace(plain, run=str(tmp_path / way), compile=True, gradient_checkpointing=way))
        assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / way), abs=1e-5)
    assert load_checkpoint(path).state_dict().keys() == initial(plain).state_dict().keys()


def test_a_held_out_loss_is_logged(tmp_path, data):
    train(configured(tmp_path, data, held_out_share=0.4))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out_loss" in line] == [2, 4, 6]
    with pytest.warns(UserWarning, match="of 6 stretches is none: nothing is held out"):
        train(configured(tmp_path / "less", data, held_out_share=0.05))


def test_sample_videos_are_written(tmp_path, data):
    model = dict(default_steps=2, default_sampler="ddim")
    train(configured(tmp_path, data, sample_every=4, sample_seconds=0.4, model=model))
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-00000004.mp4"]


def test_a_sample_that_fails_ends_no_training(tmp_path, data):
    with pytest.warns(UserWarning, match="no sample video of step 2: There is no file"):
        assert train(configured(tmp_path, data, steps=2, sample_every=2, sample_audio="missing.wav"))


def test_only_what_is_not_frozen_learns(tmp_path, data):
    config = configured(
        tmp_path, data, frozen=r"^transformer\.blocks\.0\.|^audio_projection\.window", learning_rate=0.01
    )
    before, after = initial(config).state_dict(), load_checkpoint(train(config)).state_dict()
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert same == {n for n in after if n.startswith(("transformer.blocks.0.", "audio_projection.window"))}


def test_lora_is_saved_apart_and_does_what_the_training_did(tmp_path, data):
    base = train(configured(tmp_path / "base", data, steps=2, model=dict(default_steps=2, default_sampler="ddim")))
    options = dict(preset="", init_from=str(base), lora_rank=2, learning_rate=0.05, steps=4)
    merged = train(configured(tmp_path / "lora", data, **options))
    lora = tmp_path / "lora" / "lora.safetensors"
    assert lora.stat().st_size < 0.5 * base.stat().st_size
    with safe_open(lora, "pt") as file:
        assert all("lora" in name for name in file.keys())  # noqa: SIM118
    pipeline = LetsTalkPipeline.load(base, "cpu", loras=[(lora, 1.0)])
    expected, plain = load_checkpoint(merged).state_dict(), load_checkpoint(base).state_dict()
    for name, value in pipeline.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert any(not torch.equal(plain[name], expected[name]) for name in plain)
    output = str(tmp_path / "o.mp4")
    assert (
        main(["demo", "--model", str(base), "--lora", f"{lora}:0.5", "--output", output, "--max-seconds", "0.4"]) == 0
    )


def test_lora_resumes(tmp_path, data):
    base = train(configured(tmp_path / "base", data, steps=2))
    options = dict(preset="", init_from=str(base), lora_rank=2)
    whole = train(configured(tmp_path / "whole", data, steps=4, **options))
    train(configured(tmp_path / "part", data, steps=2, **options))
    part = train(configured(tmp_path / "part", data, steps=4, **options))
    for name, value in load_file(whole).items():
        assert torch.equal(value, load_file(part)[name])


def test_it_begins_with_what_fits_of_another_model(tmp_path, data, capsys):
    base = train(configured(tmp_path / "base", data, steps=2))
    config = configured(tmp_path / "deep", data, steps=2, init_from=str(base), model=dict(depth=3))
    train(config)
    assert "taken" in capsys.readouterr().out
    report = (tmp_path / "deep" / "init_from.txt").read_text()
    assert "blocks.2." in report
    torch.manual_seed(0)
    begun = initial(config).state_dict()
    for name, value in load_checkpoint(base).state_dict().items():
        assert torch.equal(begun[name], value)


def test_nan_in_the_data_is_traced_to_its_stretch(tmp_path, data, monkeypatch):
    usual = ShardSource.read

    def read(self, index, rng):
        example = usual(self, index, rng)
        return {**example, "clip": example["clip"] * (float("nan") if index == 4 else 1)}

    monkeypatch.setattr(ShardSource, "read", read)
    with pytest.raises(FloatingPointError, match="not finite at step .* for .*stretch 4"):
        train(configured(tmp_path / "run", data, batch_size=3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["data_path=missing"], "missing"),
        (["stepz=3"], "unknown key stepz; did you mean steps"),
        (["model.depht=3"], r"unknown key model.depht; did you mean model.depth"),
        (["steps=many"], "steps is 'many', not a whole number"),
        (["preset=linear-M"], "preset is 'linear-M', not one of"),
        (["model.clip_frames=30"], "30"),
        (["memory_pixel_noise=true"], "no .*pixels|pixels"),
        (["model.audio_channels=40"], r"\(4, 80\).*40|\[4, 80\].*40"),
        (["model.image_size=128"], "pictures of"),
        (["model.fps=30"], "frames a second: 25"),
        (["model.latent_channels=8"], "latent channels"),
        (["autoencoder=missing.safetensors"], "no autoencoder at missing.safetensors"),
        (["frozen=("], "no regular expression"),
        (["frozen=nothing"], "no parameter has such a name"),
        (["frozen=."], "nothing is left to train"),
        (["init_from=missing.safetensors"], "no file missing.safetensors"),
        (["init_from=missing.safetensors", "preset="], "no file missing.safetensors"),
        (["lora_rank=4"], "lora_rank needs init_from"),
        (["sample_every=3"], "not a multiple of save_every"),
        (["data=avatar", "data_path=x", "model.audio_encoder=wav2vec2"], "choose mel"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, data, capsys, change, sentence):
    status = main(["train", *changes(tmp_path, data), *change])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    said = [line for line in lines if line.startswith("letstalk: ")]
    assert len(said) == 1 and "Traceback" not in "".join(lines)
    assert re.search(sentence, said[0]), said[0]


def test_a_model_file_that_was_lost_is_written_again(tmp_path, data):
    path = train(configured(tmp_path, data))
    before = load_file(path)
    path.unlink()
    after = load_file(train(configured(tmp_path, data)))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_autoencoder_or_other_data_are_refused(tmp_path, data):
    train(configured(tmp_path / "run", data, steps=2))
    more = write_latents(tmp_path / "more", stretches=9)
    with pytest.raises(InputError, match="another configuration: stretches was 6 and is 9"):
        train(configured(tmp_path / "run", more))
    with pytest.raises(InputError, match="another configuration: model was .*depth"):
        train(configured(tmp_path / "run", data, model=dict(depth=1)))


def test_an_unreadable_shard_is_one_sentence_with_workers_too(tmp_path, monkeypatch):
    data = write_latents(tmp_path / "data")
    usual = ShardSource.__init__

    def lose(self, *arguments, **options):
        usual(self, *arguments, **options)
        (data / "data.tar").write_bytes(b"gone")

    monkeypatch.setattr(ShardSource, "__init__", lose)
    with pytest.raises(InputError, match="data.tar") as refusal:
        train(configured(tmp_path / "run", data, workers=1))
    assert "Traceback" not in str(refusal.value)
