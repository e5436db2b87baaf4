"""The command line: a playable file and exit status 0, or one line on stderr and another status."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from letstalk_core.cli import main
from letstalk_core.video.reader import probe, read_video_frames

from .command_line import command, fails, write_bytes
from .tiny import write_tiny_checkpoint


def test_a_video_with_every_frame_and_the_whole_audio(inputs, tmp_path, capfd):
    output = tmp_path / "out.mp4"
    assert main(command(inputs, output)) == 0
    found = probe(output)
    assert (found.frames, found.width, found.height) == (13, 64, 64)
    assert "13 frames" in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_the_same_seed_gives_the_same_file_and_another_seed_another(inputs, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main(command(inputs, tmp_path / f"{name}.mp4", seed=seed)) == 0
    a, b, c = (read_video_frames(tmp_path / f"{name}.mp4") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_another_encoder(inputs, tmp_path, stand_in):
    for encoder, settings in {"x264": b"bframes=3", "nvenc": b"bframes=0"}.items():
        assert main(command(inputs, tmp_path / "a.mp4", encoder=encoder)) == 0
        assert settings in (tmp_path / "a.mp4").read_bytes()


def test_an_encoder_that_is_not_there(inputs, tmp_path, capfd, no_hardware):
    fails(command(inputs, tmp_path / "a.mp4", encoder="nvenc"), capfd, "nvenc cannot be used here", "x264, the default")
    fails(command(inputs, tmp_path / "a.mp4", encoder="hevc"), capfd, "--encoder", "videotoolbox", status=2)
    assert not list(tmp_path.iterdir())


def test_max_seconds_shortens_picture_and_sound(inputs, tmp_path):
    assert main(command(inputs, tmp_path / "out.mp4", max_seconds=0.2)) == 0
    found = probe(tmp_path / "out.mp4")
    assert found.frames == 5


def test_info_describes_the_model(inputs, capfd):
    assert main(["info", str(inputs["model"])]) == 0
    assert "mel" in capfd.readouterr().out


@pytest.mark.parametrize(
    "changes, words, status",
    [
        ({"steps": 0}, ("steps", "0"), 1),
        ({"steps": "many"}, ("--steps",), 2),
        ({"sampler": "magic"}, ("--sampler", "magic"), 2),
        ({"sampler": "ddim"}, ("euler",), 1),
        ({"dtype": "int4"}, ("--dtype",), 2),
        ({"device": "quantum"}, ("quantum",), 1),
        ({"cfg": "nan"}, ("guidance scale",), 1),
        ({"face": "7"}, ("face",), 1),
        ({"face": "prettiest"}, ("prettiest",), 1),
        ({"max_seconds": -1}, ("duration",), 1),
        ({"max_seconds": "inf"}, ("duration",), 1),
        ({"max_seconds": "nan"}, ("duration",), 1),
        ({"device": "meta"}, ("meta",), 1),
        ({"unheard_of": 1}, ("--unheard-of",), 2),
    ],
)
def test_option_values_that_make_no_sense(changes, words, status, inputs, tmp_path, capfd):
    fails(command(inputs, tmp_path / "out.mp4", **changes), capfd, *words, status=status)
    assert not list(tmp_path.iterdir())


def test_a_model_without_its_autoencoder_says_what_to_give(inputs, tmp_path, capfd):
    model = write_tiny_checkpoint(tmp_path / "bare.safetensors", bundle=False)
    fails(command(inputs, tmp_path / "out.mp4", model=model), capfd, "--autoencoder")


def test_without_a_bundled_model_the_demo_says_what_to_do(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("letstalk_core.pipeline.BUNDLED_MODEL", tmp_path / "not-there.safetensors")
    fails(["demo", "--output", str(tmp_path / "out.mp4")], capfd, "train-portraits")
    assert not list(tmp_path.iterdir())


def test_the_demo_needs_nothing_but_a_model(inputs, tmp_path):
    assert main(["demo", "--output", str(tmp_path / "out.mp4"), "--model", str(inputs["model"])]) == 0
    assert probe(tmp_path / "out.mp4").frames == 221


def test_outputs_that_cannot_be_written(inputs, tmp_path, capfd):
    fails(command(inputs, tmp_path / "nowhere" / "out.mp4"), capfd, "nowhere")
    fails(command(inputs, tmp_path / "out.avi"), capfd, ".mp4")
    (tmp_path / "folder.mp4").mkdir()
    fails(command(inputs, tmp_path / "folder.mp4"), capfd, "folder.mp4")
    fails(command(inputs, "/proc/out.mp4"), capfd, "/proc")


def test_the_output_is_never_one_of_the_inputs(inputs, tmp_path, capfd):
    audio = write_bytes(tmp_path / "talk.mp4", Path(inputs["audio"]).read_bytes())
    fails(command(inputs, audio, audio=audio), capfd, "one of the inputs")
    assert audio.read_bytes() == Path(inputs["audio"]).read_bytes()


def test_a_face_of_several_can_be_chosen(inputs, tmp_path, capfd):
    one = Image.open(inputs["portrait"]).resize((200, 200))
    five = Image.new("RGB", (1000, 200))
    for i in range(5):
        five.paste(one, (200 * i, 0))
    five.save(tmp_path / "five.png")
    for face in ("largest", "4", "none"):
        assert main(command(inputs, tmp_path / "out.mp4", portrait=tmp_path / "five.png", face=face)) == 0
    fails(command(inputs, tmp_path / "out2.mp4", portrait=tmp_path / "five.png", face="5"), capfd, "5")


def test_a_failure_keeps_the_file_that_was_there(inputs, tmp_path, capfd):
    output = write_bytes(tmp_path / "out.mp4", b"precious")
    fails(command(inputs, output, steps=0), capfd)
    fails(command(inputs, output, sampler="ddim"), capfd)
    assert output.read_bytes() == b"precious"
