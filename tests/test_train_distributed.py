"""Two processes on this machine (gloo) against one, plain and sharded, and what a killed training leaves behind."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from letstalk_core.model.transformer import GRADIENT_CHECKPOINTING

from .training_runs import changes, losses, write_latents

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("data"))


def command(arguments: list[str], processes: int, module: str) -> list[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    return [sys.executable, "-m", *launcher, module, "train", *arguments]


def start(arguments: list[str], processes: int = 1, module: str = "letstalk_core", check: bool = True):
    done = subprocess.run(
        command(arguments, processes, module), cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """The run of one process with batches of 4: dropout, masks and warm-up included."""
    run = tmp_path_factory.mktemp("one")
    start(changes(run, data, batch_size=4, **OPTIONS))
    return run


OPTIONS = dict(audio_dropout=0.3, schedule="constant_with_warmup", warmup_steps=2, held_out_share=0.2)


@pytest.mark.parametrize(
    ("module", "checkpointing"),
    [("letstalk_core", "none"), *(("tests.sharded_on_cpu", way) for way in GRADIENT_CHECKPOINTING)],
)
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, data, one, module, checkpointing):
    done = start(changes(tmp_path, data, **OPTIONS, gradient_checkpointing=checkpointing), 2, module)
    assert done.stdout.count("written") == 1
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-5)
    assert len(losses(one)) == 6
    expected = load_file(one / "model.safetensors")
    for name, value in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("module", ["letstalk_core", "tests.sharded_on_cpu"])
def test_two_processes_resume(tmp_path, data, one, module):
    start(changes(tmp_path, data, **{**OPTIONS, "steps": 4}), 2, module)
    start(changes(tmp_path, data, **OPTIONS), 2, module)
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-5)


def test_another_number_of_processes_is_refused_unless_the_examples_are_the_same(tmp_path, data, one):
    start(changes(tmp_path, data, **{**OPTIONS, "steps": 4}), 2)
    refused = start(changes(tmp_path, data, **OPTIONS), check=False)
    assert refused.returncode == 1
    assert "was trained with 4 examples a step (2 processes)" in refused.stderr and "Traceback" not in refused.stderr
    start(changes(tmp_path, data, batch_size=4, **OPTIONS))
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-5)


def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path, data):
    options = dict(steps=60, save_every=4, audio_dropout=0.3, workers=1)
    start(changes(tmp_path / "whole", data, **options))
    moments, killed = random.Random(0), 0
    while killed < 5:
        process = subprocess.Popen(
            command(changes(tmp_path / "killed", data, **options), 1, "letstalk_core"), cwd=REPOSITORY,
            env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        before = newest_step(tmp_path / "killed")
        while newest_step(tmp_path / "killed") < before + 4 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.4))
        killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    start(changes(tmp_path / "killed", data, **options))
    for name in ("model.safetensors", "optimizer.bin", "average.safetensors"):
        states = [tmp_path / run / "checkpoints" / "step-00000060" / name for run in ("whole", "killed")]
        assert states[0].read_bytes() == states[1].read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminals_stop_reaches_everybody_and_is_saved(tmp_path, data, number):
    options = dict(steps=5000, save_every=5000, workers=2)
    process = subprocess.Popen(
        command(changes(tmp_path, data, **options), 1, "letstalk_core"), cwd=REPOSITORY, env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not (tmp_path / "log.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "the same command goes on" in output, errors[-2000:]
    assert newest_step(tmp_path) == max(step for step, _ in enumerate(losses(tmp_path), 1))


def newest_step(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)
