"""Before a video is rendered and around it: the estimate, what is left behind, and recordings of every kind."""

import json
import os
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from letstalk_core import files
from letstalk_core.audio import encoder as audio_encoder
from letstalk_core.audio.recording import Recording
from letstalk_core.cli import main
from letstalk_core.errors import InputError
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.render import estimate, render, segments
from letstalk_core.render.render import Observer, render_video, write_video
from letstalk_core.render.segments import WorkFolder, find_leftovers
from letstalk_core.video.reader import probe, read_video_frames

from .media_files import tone, write_media
from .rendering import RATE, StopAt, make_job, stopped
from .tiny import write_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("short_segments")


# The estimate --------------------------------------------------------------------------------------------------------


def test_the_estimate_says_what_it_takes(job, tmp_path):
    watcher = StopAt()
    began = time.monotonic()
    render_video(job, tmp_path / "a.mp4", watcher, keep_work=True)
    took, told = time.monotonic() - began, watcher.estimate
    assert (told.frames, told.clips, told.done) == (38, 10, 0)
    assert 0 < told.seconds < took * 3
    used = sum(path.stat().st_size for path in tmp_path.rglob("*.mp4"))
    assert used / 3 < told.disk < used * 3
    assert told.memory > 100e6
    assert str(told).startswith("38 frames (1.5 s) in 10 clips: about ")


