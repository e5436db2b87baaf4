"""Ways to compute faster: what they give is the same or nearly, and where one cannot be had, that is said."""

import json
import os
import subprocess
import sys

import pytest
import torch

from letstalk_core import cli, measured, precision, threads
from letstalk_core.errors import InputError
from letstalk_core.model import acceleration
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.video.clips import ClipSampler, SamplingSettings

from .tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", memory_frames=2)


def load(checkpoint, dtype="fp32"):
    return LetsTalkPipeline.load(checkpoint, "cpu", dtype)


def latents_of(pipeline, guidance=1.0):
    generator = torch.Generator().manual_seed(2)
    audio, side = pipeline.config.audio, pipeline.config.image_size // pipeline.autoencoder.downscale
    features = torch.randn(11, audio.blocks, audio.channels, generator=generator)  # the last clip is not whole
    portrait = torch.randn(1, pipeline.config.transformer.latent_channels, side, side, generator=generator)
    settings = SamplingSettings(guidance_scale=guidance)
    return torch.cat([clip.latents for clip in ClipSampler(pipeline.model, portrait, features, settings).clips()])


# int8 -----------------------------------------------------------------------------------------------------------------


def test_int8_is_near_and_another_video(checkpoint):
    plain, packed = load(checkpoint), load(checkpoint, "int8")
    exact, near = latents_of(plain), latents_of(packed)
    error = (near - exact).norm() / exact.norm()
    assert 0 < error < 0.1
    assert packed.digest != plain.digest
    assert packed.digest == load(checkpoint, "int8").digest
    assert torch.equal(near, latents_of(load(checkpoint, "int8")))


def test_int8_is_refused_where_it_is_not_computed(checkpoint, monkeypatch):
    monkeypatch.setattr("letstalk_core.pipeline.choose_device", lambda name: torch.device("cuda"))
    with pytest.raises(InputError, match="int8 is computed on CPUs only; choose bf16"):
        load(checkpoint, "int8")
    monkeypatch.undo()
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    with pytest.raises(InputError, match="does not compute in int8 here .* choose fp32"):
        load(checkpoint, "int8")


def test_int8_on_the_command_line(checkpoint, repository, tmp_path, capsys):
    assets = repository / "assets"
    command = ["generate", "--portrait", str(assets / "portrait.jpg"), "--audio", str(assets / "speech.wav")]
    command += ["--output", str(tmp_path / "a.mp4"), "--model", str(checkpoint), "--max-seconds", "0.5"]
    assert cli.main([*command, "--dtype", "int8", "--threads", "1"]) == 0
    assert (tmp_path / "a.mp4").stat().st_size
    assert cli.main([*command, "--threads", "0"]) == 1
    assert "The number of threads is 0; choose one between 1 and" in capsys.readouterr().err


# Compiled -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(checkpoint):
    pipeline = load(checkpoint)
    pipeline.compile()
    return pipeline


@pytest.mark.slow
def test_compiled_blocks_give_the_same(checkpoint, compiled):
    """Also with guidance, whose batch is another one, and for a clip of other sizes."""
    plain = load(checkpoint)
    assert all(block._compiled_call_impl is not None for block in compiled.model.transformer.blocks)
    assert compiled.digest != plain.digest
    for guidance in (1.0, 2.0):
        torch.testing.assert_close(latents_of(compiled, guidance), latents_of(plain, guidance), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_for_odd_shapes(checkpoint, compiled):
    """One frame, no memory, frames that are not square, several at once."""
    plain = load(checkpoint).model.transformer
    audio, channels = compiled.config.audio, compiled.config.transformer.latent_channels
    for batch, frames, memory, place in ((1, 1, 0, (2, 2)), (1, 3, 2, (2, 6)), (2, 5, 1, (4, 2))):
        generator = torch.Generator().manual_seed(batch + frames)
        shapes = {
            "latents": (batch, frames, channels, *place), "portrait": (batch, channels, *place),
            "audio_tokens": (batch, frames, audio.tokens, audio.width), "memory": (batch, memory, channels, *place),
        }  # fmt: skip
        clip = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items() if 0 not in shape}
        clip["timesteps"] = torch.full((batch,), 0.3)
        with torch.inference_mode():
            torch.testing.assert_close(compiled.model.transformer(**clip), plain(**clip), rtol=0, atol=1e-5)


