"""python -m letstalk_core train on the tiny preset: what learns, what is seen, what is written, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from letstalk_core.cli import main
from letstalk_core.config import FUSIONS, OBJECTIVES
from letstalk_core.data.footage.shards import ShardSource
from letstalk_core.errors import InputError
from letstalk_core.model.checkpoint import LetsTalkModel, load_checkpoint
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.training.build import build_model, find_autoencoder
from letstalk_core.training.examples import Plan, held_apart
from letstalk_core.training.loop import make_accelerator
from letstalk_core.training.train import train
from letstalk_core.training.training_config import load_config
from letstalk_core.training.transformer_loss import Denoiser, Draws, TransformerLoss

from .training_runs import changes, configured, losses, write_latents


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("data"))


def initial(config) -> LetsTalkModel:
    torch.manual_seed(config.seed)
    return build_model(config, find_autoencoder(config), make_accelerator(config, None))


@pytest.mark.parametrize("memory_frames", [0, 2])
@pytest.mark.parametrize("portrait", FUSIONS)
@pytest.mark.parametrize("audio", FUSIONS)
def test_every_parameter_learns_in_every_fusion(tmp_path, data, portrait, audio, memory_frames):
    """The audio projection's too, which the research code left out of its optimizer."""
    model = dict(portrait_fusion=portrait, audio_fusion=audio, memory_frames=memory_frames, blink_condition=True)
    config = configured(tmp_path, data, steps=4, model=model, learning_rate=0.01, audio_dropout=0.0)
    before = initial(config).state_dict()
    after = load_checkpoint(train(config)).state_dict()
    assert any(name.startswith("audio_projection.") for name in after)
    same = [name for name in after if torch.equal(before[name], after[name])]
    assert same == [] or same == ["audio_projection.blink.0.weight"]  # of shards without blinks: all eyes are open


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_carried_by_its_checkpoint(tmp_path, data, objective):
    sampler = "euler" if objective in ("flow", "x0") else "ddim"
    model = dict(
        objective=objective, learn_variance=objective == "noise", default_sampler=sampler, default_steps=2, fps=25.0
    )
    path = train(configured(tmp_path, data, model=model))
    assert load_checkpoint(path).config.objective == objective
    assert main(["demo", "--model", str(path), "--output", str(tmp_path / "o.mp4"), "--max-seconds", "0.5"]) == 0
    numbers = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert ("vlb" in numbers) == (objective == "noise")


def test_the_loss_falls_on_one_stretch(tmp_path):
    data = write_latents(tmp_path / "data", stretches=1)
    model = dict(objective="x0", learn_variance=False, memory_frames=0)
    train(configured(tmp_path / "run", data, steps=150, learning_rate=3e-3, save_every=150, model=model))
    found = losses(tmp_path / "run")
    assert np.mean(found[-20:]) < 0.7 * np.mean(found[:20])


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, data):
    """With everything that is random, and with other processes that load the data."""
    options = dict(steps=6, audio_dropout=0.3, portrait_dropout=0.3, memory_mask=0.5, schedule="linear")
    whole = train(configured(tmp_path / "whole", data, **options))
    part = configured(tmp_path / "part", data, workers=1, **options)
    from letstalk_core.training import transformer_loss as transformer

    usual, calls = transformer.TransformerLoss.__call__, []

    def crash_at_5(self, denoiser, batch):
        calls.append(batch["name"])
        if len(calls) == 6:
            raise RuntimeError("crash")
        return usual(self, denoiser, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        patch.setattr(transformer.TransformerLoss, "__call__", crash_at_5)
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
    train(dataclasses.replace(plain, run=str(tmp_path / "checkpointed"), gradient_checkpointing=True))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "checkpointed"), abs=1e-6)
    train(dataclasses.replace(plain, run=str(tmp_path / "half"), precision="bf16"))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "half"), rel=0.05)
    assert losses(tmp_path / "plain") != losses(tmp_path / "half")


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(tmp_path, data):
    plain = configured(tmp_path / "plain", data, steps=2)
    train(plain)
    path = train(dataclasses.replace(plain, run=str(tmp_path / "compiled"), compile=True))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "compiled"), abs=1e-5)
    assert load_checkpoint(path).state_dict().keys() == initial(plain).state_dict().keys()


def loss_of(config):
    model = initial(config)
    for parameter in model.parameters():  # a fresh model's gates are closed
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return TransformerLoss(config, model.config, find_autoencoder(config), torch.device("cpu")), Denoiser(model)


def batch(count=3, **more):
    generator = torch.Generator().manual_seed(0)
    latents = {name: torch.randn(count, *shape, generator=generator) for name, shape in
               (("clip", (4, 4, 4, 4)), ("memory", (2, 4, 4, 4)), ("portrait", (4, 4, 4)))}  # fmt: skip
    features = torch.randn(count, 4, 5, 4, 80, generator=generator)
    return {**latents, "features": features, "seed": list(range(count)), "name": ["a", "b", "c"][:count], **more}


@pytest.mark.parametrize(("key", "given"), [("audio_dropout", "features"), ("portrait_dropout", "portrait")])
def test_a_dropped_condition_is_not_seen(tmp_path, data, key, given):
    for dropped in (0.0, 1.0):
        compute, denoiser = loss_of(configured(tmp_path, data, **{"audio_dropout": 0.0, key: dropped}))
        usual = compute(denoiser, batch()).per_example
        changed = compute(denoiser, batch(**{given: batch()[given] + 1})).per_example
        assert torch.equal(usual, changed) == (dropped == 1.0)


