"""The folder of an unfinished video: damaged, left by the dying, held, removed, or on another file system."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from letstalk_core import files
from letstalk_core.audio.recording import read_audio
from letstalk_core.errors import InputError
from letstalk_core.render import segments
from letstalk_core.render.render import Observer, render_video
from letstalk_core.render.segments import work_folder_of
from letstalk_core.video.reader import read_video_frames

from .rendering import StopAt, make_job, stopped

pytestmark = pytest.mark.usefixtures("short_segments")


def truncated(work):
    video = work / "00001.mp4"
    video.write_bytes(video.read_bytes()[:-10])
    return 8


def changed(work):
    video = work / "00001.mp4"
    content = bytearray(video.read_bytes())
    content[len(content) // 2] ^= 1
    video.write_bytes(content)
    return 8


def without_state(work):
    (work / "00001.safetensors").unlink()
    return 8


def broken_state(work):
    (work / "00001.safetensors").write_bytes(b"no")
    return 8


def with_a_gap(work):
    (work / "00000.mp4").unlink()
    return 0


def of_another_job(work):
    state = work / "00001.safetensors"
    with safe_open(state, "pt") as file:
        told = file.metadata()
    save_file(load_file(state), state, {**told, "fingerprint": "0" * 64})
    return 8


def without_its_description(work):
    (work / "job.json").unlink()
    return 16


def with_dead_parts(work):
    for name in (".00002.mp4.0123abcd.part", ".joined.mp4.0123abcd.part", "00002.mp4", "joined.mkv", "trial.mp4"):
        (work / name).write_bytes(b"half")
    return 16


DAMAGES = (truncated, changed, without_state, broken_state, with_a_gap, of_another_job)


@pytest.mark.parametrize("damage", [*DAMAGES, without_its_description, with_dead_parts])
def test_only_whole_segments_count(job, whole, tmp_path, damage):
    work = stopped(job, tmp_path / "a.mp4")
    left = damage(work)
    watcher = StopAt()
    render_video(job, tmp_path / "a.mp4", watcher)
    assert watcher.estimate.done == left
    assert watcher.made[:2] == [left + 4, left + 8]
    if damage is with_a_gap:  # what lies behind the gap is not made again
        assert watcher.made[2] == 20
    assert np.array_equal(read_video_frames(tmp_path / "a.mp4"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_segment_that_cannot_be_read_now_is_not_made_anew(job, tmp_path, monkeypatch):
    work = stopped(job, tmp_path / "a.mp4")
    before = {path.name: path.read_bytes() for path in work.iterdir()}

    def fails(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(segments, "_digest", fails)
    with pytest.raises(InputError, match="00000.mp4 cannot be read .Input/output error"):
        render_video(job, tmp_path / "a.mp4")
    assert before.items() <= {path.name: path.read_bytes() for path in work.iterdir()}.items()


class Dead(BaseException):
    """A process that does nothing any more."""


def dying(monkeypatch, after: int) -> list:
    """From the call number `after` on, nothing on the disk is renamed, flushed, made or removed; returns the calls."""
    calls = []

    def patch(owner, name):
        real = getattr(owner, name)

        def call(*arguments, **options):
            calls.append(name)
            if len(calls) > after:
                raise Dead
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for name in ("replace", "fsync"):
        patch(files.os, name)
    for name in ("unlink", "mkdir", "rmdir", "write_bytes"):
        patch(Path, name)
    return calls


def test_wherever_it_dies_nothing_is_lost_or_left(pipeline, tmp_path):
    """Between any two things that it does to the disk."""
    job = make_job(pipeline, seconds=0.9)  # 23 frames: three segments
    render_video(job, tmp_path / "whole.mp4")
    wanted = read_video_frames(tmp_path / "whole.mp4"), read_audio(tmp_path / "whole.mp4")[0]
    folder, after = tmp_path / "out", 0
    folder.mkdir()
    while True:
        with pytest.MonkeyPatch.context() as patch:
            calls = dying(patch, after)
            with contextlib.suppress(Dead):
                render_video(job, folder / "a.mp4")
        if (folder / "a.mp4").exists():  # whole or not there
            assert np.array_equal(read_video_frames(folder / "a.mp4"), wanted[0])
        render_video(job, folder / "a.mp4")
        assert np.array_equal(read_video_frames(folder / "a.mp4"), wanted[0])
        assert torch.equal(read_audio(folder / "a.mp4")[0], wanted[1])
        left = [path.name for path in folder.iterdir() if not path.name.endswith(".part")]
        assert left == ["a.mp4"], (after, calls)
        assert all(path.stat().st_size == 0 for path in folder.glob("*.part"))  # of trying whether one can write there
        for path in folder.iterdir():
            path.unlink()
        if len(calls) <= after:
            break
        after += 1
    assert after > 40


def test_somebody_elses_file_in_the_work_folder_stays(job, tmp_path):
    work = stopped(job, tmp_path / "a.mp4")
    (work / "notes.txt").write_text("mine")
    render_video(job, tmp_path / "a.mp4")
    assert [path.name for path in work.iterdir()] == ["notes.txt"]


class Removes(Observer):
    def __init__(self, frames, path):
        self.frames, self.path = frames, path

    def advance(self, frames, picture):
        if frames == self.frames:
            shutil.rmtree(self.path)


@pytest.mark.parametrize("frames", [4, 12, 38])
def test_a_work_folder_that_vanishes_is_said_and_the_next_run_ends_well(job, whole, tmp_path, frames):
    work = work_folder_of(tmp_path / "a.mp4", job.fingerprint)
    with pytest.raises(InputError, match="was removed while the video was made") as caught:
        render_video(job, tmp_path / "a.mp4", Removes(frames, work))
    assert str(work) in str(caught.value) and not list(tmp_path.iterdir())
    render_video(job, tmp_path / "a.mp4")
    assert np.array_equal(read_video_frames(tmp_path / "a.mp4"), whole)


class Second(Observer):
    """Tries the same work folder while the first rendering is at it."""

    def __init__(self, attempt):
        self.attempt, self.error = attempt, None

    def advance(self, frames, picture):
        if frames == 12:
            with pytest.raises(InputError) as caught:
                self.attempt()
            self.error = str(caught.value)


def test_the_second_process_says_who_holds_the_folder(pipeline, job, whole, tmp_path, repository):
    output = tmp_path / "a.mp4"
    work = work_folder_of(output, job.fingerprint)
    code = f"""