def test_reading_a_huge_picture_counts(pipeline, tmp_path, monkeypatch):
    write_media(tmp_path / "a.wav", tone(RATE, RATE, 1), RATE)
    before = psutil.Process().memory_info().rss

    def read(_):
        held = np.ones(50_000_000)
        time.sleep(0.1)
        return np.full((80, 80, 3), 0.5 * held[0], np.float32)

    monkeypatch.setattr(render, "read_with_alpha", read)
    watcher = StopAt()
    write_video(pipeline, "a.png", tmp_path / "a.wav", tmp_path / "a.mp4", face="none", observer=watcher)
    assert before + 400e6 < watcher.estimate.memory < before + 900e6


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_cannot_hold_it_is_refused_with_both_numbers(job, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 2000))
    with pytest.raises(InputError, match=r"needs about [\d.]+ MB on the disk of .*, and 0\.0 MB are free"):
        render_video(job, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_memory_that_cannot_hold_it_is_refused_with_both_numbers(job, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "INDEX_BYTES", 10**12)
    with pytest.raises(InputError, match=r"needs about [\d.]+ GB of memory, and [\d.]+ GB are there"):
        render_video(job, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_durations():
    seconds = (3, 99, 130, 3599, 11100)
    assert [estimate.duration(s) for s in seconds] == ["3 s", "99 s", "2 min", "1 h 0 min", "3 h 5 min"]


# Leftovers -----------------------------------------------------------------------------------------------------------


def test_leftovers_are_listed_and_cleaned(job, tmp_path, capfd):
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    assert main(["leftovers", str(folder)]) == 0
    assert "no unfinished videos" in capfd.readouterr().out
    works = [stopped(job, folder / "a.mp4"), stopped(job, folder / "below" / "b.mp4", 30)]
    (folder / "job.json").write_text(json.dumps({"format": "somebody else's"}))
    found = find_leftovers(folder)
    assert [(one.path, one.output, one.done, one.total) for one in found] == [
        (works[0], "a.mp4", 16 / 25, 38 / 25),
        (works[1], "b.mp4", 24 / 25, 38 / 25),
    ]
    assert main(["leftovers", str(folder)]) == 0
    out = capfd.readouterr().out
    assert f"{works[0]}: 0.6 of 1.5 s of a.mp4" in out and "not in use" in out and works[0].exists()
    with WorkFolder(works[0], job.fingerprint, {"output": "a.mp4", "frames": 38, "fps": 25.0}):
        assert main(["leftovers", str(folder), "--clean"]) == 0
        assert works[0].exists() and not works[1].exists()
        assert f"in use by process {os.getpid()}" in capfd.readouterr().out
    assert main(["leftovers", str(folder), "--clean"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["below", "job.json"]
    assert main(["leftovers", str(folder / "nowhere")]) == 1


def test_sizes_are_readable():
    assert [segments.megabytes(size) for size in (0, 1.26e6, 3.04e9)] == ["0.0 MB", "1.3 MB", "3.0 GB"]


def test_stopped_while_the_folder_is_locked_it_leaves_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "a.mp4.work-1"

    def interrupted(lock):
        Path(lock.lock_file).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(segments.filelock.FileLock, "acquire", interrupted)
    with pytest.raises(KeyboardInterrupt), WorkFolder(folder, "x", {}):
        pass
    assert not folder.exists()


# Sources -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "mp4", "ogg"])
def test_any_source_is_read_as_it_is_needed(pipeline, tmp_path, suffix):
    """Sound in packets that do not end where it does, in a video, at 11025 Hz where the format has it."""
    rate = 48000 if suffix == "ogg" else RATE
    source = write_media(tmp_path / f"sound.{suffix}", tone(rate, int(rate * 1.1) + 3, 1), rate)
    job = make_job(pipeline, voice=Recording(source))
    folder = tmp_path / "out"
    folder.mkdir()
    stopped(job, folder / "a.mp4")
    render_video(job, folder / "a.mp4")
    render_video(job, folder / "b.mp4")
    assert np.array_equal(read_video_frames(folder / "a.mp4"), read_video_frames(folder / "b.mp4"))
    found = probe(folder / "a.mp4")
    assert found.frames == job.frames == -(-(int(rate * 1.1) + 3) * 25 // rate)
    assert abs(found.duration - found.audio_duration) <= 1 / 25


def test_a_recording_that_is_changed_in_mid_run_is_noticed(pipeline, tmp_path):
    source = write_media(tmp_path / "sound.wav", tone(RATE, RATE, 1), RATE)
    job = make_job(pipeline, voice=Recording(source))
    out = tmp_path / "out"
    out.mkdir()

    class Changes(Observer):
        def begin(self, estimate):
            write_media(source, -tone(RATE, RATE, 1), RATE)

    with pytest.raises(InputError, match="sound.wav was changed while the video was made; start it again"):
        render_video(job, out / "a.mp4", Changes())
    assert not (out / "a.mp4").exists()


def test_a_last_segment_of_one_frame_with_one_sample(pipeline, tmp_path):
    sound = torch.from_numpy(tone(16000, 640 * 16 + 1, 1))
    job = make_job(pipeline, voice=Recording((sound, 16000)))
    assert render_video(job, tmp_path / "a.mp4") == 17
    found = probe(tmp_path / "a.mp4")
    assert found.frames == 17 and found.audio_samples == 640 * 16 + 1


def test_a_model_with_wav2vec2_is_resumed_too(tmp_path, monkeypatch):
    encoder = Path(__file__).parent / "data" / "wav2vec2"
    told = json.loads((encoder / "config.json").read_text())
    sizes = {"audio_blocks": told["num_hidden_layers"], "audio_channels": told["hidden_size"]}
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", audio_encoder="wav2vec2", **sizes)
    pipeline = LetsTalkPipeline.load(path, "cpu", audio_encoder=encoder)
    monkeypatch.setattr(audio_encoder, "ONE_PASS_SECONDS", 0)
    monkeypatch.setattr(audio_encoder, "WINDOW_SECONDS", 0.6)
    monkeypatch.setattr(pipeline.audio_encoder, "context_seconds", 0.2)
    job, folder = make_job(pipeline), tmp_path / "out"
    folder.mkdir()
    render_video(job, tmp_path / "whole.mp4")
    stopped(make_job(pipeline), folder / "a.mp4")
    render_video(make_job(pipeline), folder / "a.mp4")
    assert np.array_equal(read_video_frames(folder / "a.mp4"), read_video_frames(tmp_path / "whole.mp4"))
    assert not np.array_equal(*(job.features[0][a : a + 1] for a in (0, 20)))


def test_a_folder_that_cannot_be_written(job, tmp_path, monkeypatch):
    def refuses(path, flags, *mode):
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *mode)

    real = os.open
    monkeypatch.setattr(files.os, "open", refuses)
    with pytest.raises(InputError, match="Nothing can be written in .* .Permission denied"):
        render_video(job, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