def test_an_example_has_the_same_loss_in_any_batch(tmp_path, data):
    """So that batches may be spread over processes."""
    config = configured(tmp_path, data, audio_dropout=0.5, portrait_dropout=0.5, mouth_weight=2.0)
    compute, denoiser = loss_of(config)
    regions = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3)) < 0.1).to(torch.uint8)
    whole = batch(regions=regions, blinks=torch.zeros(3, 4, 5))
    together = compute(denoiser, whole).per_example
    for i in range(3):
        alone = {name: value[i : i + 1] for name, value in whole.items()}
        torch.testing.assert_close(compute(denoiser, alone).per_example[0], together[i])


PARTS = {
    "memory_noise_steps": dict(memory_noise_steps=50),
    "memory_mask": dict(memory_mask=0.25),
    "memory_shared_noise": dict(memory_shared_noise=0.5),
}
OFF = dict(memory_pixel_noise=False, memory_noise_steps=0, memory_mask=0.0)


def regularised(tmp_path, data, count=400, **parts) -> tuple[torch.Tensor, torch.Tensor]:
    compute, _ = loss_of(configured(tmp_path, data, **{**OFF, **parts}))
    memory = torch.randn(count, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return memory, compute._regularised(memory, Draws(list(range(count)), torch.device("cpu")))


def test_the_memory_is_left_alone_where_all_is_off(tmp_path, data):
    before, after = regularised(tmp_path, data)
    assert torch.equal(before, after)


def test_the_mask_drops_a_quarter_of_the_positions(tmp_path, data):
    before, after = regularised(tmp_path, data, **PARTS["memory_mask"])
    dropped = (after == 0).all(2)  # [n,M,h,w]
    assert torch.equal(after.movedim(2, -1)[~dropped], before.movedim(2, -1)[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    _, half = regularised(tmp_path, data, memory_mask=0.25, memory_mask_share=0.5)
    assert (half == 0).all(2).flatten(1).any(1).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_the_latent_noise_is_that_of_the_first_timesteps(tmp_path, data):
    before, after = regularised(tmp_path, data, **PARTS["memory_noise_steps"])
    betas = torch.linspace(1e-4, 0.02, 1000)
    kept = (1 - betas).cumprod(0)[:50]
    noise = (1 - kept).mean() + (kept.sqrt() - 1).square().mean()  # of memory of variance 1
    assert (after - before).square().mean().item() == pytest.approx(noise.item(), rel=0.1)
    _, more = regularised(tmp_path, data, memory_noise_steps=500)
    assert (more - before).square().mean() > 5 * (after - before).square().mean()


def test_shared_noise_is_mostly_alike_in_all_memory_frames(tmp_path, data):
    before, after = regularised(tmp_path, data, **PARTS["memory_shared_noise"])
    first, second = (after - before).unbind(1)
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item() == pytest.approx(0.8, abs=0.05)


def test_pixel_noise_is_on_portrait_and_memory_before_encoding(tmp_path, data):
    config = configured(tmp_path, data, **{**OFF, "memory_pixel_noise": True})
    compute, _ = loss_of(config)
    seen = []
    compute.autoencoder.encode = lambda images: (seen.append(images), torch.zeros(len(images), 4, 4, 4))[1]
    pixels = {name: torch.full((64, *n, 3, 64, 64), 127, dtype=torch.uint8) for name, n in
              (("clip", (4,)), ("memory", (2,)), ("portrait", ()))}  # fmt: skip
    compute._latents(pixels, Draws(list(range(64)), torch.device("cpu")))
    portrait, clip, memory = (images.add(1 / 255).unflatten(0, (64, -1)).flatten(1).std(1) for images in seen)
    assert clip.max() == 0
    assert torch.allclose(portrait, memory, rtol=0.1)  # one sigma an example
    assert memory.log().mean().item() == pytest.approx(-3, abs=0.25)
    assert memory.log().std().item() == pytest.approx(0.5, abs=0.15)


def test_a_plan_uses_every_stretch_once_an_epoch_whatever_the_processes():
    stretches = np.array([3, 5, 8, 9, 11, 12])
    whole = iter(Plan(stretches, 0, 4))
    expected = [example for _ in range(6) for example in next(whole)]
    for epoch in range(4):
        assert sorted(stretch for stretch, _ in expected[6 * epoch : 6 * epoch + 6]) == stretches.tolist()
    assert [stretch for stretch, _ in expected[:6]] != [stretch for stretch, _ in expected[6:12]]
    pair = [iter(Plan(stretches, 0, 2, rank, 2)) for rank in (0, 1)]
    assert [example for _ in range(6) for plan in pair for example in next(plan)] == expected
    assert next(iter(Plan(stretches, 0, 4, first=3))) == expected[12:16]


def test_stretches_are_held_out():
    trained, held = held_apart(10, 0.3, 0)
    assert len(held) == 3 and sorted([*trained, *held]) == list(range(10))
    assert [len(part) for part in held_apart(1, 0.9, 0)] == [1, 0]


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
    import re

    assert re.search(sentence, said[0]), said[0]


def test_the_configuration_is_a_file_with_changes(tmp_path, data):
    path = tmp_path / "c.yaml"
    path.write_text("preset: tiny\ndata_path: x\nsteps: 7\nlearning_rate: 1e-3\nmodel:\n  depth: 3\n")
    config = load_config(path, ["steps=9", "model.heads=2"])
    assert (config.steps, config.learning_rate) == (9, 1e-3)
    assert (config.model_config().depth, config.model_config().heads) == (3, 2)
    path.write_text("- a\n")
    with pytest.raises(InputError, match="not a mapping"):
        load_config(path)
    path.write_text("a: [")
    with pytest.raises(InputError, match="not readable YAML"):
        load_config(path)
    with pytest.raises(InputError, match="no configuration file"):
        load_config(tmp_path / "missing.yaml")


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
