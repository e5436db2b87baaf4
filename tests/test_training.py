"""The loop of every training: stopped and resumed equals uninterrupted, what is wrong is said, nothing is lost."""

import json
import os
import resource
import signal

import numpy as np
import pytest
import torch
from torch import nn

from letstalk_core.errors import InputError
from letstalk_core.training.loop import Loss, TrainingRun
from letstalk_core.training.training_config import LoopConfig

STATE = ("model.safetensors", "average.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl")


def new_run(folder, module=None, **changes) -> TrainingRun:
    torch.manual_seed(0)
    values = dict(
        steps=20, learning_rate=0.05, save_every=5, log_every=5, device="cpu", precision="fp32", gradient_clip=0.0
    )
    size = changes.pop("batch_size", 1)
    return TrainingRun(folder, module or nn.Linear(4, 3), LoopConfig(**{**values, **changes}), size)


def quadratic(run, spoiled=None, names=(), act=None):
    """The loss of batch `number`; NaN in batch `spoiled`, and `act(number)` before."""

    def loss_of(number):
        if act is not None:
            act(number)
        target = torch.from_numpy(np.random.default_rng(number).standard_normal((2, 3)).astype(np.float32))
        losses = (run.module(torch.ones(2, 4)) - target).square().mean(1)
        if number == spoiled:
            losses = losses * torch.tensor([1.0, float("nan")])
        return Loss(losses, names=list(names))

    return loss_of


def newest(folder):
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def same_state(a, b) -> bool:
    return all((newest(a) / name).read_bytes() == (newest(b) / name).read_bytes() for name in STATE)


class Crash(Exception):
    pass


def crash_at(number):
    def act(at):
        if at == number:
            raise Crash

    return act


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, schedule, accumulation):
    settings = dict(schedule=schedule, accumulation=accumulation)
    whole = new_run(tmp_path / "whole", **settings)
    assert whole.fit(quadratic(whole))
    stopped = new_run(tmp_path / "stopped", **settings)
    with pytest.raises(Crash):
        stopped.fit(quadratic(stopped, act=crash_at(13 * accumulation)))
    resumed = new_run(tmp_path / "stopped", **settings)
    assert resumed.step == 10 and resumed.batches_done == 10 * accumulation
    assert resumed.fit(quadratic(resumed))
    assert same_state(tmp_path / "whole", tmp_path / "stopped")
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    whole_log, resumed_log = ([json.loads(line) for line in log] for log in logs)
    assert [line["step"] for line in resumed_log] == [5, 10, 15, 20]
    assert [line["loss"] for line in resumed_log] == [line["loss"] for line in whole_log]


def test_accumulated_batches_equal_one_large_one(tmp_path):
    small = new_run(tmp_path / "small", accumulation=2)
    small.fit(quadratic(small))
    large = new_run(tmp_path / "large")

    def pair(number):
        losses = [quadratic(large)(2 * number + half).per_example for half in (0, 1)]
        return Loss(torch.cat(losses))

    large.fit(pair)
    torch.testing.assert_close(small.own.weight, large.own.weight)


def test_the_average_follows_the_weights(tmp_path):
    run = new_run(tmp_path, ema_decay=0.5, steps=4)
    expected, seen = None, []
    step = run.ema.step

    def watched(parameters):
        seen.append(run.own.weight.detach().clone())
        step(parameters)

    run.ema.step = watched
    run.fit(quadratic(run))
    for weight, decay in zip(seen, (0, 2 / 11, 3 / 12, 4 / 13), strict=True):  # short at the beginning, at most 0.5
        expected = weight if expected is None else expected + (1 - decay) * (weight - expected)
    torch.testing.assert_close(run.averaged().weight, expected)


def test_the_loss_falls_and_is_logged(tmp_path):
    run = new_run(tmp_path, steps=100)
    run.fit(lambda number: Loss((run.module(torch.ones(4)) - 1).square()))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 101, 5))
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run = new_run(tmp_path, keep_checkpoints=2)
    run.fit(quadratic(run))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000015", "step-00000020"]


