"""Training: stopped and resumed equals uninterrupted; everything that can learn does."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from letstalk_core.training.loop import TrainingRun, learning_rate


def quadratic(run):
    def loss_of(step):
        target = torch.from_numpy(np.random.default_rng(step).standard_normal(4).astype(np.float32))
        loss = (run.module.weight.sum(0) - target).square().mean()
        return loss, {"loss": loss.item()}

    return loss_of


def new_run(folder, steps=20):
    torch.manual_seed(0)
    return TrainingRun(folder, nn.Linear(4, 3), steps, peak=0.05)


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole = new_run(tmp_path / "whole")
    whole.fit(quadratic(whole), save_every=5)

    class Stop(Exception):
        pass

    stopped = new_run(tmp_path / "stopped")
    usual = quadratic(stopped)

    def stop_at_13(step):
        if step == 13:
            raise Stop
        return usual(step)

    with pytest.raises(Stop):
        stopped.fit(stop_at_13, save_every=5)
    resumed = new_run(tmp_path / "stopped")
    assert resumed.step == 10
    resumed.fit(quadratic(resumed), save_every=5)
    for part in ("module", "averaged"):
        for key, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, getattr(resumed, part).state_dict()[key])


def test_the_loss_falls_and_is_logged(tmp_path):
    run = new_run(tmp_path, steps=100)
    fixed = torch.ones(4)

    def loss_of(step):
        loss = (run.module.weight.sum(0) - fixed).square().mean()
        return loss, {"loss": loss.item()}

    run.fit(loss_of)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100]
    assert lines[1]["loss"] < 0.1 * lines[0]["loss"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path):
    run = new_run(tmp_path)
    usual = quadratic(run)

    def loss_of(step):
        loss, numbers = usual(step)
        return (loss * float("nan") if step == 7 else loss), numbers

    with pytest.raises(FloatingPointError, match="step 7"):
        run.fit(loss_of, save_every=5)
    kept = new_run(tmp_path)
    assert kept.step == 5 and all(torch.isfinite(p).all() for p in kept.module.parameters())


def test_the_learning_rate_warms_up_and_falls():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == 0.01 and rates[100] == max(rates) == 1.0 and rates[-1] < 0.06


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The whole way from nothing to a checkpoint, with so few steps that nothing is learned."""
    from letstalk_core.data.speech import available_engines

    if not available_engines():
        pytest.skip("espeak-ng and flite are not installed")
    from letstalk_core.training.avatar import train_avatar

    work = tmp_path_factory.mktemp("avatar")
    options = dict(autoencoder_steps=2, transformer_steps=2, people=2, clips=2, speech_clips=2, audio_steps=2)
    return train_avatar(work, work / "model.safetensors", **options), work


@pytest.mark.slow
def test_the_whole_training_gives_a_loadable_checkpoint(trained):
    from letstalk_core.pipeline import LetsTalkPipeline

    path, _ = trained
    assert path.stat().st_size < 25_000_000
    pipeline = LetsTalkPipeline.load(path, "cpu")
    latents = pipeline.autoencoder.encode(torch.rand(1, 3, 128, 128) * 2 - 1)
    assert latents.shape == (1, 32, 8, 8)


@pytest.mark.slow
def test_a_training_can_start_from_a_model(trained, tmp_path):
    """Its autoencoder stays as it is, its transformer learns on."""
    from letstalk_core.training.avatar import train_avatar

    path, work = trained
    (tmp_path / "clips").symlink_to(work / "clips")
    options = dict(autoencoder_steps=0, transformer_steps=2, people=0, clips=2, speech_clips=0, audio_steps=0)
    tuned = train_avatar(tmp_path, tmp_path / "tuned.safetensors", start=path, **options)
    before, after = load_file(path), load_file(tuned)
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"transformer", "audio_projection"}


@pytest.mark.slow
def test_every_parameter_of_the_transformer_learns(trained):
    _, work = trained
    moments = torch.load(work / "transformer" / "state.pt", weights_only=True)["optimizer"]["state"]
    module = torch.load(work / "transformer" / "state.pt", weights_only=True)["module"]
    fixed = [name for name in module if name.startswith("audio_projection.window.")]  # trained on speech before
    assert fixed and len(moments) == len(module) - len(fixed)  # all are parameters, the optimizer has each of the rest
    assert any(key.startswith("audio_projection") for key in module)
