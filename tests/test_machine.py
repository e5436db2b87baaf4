"""What the machine does to a command: pipes, links, signals, full disks, locales."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from letstalk_core.audio.recording import read_audio
from letstalk_core.cli import main
from letstalk_core.errors import InputError
from letstalk_core.picture.picture_file import read_image
from letstalk_core.video.reader import probe
from tests.media_files import tone, write_media
from tests.tiny import write_tiny_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes, links and signals of POSIX")


@pytest.fixture
def command(tmp_path):
    """A generate command of a tiny model, without its output; 60 seconds of sound."""
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(tmp_path / "me.png")
    write_media(tmp_path / "long.wav", tone(16000, 16000 * 60, 1), 16000)
    model = write_tiny_checkpoint(tmp_path / "tiny.safetensors")
    files = ["--model", str(model), "--portrait", str(tmp_path / "me.png"), "--audio", str(tmp_path / "long.wav")]
    return ["generate", *files, "--face", "none"]


def process(arguments: list[str], **options) -> subprocess.Popen:
    run = [sys.executable, "-m", "letstalk_core", *arguments]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="backslashreplace")
    return subprocess.Popen(run, cwd=REPOSITORY, **{**pipes, **options})


@pytest.mark.parametrize("read", [read_audio, read_image])
def test_a_pipe_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe or a device, and inputs are read several times"):
        read(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe or a device"):
        read("/dev/null")


def test_an_output_that_is_a_link_is_followed(tmp_path, command):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "out.mp4", tmp_path / "disk" / "real.mp4"
    for _ in range(2):  # a link to nothing yet, and to the video of before
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert main([*command, "--output", str(link), "--max-seconds", "0.2"]) == 0
        assert link.is_symlink() and not target.is_symlink() and probe(target).frames == 5
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["real.mp4"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_rendering_as_ctrl_c_does(tmp_path, command, number):
    output = tmp_path / "out.mp4"
    running = process([*command, "--output", str(output)])
    while not list(tmp_path.glob("out.mp4.work-*/.*.part")) and running.poll() is None:  # the first segment
        time.sleep(0.05)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and errors.strip().splitlines()[-1].startswith("letstalk: interrupted")
    assert not output.exists() and not [*tmp_path.rglob("*.part"), *tmp_path.glob("out.mp4.work-*/*.mp4")]
    assert main([*command, "--output", str(output), "--max-seconds", "0.2"]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_output_is_said(tmp_path, command):
    with open("/dev/full", "w") as full:
        running = process([*command, "--output", str(tmp_path / "a.mp4"), "--max-seconds", "0.2"], stdout=full)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "the disk that standard output goes to is full" in errors and "Errno" not in errors


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, command, capfd):
    closed = tmp_path / "closed"
    (closed / "in").mkdir(parents=True)
    closed.chmod(0o600)
    for folder, words in ((closed, "Nothing can be written in"), (closed / "in", "may not be looked into")):
        assert main([*command, "--output", str(folder / "a.mp4")]) == 1
        assert words in (said := capfd.readouterr().err) and str(folder) in said
    closed.chmod(0o700)


def test_a_locale_that_does_not_know_a_name_is_said(tmp_path, command):
    picture = tmp_path / "Gr\u00fc\u00dfe.png"
    picture.write_bytes((tmp_path / "me.png").read_bytes())
    command[command.index("--portrait") + 1] = str(picture)
    locale = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    running = process([*command, "--output", str(tmp_path / "a.mp4"), "--max-seconds", "0.2"], env=locale)
    _, errors = running.communicate(timeout=60)
    if running.returncode:
        assert errors.count("\n") == 1 and "PYTHONUTF8=1" in errors
    assert "Traceback" not in errors and running.returncode == (0 if (tmp_path / "a.mp4").exists() else 1)


def test_a_name_that_begins_with_a_dash(capfd):
    with pytest.raises(SystemExit):
        main(["generate", "--portrait", "-p.png", "--audio", "a.wav", "--output", "a.mp4"])
    assert "is given as in --portrait=-me.png" in capfd.readouterr().err
