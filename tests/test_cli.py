"""The command line: a playable file and exit status 0, or one line on stderr and another status."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image

from letstalk_core.cli import main
from letstalk_core.video.reader import probe, read_video_frames

from .tiny import write_tiny_checkpoint


def write_wav(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> Path:
    samples = (np.sin(np.arange(round(seconds * rate)) / 8) * 8000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples, channels).tobytes())
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "model": write_tiny_checkpoint(folder / "tiny.safetensors"),
        "audio": write_wav(folder / "speech.wav"),
        "portrait": repository / "assets" / "portrait.jpg",
    }


def command(inputs, output, **changes) -> list[str]:
    values = {**inputs, "output": output, **changes}
    return ["generate", *(part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value)))]


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


def fails(argv, capfd, *words, status=1) -> None:
    """The command fails with one line on stderr that has the words, and no traceback."""
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capfd.readouterr().err.strip()  # the file descriptor: libraries in C write there too
    assert code == status
    lines = [line for line in error.splitlines() if not line.startswith("letstalk: note:")]
    assert len(lines) == 1 and lines[0].startswith("letstalk: "), error
    for word in words:
        assert word.lower() in error.lower()


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


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


@contextlib.contextmanager
def running(argv, cwd, prepare=lambda: None):
    """The command as a process of its own; it never outlives the test."""

    def in_the_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs with it ignored
        prepare()

    environment = {**os.environ, "PYTHONPATH": str(cwd)}
    process = subprocess.Popen(
        [sys.executable, "-m", "letstalk_core", *argv],
        cwd=cwd,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        preexec_fn=in_the_child,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_segments(folder: Path, count: int, process) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.work-*/*.safetensors"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopped_at_once_it_leaves_nothing(inputs, tmp_path, repository):
    folder = tmp_path / "out"
    folder.mkdir()
    long = write_wav(tmp_path / "long.wav", 300)
    with running(command(inputs, folder / "out.mp4", audio=long, steps=200), repository) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("*.work-*")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 130
    assert error.strip().splitlines() == ["letstalk: interrupted"]
    assert not list(folder.iterdir())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_was_stopped_goes_on_where_it_was(how, inputs, tmp_path, repository, capfd):
    folder = tmp_path / "out"
    folder.mkdir()
    long = write_wav(tmp_path / "long.wav", 30)
    assert main(command(inputs, tmp_path / "whole.mp4", audio=long)) == 0
    argv = command(inputs, folder / "out.mp4", audio=long)
    with running(argv, repository) as process:
        wait_for_segments(folder, 2, process)
        process.send_signal(how)
        error = process.communicate(timeout=60)[1].strip().splitlines()
    assert process.returncode == (130 if how is signal.SIGINT else -9)
    assert not (folder / "out.mp4").exists()
    if how is signal.SIGINT:
        assert len(error) == 1 and error[0].startswith("letstalk: interrupted. ")
        assert "s of the video are kept in" in error[0] and error[0].endswith("goes on from there")
    fails(
        command(inputs, folder / "out.mp4", audio=long, portrait=tmp_path / "deleted.png"), capfd, "no file", "kept in"
    )
    capfd.readouterr()
    assert main(argv) == 0
    assert "s of them there already" in capfd.readouterr().out
    assert np.array_equal(read_video_frames(folder / "out.mp4"), read_video_frames(tmp_path / "whole.mp4"))
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]


def test_resume_and_work_can_be_turned_off_and_kept(inputs, tmp_path, capfd):
    argv = command(inputs, tmp_path / "out.mp4")
    assert main([*argv, "--keep-work"]) == 0
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == ["out.mp4", "out.mp4.work-"]
    capfd.readouterr()
    assert main([*argv, "--keep-work"]) == 0
    assert "all of it was there" in capfd.readouterr().out
    assert main([*argv, "--no-resume"]) == 0
    assert "s per second of video" in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_full_disk_is_one_line_and_nothing_is_lost(inputs, tmp_path, repository, capfd):
    folder = tmp_path / "out"
    folder.mkdir()
    long = write_wav(tmp_path / "long.wav", 30)
    assert main(command(inputs, tmp_path / "whole.mp4", audio=long)) == 0
    limit = (tmp_path / "whole.mp4").stat().st_size * 6 // 10  # holds each segment, and not the whole

    def small_files() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with running(command(inputs, folder / "out.mp4", audio=long), repository, small_files) as process:
        error = process.communicate(timeout=120)[1].strip()
        assert process.returncode == 1
    assert len(error.splitlines()) == 1 and error.startswith("letstalk: "), error
    assert "check the free space" in error and "30.0 s of the video are kept in" in error
    assert not list(folder.glob("*.mp4")) and not list(folder.rglob("*.part"))
    capfd.readouterr()
    assert main(command(inputs, folder / "out.mp4", audio=long)) == 0
    assert "all of it was there" in capfd.readouterr().out
    assert np.array_equal(read_video_frames(folder / "out.mp4"), read_video_frames(tmp_path / "whole.mp4"))
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