def test_a_loss_that_is_not_finite_stops_and_names_its_samples(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(FloatingPointError) as stop:
        run.fit(quadratic(run, spoiled=7, names=["a.mp4 at 3 s", "b.mp4 at 5 s"]))
    assert str(stop.value) == (
        f"The loss is not finite at step 8 for b.mp4 at 5 s; the last good checkpoint is {newest(tmp_path)}. Look at "
        "these samples, or lower the learning rate."
    )
    kept = new_run(tmp_path)
    assert kept.step == 5 and all(torch.isfinite(p).all() for p in kept.own.parameters())


def test_a_gradient_that_is_not_finite_changes_no_weights(tmp_path):
    run = new_run(tmp_path, keep_checkpoints=1)

    def loss_of(number):
        loss = quadratic(run)(number).per_example
        if number == 9:  # right before a save
            loss = loss + (run.own.weight.sum() * 0).sqrt()  # a loss that can be used, whose gradient is NaN
        return Loss(loss, names=["a", "b"])

    with pytest.raises(FloatingPointError, match="The gradient is not finite at step 10 for a, b; .*step-00000005"):
        run.fit(loss_of)
    kept = new_run(tmp_path, keep_checkpoints=1)
    assert kept.step == 5 and all(torch.isfinite(p).all() for p in kept.own.parameters())


def test_going_on_with_another_accumulation_takes_the_same_steps(tmp_path):
    whole = new_run(tmp_path / "whole", batch_size=2)
    whole.fit(quadratic(whole))
    part = new_run(tmp_path / "part", batch_size=2)
    with pytest.raises(Crash):
        part.fit(quadratic(part, act=crash_at(7)))
    halves = new_run(tmp_path / "part", accumulation=2)
    assert halves.step == 5 and halves.batches_done == 10

    def half(number):
        return Loss(quadratic(halves)(number // 2).per_example[number % 2 :][:1])

    halves.fit(half)
    torch.testing.assert_close(halves.own.weight, whole.own.weight)


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    run = new_run(tmp_path)
    run.fit(quadratic(run))
    with pytest.raises(InputError) as refusal:
        new_run(tmp_path, learning_rate=0.1, ema_decay=0.9)
    assert "ema_decay was 0.9999 and is 0.9; learning_rate was 0.05 and is 0.1" in str(refusal.value)
    assert new_run(tmp_path, steps=40, log_every=1).step == 20  # these change no step that was taken


def test_what_an_earlier_version_had_to_set_is_not_compared(tmp_path):
    run = new_run(tmp_path)
    run.fit(quadratic(run))
    file = newest(tmp_path) / "run.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "identity": {**kept["identity"], "of_another_task": 7}}))
    assert new_run(tmp_path).step == 20


def test_the_end_may_not_move_where_the_learning_rate_depends_on_it(tmp_path):
    run = new_run(tmp_path, schedule="cosine")
    run.fit(quadratic(run))
    with pytest.raises(InputError, match="steps was 20 and is 40"):
        new_run(tmp_path, schedule="cosine", steps=40)


def test_another_number_of_examples_is_refused(tmp_path):
    run = new_run(tmp_path)
    run.fit(quadratic(run))
    with pytest.raises(InputError, match="trained with 1 examples a step.*set batch_size or accumulation"):
        new_run(tmp_path, accumulation=2)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    run = new_run(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(number):
        if number == 9:  # before the second save
            resource.setrlimit(resource.RLIMIT_FSIZE, (800, hard))

    try:
        with pytest.raises(InputError, match="cannot be written.*The checkpoint before it is whole: .*step-00000005"):
            run.fit(quadratic(run, act=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    resumed = new_run(tmp_path)
    resumed.fit(quadratic(resumed))
    whole = new_run(tmp_path / "whole")
    whole.fit(quadratic(whole))
    assert same_state(tmp_path / "whole", tmp_path)


def test_a_half_written_checkpoint_is_not_taken(tmp_path):
    run = new_run(tmp_path)
    run.fit(quadratic(run))
    half = tmp_path / "checkpoints" / ".step-00000025.part"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert new_run(tmp_path).step == 20


@pytest.mark.parametrize("name", ["average.safetensors", "optimizer.bin", "model.safetensors", "run.json"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path, name):
    run = new_run(tmp_path)
    run.fit(quadratic(run))
    (newest(tmp_path) / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="step-00000020 is damaged.*delete it to go on from the one before"):
        new_run(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_ends_the_step_and_saves(tmp_path, number):
    run = new_run(tmp_path / "stopped")
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert not run.fit(quadratic(run, act=lambda at: os.kill(os.getpid(), number) if at == 7 else None))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert newest(tmp_path / "stopped").name == "step-00000008"
    resumed, whole = new_run(tmp_path / "stopped"), new_run(tmp_path / "whole")
    assert resumed.fit(quadratic(resumed)) and whole.fit(quadratic(whole))
    assert same_state(tmp_path / "whole", tmp_path / "stopped")


def test_the_gradient_is_clipped_from_its_step_on(tmp_path):
    moved = []
    for clip in (0.0, 1e-9):
        run = new_run(tmp_path / str(clip), steps=4, gradient_clip=clip, gradient_clip_start=2)
        seen = []
        optimizer_step = run.optimizer.step

        def watched(*arguments, run=run, seen=seen, step=optimizer_step):
            seen.append(torch.cat([p.grad.flatten() for p in run.own.parameters()]).norm().item())
            return step(*arguments)

        run.optimizer.step = watched
        run.fit(quadratic(run))
        moved.append(seen)
    assert min(moved[0]) > 1e-3
    assert [norm > 1e-6 for norm in moved[1]] == [True, True, False, False]
