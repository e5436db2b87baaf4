"""Commands that are stopped, killed or out of space, and how they go on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from letstalk_core.cli import main
from letstalk_core.video.reader import read_video_frames

from .command_line import command, fails, write_wav


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