def test_where_nothing_compiles_the_model_is_computed_as_it_is(checkpoint, monkeypatch):
    def fails(self, *_, **__):
        def call(*_, **__):
            raise RuntimeError("no compiler found\nmore lines")

        self._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", fails)
    plain, tried = load(checkpoint), load(checkpoint)
    with pytest.warns(UserWarning, match=r"cannot be compiled here \(no compiler found\); it is computed as it is"):
        tried.compile()
    assert torch.equal(latents_of(tried), latents_of(plain))
    assert tried.digest == plain.digest


def test_a_real_compiler_that_is_missing(checkpoint, repository):
    """In a process of its own: what was compiled before is remembered."""
    script = (
        "import sys, warnings; from letstalk_core.pipeline import LetsTalkPipeline\n"
        f"pipeline = LetsTalkPipeline.load({str(checkpoint)!r}, 'cpu', 'fp32')\n"
        "pipeline.compile(); print(repr(pipeline.computing))"
    )
    hidden = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=repository, env=hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "''" and "cannot be compiled here" in done.stderr


def test_the_command_says_how_long_compiling_took(checkpoint, repository, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(acceleration, "compile_blocks", lambda transformer, clip: True)
    monkeypatch.setattr("letstalk_core.pipeline.compile_blocks", lambda transformer, clip: True)
    assets = repository / "assets"
    command = ["generate", "--portrait", str(assets / "portrait.jpg"), "--audio", str(assets / "speech.wav")]
    command += ["--output", str(tmp_path / "a.mp4"), "--model", str(checkpoint), "--max-seconds", "0.2", "--compile"]
    assert cli.main(command) == 0
    assert "compiling took 0 s" in capsys.readouterr().out


# Threads --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def eight_threads(monkeypatch, tmp_path):
    """A computer of eight threads that is fastest with two; counts what is measured."""
    measured = []
    took = {8: 4.0, 4: 2.0, 2: 1.0, 1: 1.5}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(threads, "seconds_with", lambda count: measured.append(count) or took[count])
    return measured


def test_the_fastest_number_of_threads_is_measured_once(eight_threads):
    assert threads.choose_threads() == 2 and eight_threads == [8, 4, 2, 1]
    assert threads.choose_threads() == 2 and len(eight_threads) == 4
    file = measured.cache_folder() / "threads.json"
    (name,) = json.loads(file.read_text())
    for damaged in ("", "[]", '{"x": "y"}', json.dumps({name: 99})):
        file.write_text(damaged)
        before = len(eight_threads)
        assert threads.choose_threads() == 2 and len(eight_threads) == before + 4


def test_what_the_user_has_set_and_few_threads_stay(eight_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.choose_threads() == 8
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert threads.choose_threads() == 2
    assert eight_threads == []


def test_where_nothing_can_be_remembered_it_is_measured_again(eight_threads, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [threads.choose_threads(), threads.choose_threads()] == [2, 2]
    assert len(eight_threads) == 8


def test_measuring_takes_the_number_that_it_is_given():
    before = torch.get_num_threads()
    try:
        assert threads.seconds_with(2) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# bfloat16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share, fast", [(0.5, True), (9.0, False)])
def test_whether_bfloat16_is_fast_is_measured_once_a_machine(share, fast, monkeypatch, tmp_path):
    """Remembered on the disk: the next process asks the file."""
    runs = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "bf16_share", lambda: runs.append(share) or share)
    for _ in range(2):
        precision._cpu_computes_bf16.cache_clear()
        assert precision.computes_bf16("cpu") is fast
    assert runs == [share]
    precision._cpu_computes_bf16.cache_clear()


def test_bfloat16_is_measured_against_float32():
    assert 0 < precision.bf16_share() < float("inf")