from pathlib import Path
from letstalk_core.render.segments import WorkFolder
try:
    WorkFolder(Path({str(work)!r}), "x", {{}}).__enter__()
except Exception as error:
    print(type(error).__name__, error)
"""

    def attempt():
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository).stdout
        assert told.startswith("InputError ")
        raise InputError(told)

    second = Second(attempt)
    render_video(job, output, second)
    assert f"in use by process {os.getpid()} on {socket.gethostname()} since 20" in second.error
    assert np.array_equal(read_video_frames(output), whole)


def test_output_on_another_file_system(job, whole, tmp_path, monkeypatch):
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    other = shm / f"letstalk-test-{os.getpid()}"
    other.mkdir()
    try:
        render_video(job, other / "a.mp4", work=tmp_path / "work")
        assert np.array_equal(read_video_frames(other / "a.mp4"), whole)
        assert [path.name for path in other.iterdir()] == ["a.mp4"] and not list(tmp_path.iterdir())
    finally:
        shutil.rmtree(other)


def test_a_copy_that_fails_leaves_no_half_file(tmp_path, monkeypatch):
    part, target = tmp_path / "part", tmp_path / "target"
    part.write_bytes(b"whole")
    replace = os.replace

    def across(a, b):
        if Path(a) == part:
            raise OSError(18, "Invalid cross-device link")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", across)
    with pytest.raises(OSError, match="No space"):
        files.move_into_place(part, target)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
    monkeypatch.setattr(files.os, "replace", replace)
    files.move_into_place(part, target)
    assert target.read_bytes() == b"whole"


def test_the_clock_may_go_backwards(job, whole, tmp_path, monkeypatch):
    work = stopped(job, tmp_path / "a.mp4")
    for path in work.iterdir():
        os.utime(path, (2_000_000_000, 2_000_000_000))  # in the future
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    watcher = StopAt()
    render_video(job, tmp_path / "a.mp4", watcher)
    assert watcher.estimate.done == 16 and watcher.estimate.seconds > 0
    assert np.array_equal(read_video_frames(tmp_path / "a.mp4"), whole)
