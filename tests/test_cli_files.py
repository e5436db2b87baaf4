"""The command line and files that are damaged, empty, unusual or of another kind."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image

from letstalk_core.cli import main
from letstalk_core.video.reader import probe

from .command_line import command, fails, write_bytes, write_wav


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


BAD_FILES = {
    "missing": lambda folder: folder / "nowhere.file",
    "empty": lambda folder: write_bytes(folder / "empty.file", b""),
    "text": lambda folder: write_bytes(folder / "text.file", b"not what it should be " * 50),
    "folder": lambda folder: folder,
}


@pytest.mark.parametrize("option", ["portrait", "audio", "model"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_not_what_it_should_be(option, kind, inputs, tmp_path, capfd):
    bad = BAD_FILES[kind](tmp_path)
    fails(command(inputs, tmp_path / "out.mp4", **{option: bad}), capfd, str(bad))
    assert not list(tmp_path.glob("*.mp4"))


def test_of_a_truncated_recording_the_rest_is_used(inputs, tmp_path, capfd):
    whole = Path(inputs["audio"]).read_bytes()
    cut = write_bytes(tmp_path / "cut.wav", whole[: len(whole) // 3])
    assert main(command(inputs, tmp_path / "out.mp4", audio=cut)) == 0
    assert "cut.wav is cut short or damaged" in capfd.readouterr().err
    assert probe(tmp_path / "out.mp4").frames < 6


@pytest.mark.parametrize("option", ["portrait", "model"])
def test_a_truncated_file(option, inputs, tmp_path, capfd):
    whole = Path(inputs[option]).read_bytes()
    bad = write_bytes(tmp_path / f"cut{Path(inputs[option]).suffix}", whole[: len(whole) // 3])
    fails(command(inputs, tmp_path / "out.mp4", **{option: bad}), capfd, bad.name)


def test_wrong_types_of_file(inputs, tmp_path, capfd):
    fails(command(inputs, tmp_path / "out.mp4", portrait=inputs["audio"]), capfd, "speech.wav")
    fails(command(inputs, tmp_path / "out.mp4", audio=inputs["portrait"]), capfd, "portrait.jpg")
    fails(command(inputs, tmp_path / "out.mp4", model=inputs["portrait"]), capfd, "portrait.jpg")


def test_a_pickle_is_never_run(inputs, tmp_path, capfd):
    flag = tmp_path / "flag"
    bad = write_bytes(tmp_path / "model.ckpt", pickle.dumps(RunsCode(flag)))
    fails(command(inputs, tmp_path / "out.mp4", model=bad), capfd, "model.ckpt")
    fails(["convert", str(bad), str(tmp_path / "new.safetensors")], capfd, "model.ckpt")
    assert not flag.exists()


def test_audio_with_samples_that_are_no_numbers(inputs, tmp_path, capfd):
    samples = np.zeros(16000, np.float32)
    samples[700] = np.nan
    scipy.io.wavfile.write(tmp_path / "nan.wav", 16000, samples)
    fails(command(inputs, tmp_path / "out.mp4", audio=tmp_path / "nan.wav"), capfd, "nan.wav")


def test_silence_is_a_video_too(inputs, tmp_path):
    scipy.io.wavfile.write(tmp_path / "silence.wav", 16000, np.zeros(8000, np.int16))
    assert main(command(inputs, tmp_path / "out.mp4", audio=tmp_path / "silence.wav")) == 0
    assert probe(tmp_path / "out.mp4").frames == 13


def test_audio_without_samples_and_with_one(inputs, tmp_path, capfd):
    fails(command(inputs, tmp_path / "out.mp4", audio=write_wav(tmp_path / "none.wav", 0)), capfd, "none.wav")
    for name, seconds, frames in (("one", 1 / 16000, 1), ("short", 0.05, 2)):
        assert main(command(inputs, tmp_path / f"{name}.mp4", audio=write_wav(tmp_path / f"{name}.wav", seconds))) == 0
        assert probe(tmp_path / f"{name}.mp4").frames == frames


@pytest.mark.parametrize("size, words", [((1, 1), "1x1"), ((15, 400), "16 pixels")])
def test_pictures_too_small(size, words, inputs, tmp_path, capfd):
    Image.new("RGB", size).save(tmp_path / "small.png")
    fails(command(inputs, tmp_path / "out.mp4", portrait=tmp_path / "small.png"), capfd, words)


def test_pictures_of_every_kind_work_or_say_why_not(inputs, tmp_path, capfd):
    pictures = {
        "grey.png": Image.new("L", (90, 90), 100),
        "wide.png": Image.new("RGB", (800, 40), (200, 150, 100)),
        "deep.png": Image.fromarray(np.full((64, 64), 30000, np.uint16)),
        "tall.png": Image.new("RGB", (30, 600), (200, 150, 100)),
        "glass.png": Image.new("RGBA", (64, 64), (250, 0, 0, 128)),
        "huge.png": Image.new("RGB", (8000, 8000), (90, 90, 200)),
        "turned.jpg": Image.new("RGB", (80, 60), (10, 90, 200)),
        "moving.gif": Image.new("P", (64, 64), 3),
    }
    turned = Image.Exif()
    turned[0x0112] = 6
    options = {
        "turned.jpg": {"exif": turned},
        "moving.gif": {"save_all": True, "append_images": [Image.new("P", (64, 64), 9)]},
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name, **options.get(name, {}))
        fails(
            command(inputs, tmp_path / "out.mp4", portrait=tmp_path / name), capfd, "No face was found", "--face none"
        )
        assert main(command(inputs, tmp_path / "out.mp4", portrait=tmp_path / name, face="none")) == 0
        (tmp_path / "out.mp4").unlink()
    Image.new("RGBA", (64, 64), (250, 0, 0, 0)).save(tmp_path / "air.png")
    fails(command(inputs, tmp_path / "out2.mp4", portrait=tmp_path / "air.png"), capfd, "transparent")
