"""Videos that survive: resumed after any end, never mixed, estimated first, and joined without a loss."""

import dataclasses

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open

from letstalk_core.errors import InputError
from letstalk_core.picture.paste_back import PasteBack
from letstalk_core.picture.portrait import Portrait
from letstalk_core.picture.similarity import square_at
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.render.render import render_video
from letstalk_core.render.segments import work_folder_of
from letstalk_core.video.reader import probe, read_video_frames

from .rendering import RATE, SECONDS, StopAt, make_job, stopped
from .tiny import write_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("short_segments")


def test_nothing_but_the_video_is_left(job, whole, tmp_path):
    assert render_video(job, tmp_path / "a.mp4") == 38
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    found = probe(tmp_path / "a.mp4")
    assert (found.frames, found.audio_rate, found.audio_channels) == (38, RATE, 2)
    assert found.audio_samples == int(RATE * SECONDS)
    assert np.array_equal(read_video_frames(tmp_path / "a.mp4"), whole)


@pytest.mark.parametrize("frames", [1, 8, 9, 24, 37, 38])
def test_a_resumed_video_has_the_frames_of_an_uninterrupted_one(job, whole, tmp_path, frames):
    work = stopped(job, tmp_path / "a.mp4", frames)
    assert not (tmp_path / "a.mp4").exists()
    finished = (frames - 1) // 8 * 8 if frames < 38 else 32
    assert work.exists() == (finished > 0)
    watcher = StopAt()
    render_video(job, tmp_path / "a.mp4", watcher)
    assert watcher.estimate.done == finished
    assert np.array_equal(read_video_frames(tmp_path / "a.mp4"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_segments_can_be_looked_at_and_join_to_the_whole(job, whole, tmp_path):
    render_video(job, tmp_path / "a.mp4", keep_work=True)
    work = work_folder_of(tmp_path / "a.mp4", job.fingerprint)
    parts = sorted(work.glob("*.mp4"))
    assert [probe(part).frames for part in parts] == [8, 8, 8, 8, 6]
    assert sum(probe(part).audio_samples for part in parts) == int(RATE * SECONDS)
    assert np.array_equal(np.concatenate([read_video_frames(part) for part in parts]), whole)
    watcher = StopAt(0)
    render_video(job, tmp_path / "a.mp4", watcher)  # nothing is made again
    assert watcher.estimate is None and not work.exists()


def test_a_stretch_of_a_long_video_equals_the_same_frames_alone(job, whole, tmp_path):
    latents = job.encode()
    chunks = list(job.chunks(latents, 0, 38, None, lambda *_: None))
    pixels = torch.cat([pixels for frames, _ in chunks for pixels in job.pixels(frames)])
    work = tmp_path / "work"
    render_video(job, tmp_path / "a.mp4", work=work, keep_work=True)
    with safe_open(work / "00001.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("memory"), chunks[3][1].latents)
        assert torch.equal(file.get_tensor("portraits"), latents)
        assert file.metadata()["last"] == "16"
    grey = whole.mean(-1), pixels.numpy().mean(-1)  # H.264 halves the resolution of colour
    assert np.corrcoef(grey[0].ravel(), grey[1].ravel())[0, 1] > 0.85


@pytest.mark.parametrize("change", [dict(seed=4), dict(value=0.2), dict(pitch=1.1)])
def test_another_seed_portrait_or_sound_never_goes_on_with_these_segments(pipeline, job, tmp_path, change):
    other = make_job(pipeline, **change)
    assert other.fingerprint != job.fingerprint == make_job(pipeline).fingerprint
    work = stopped(job, tmp_path / "a.mp4")
    watcher = StopAt()
    render_video(other, tmp_path / "a.mp4", watcher)
    assert watcher.estimate.done == 0 and work.exists()  # the old ones are still there for the old job
    render_video(other, tmp_path / "b.mp4", watcher, work=work)  # forced onto them: they do not count
    assert watcher.estimate.done == 0
    assert np.array_equal(read_video_frames(tmp_path / "a.mp4"), read_video_frames(tmp_path / "b.mp4"))


def test_packets_of_two_encoders_are_never_joined(pipeline, job, whole, tmp_path, stand_in):
    other = make_job(pipeline, encoder="nvenc")
    assert other.fingerprint != job.fingerprint == make_job(pipeline, encoder="x264").fingerprint
    first, second, watcher = StopAt(20), StopAt(20), StopAt()
    for each, stop in ((job, first), (other, second)):
        with pytest.raises(KeyboardInterrupt):
            render_video(each, tmp_path / "a.mp4", stop)
    assert first.estimate.disk != second.estimate.disk  # of its own encoder
    render_video(other, tmp_path / "a.mp4", watcher)
    render_video(make_job(pipeline, encoder="nvenc"), tmp_path / "b.mp4")
    assert watcher.estimate.done == 16
    frames = read_video_frames(tmp_path / "a.mp4")
    assert np.array_equal(frames, read_video_frames(tmp_path / "b.mp4"))
    assert frames.shape == whole.shape and not np.array_equal(frames, whole)
    with av.open(tmp_path / "a.mp4") as video:
        packets = [packet for packet in video.demux(video=0) if packet.size]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == [0, 8, 16, 24, 32]
    assert all(packet.pts == packet.dts for packet in packets)


def test_an_encoder_that_is_not_there_is_said_before_anything_is_made(pipeline, tmp_path, monkeypatch, no_hardware):
    def made(*_):
        raise AssertionError("something was made")

    monkeypatch.setattr(LetsTalkPipeline, "encode_portrait", made)
    for _ in range(2):
        with pytest.raises(InputError, match="encoder nvenc cannot be used here .PyAV was built without h264_nowhere"):
            render_video(make_job(pipeline, encoder="nvenc"), tmp_path / "a.mp4")
        assert not list(tmp_path.iterdir())


def test_the_model_and_its_precision_are_in_the_fingerprint(pipeline, job, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "other.safetensors", noise_scale=0.5)
    assert LetsTalkPipeline.load(path, "cpu").digest != pipeline.digest
    again = write_tiny_checkpoint(tmp_path / "same.safetensors")
    assert LetsTalkPipeline.load(again, "cpu").digest == pipeline.digest
    assert LetsTalkPipeline.load(again, "cpu", "bf16").digest != pipeline.digest


def test_beginning_anew(job, tmp_path):
    stopped(job, tmp_path / "a.mp4")
    watcher = StopAt()
    render_video(job, tmp_path / "a.mp4", watcher, resume=False)
    assert watcher.estimate.done == 0


@pytest.mark.parametrize("name", ["声音 – façade 🎬.mp4", "é" * 120 + ".mp4", "x" * 250 + ".mp4"])
def test_unicode_and_very_long_names(job, whole, tmp_path, name):
    folder = tmp_path / ("ordner " + "ü" * 60) / ("d" * 200)
    folder.mkdir(parents=True)
    stopped(job, folder / name)
    render_video(job, folder / name)
    assert [path.name for path in folder.iterdir()] == [name]
    assert np.array_equal(read_video_frames(folder / name), whole)


def test_full_pictures(pipeline, tmp_path):
    picture = torch.rand(120, 91, 3)
    portrait = Portrait(torch.full((3, 64, 64), 0.1), square_at(10, 20, 60, 64), (91, 120))
    job = make_job(pipeline, seconds=0.5, paste_back=PasteBack(picture, portrait))
    assert job.fingerprint != make_job(pipeline, seconds=0.5).fingerprint
    moved = dataclasses.replace(portrait, square=square_at(11, 20, 60, 64))
    assert make_job(pipeline, seconds=0.5, paste_back=PasteBack(picture, moved)).fingerprint != job.fingerprint
    render_video(job, tmp_path / "a.mp4")
    found = probe(tmp_path / "a.mp4")
    assert (found.width, found.height, found.frames) == (92, 120, 13)


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_other_containers(job, whole, tmp_path, suffix):
    render_video(job, tmp_path / f"a.{suffix}")
    assert np.array_equal(read_video_frames(tmp_path / f"a.{suffix}"), whole)
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]
