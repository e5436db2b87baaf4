"""LoRA in the pipeline, on the command line and in the node."""

import cv2
import numpy as np
import pytest
import torch

from letstalk_core.cli import build_parser, main
from letstalk_core.model.checkpoint import load_checkpoint
from letstalk_core.model.lora import save_lora
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.video.reader import read_video_frames

from .test_lora import NAME, answer, trained
from .tiny import write_tiny_checkpoint

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A whole tiny checkpoint and a LoRA of it."""
    folder = tmp_path_factory.mktemp("files")
    write_tiny_checkpoint(folder / "tiny.safetensors")
    save_lora(folder / "bob.safetensors", trained(load_checkpoint(folder / "tiny.safetensors"), seed=7))
    return folder


def test_a_pipeline_with_a_lora_is_another_one(files):
    def load(*loras, **options):
        return LetsTalkPipeline.load(files / "tiny.safetensors", "cpu", loras=loras, **options)

    path = files / "bob.safetensors"
    plain, full, half = load(), load((path, 1.0)), load((path, 0.5))
    assert len({one.digest for one in (plain, full, half)}) == 3  # hence another work folder of an unfinished video
    assert load((path, 0.0)).digest == plain.digest and load((path, 1.0)).digest == full.digest
    torch.testing.assert_close(answer(full.model), answer(trained(plain.model, seed=7)), rtol=0, atol=1e-5)
    cast = load((path, 1.0), dtype="bf16").model.get_submodule(NAME).weight  # added in float32, cast afterwards
    assert torch.equal(cast, full.model.get_submodule(NAME).weight.bfloat16())


def test_a_lora_in_the_place_of_a_model(files, capsys):
    assert main(["info", str(files / "bob.safetensors")]) == 1
    assert "a LoRA, not a whole model; give it beside the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("a:b.safetensors:-2", ("a:b.safetensors", -2.0)),
        (r"C:\loras\a.safetensors", (r"C:\loras\a.safetensors", 1.0)),
        (r"C:\loras\a.safetensors:1e-1", (r"C:\loras\a.safetensors", 0.1)),
        (":0.5", (":0.5", 1.0)),
        ("a.safetensors:", ("a.safetensors:", 1.0)),
    ],
)
def test_the_command_lines_option(text, parsed):
    assert build_parser().parse_args(["demo", "--lora", text]).lora == [parsed]
    assert build_parser().parse_args(["demo", "--lora", text, "--lora", "b"]).lora == [parsed, ("b", 1.0)]
    assert build_parser().parse_args(["demo"]).lora == []


def test_the_command_line_makes_another_video_with_a_lora(files, tmp_path, capfd):
    lora, demo = files / "bob.safetensors", ["demo", "--max-seconds", "0.3", "--model", str(files / "tiny.safetensors")]

    def video(name, *options):
        """As pictures: x264 makes much of how processors round."""
        assert main([*demo, "--output", str(tmp_path / name), *options]) == 0
        return np.stack([cv2.imread(str(file)) for file in sorted((tmp_path / name).glob("*.png"))])

    plain, full, half = video("a"), video("b", "--lora", str(lora)), video("c", "--lora", f"{lora}:0.5")
    assert not np.array_equal(plain, full) and not np.array_equal(full, half)
    assert np.array_equal(plain, video("d", "--lora", f"{lora}:0"))
    twice = video("e", "--lora", f"{lora}:0.4", "--lora", f"{lora}:0.6")
    assert np.abs(twice.astype(int) - full).mean() < 0.01 * np.abs(half.astype(int) - full).mean()
    capfd.readouterr()
    for option, words in {f"{lora}:11": "strength", str(files / "tiny.safetensors"): "a whole model"}.items():
        assert main([*demo, "--output", str(tmp_path / "f.mp4"), "--lora", option]) == 1
        error = capfd.readouterr().err.strip()
        assert error.startswith("letstalk: ") and words in error and "\n" not in error
    other = load_checkpoint(files / "tiny.safetensors")
    other.transformer.linear_out.bias.data += 1
    save_lora(tmp_path / "other.safetensors", trained(other))
    video("g", "--lora", str(tmp_path / "other.safetensors"))
    assert "letstalk: note: other.safetensors was trained on other weights" in capfd.readouterr().err


def only(graph: dict, kind: str) -> dict:
    """The inputs of the first node of a class."""
    return next(node["inputs"] for node in graph.values() if node["class_type"] == kind)


@pytest.mark.comfyui
def test_the_node(comfyui, workflow, files, tmp_path):
    folder, models = comfyui.base / "models" / "loras", comfyui.base / "models" / "letstalk"
    folder.mkdir(exist_ok=True)
    write_tiny_checkpoint(models / "for_lora.safetensors")
    whole = (files / "bob.safetensors").read_bytes()
    (folder / "bob.safetensors").write_bytes(whole)
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    graph = workflow("short_talking_portrait")
    loader = only(graph, "LoadLetsTalkModel")
    loader["model"] = "for_lora.safetensors"
    for name in ("lora", "lora_strength"):
        loader.pop(name, None)  # a prompt from before there were LoRAs
    only(graph, "EncodeAudio")["duration"] = 0.3
    only(graph, "LetsTalkSampler")["seed"] = 41

    def frames(**inputs):
        loader.update(inputs)
        ended = comfyui.run(graph)
        assert ended.status == "success", ended.error
        return read_video_frames(ended.videos[0])

    plain, full = frames(), frames(lora="bob.safetensors")
    half, none = frames(lora_strength=0.5), frames(lora="none")
    again = frames(lora="bob.safetensors", lora_strength=1.0)
    assert not np.array_equal(plain, full) and not np.array_equal(full, half) and not np.array_equal(plain, half)
    assert np.array_equal(plain, none) and np.array_equal(full, again)

    other = load_checkpoint(models / "for_lora.safetensors")
    other.transformer.linear_out.bias.data += 1
    save_lora(folder / "bob.safetensors", trained(other, seed=8))  # the file is replaced
    assert not np.array_equal(full, frames(lora_strength=1.0))
    assert "LetsTalk: bob.safetensors was trained on other weights" in comfyui.log

    (folder / "model.safetensors").write_bytes((models / "tiny.safetensors").read_bytes())
    for name, sentence in {"cut.safetensors": "a truncated one", "model.safetensors": "a whole model, not a"}.items():
        loader["lora"] = name
        error = comfyui.run(graph).error
        assert sentence in error and name in error and "\n" not in error and "Error" not in error
