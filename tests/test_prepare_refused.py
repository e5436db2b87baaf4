"""Bad input to prepare: one clear sentence each in the manifest, no crash, and nothing of it in the shards."""

import json
import os
import sys
from dataclasses import asdict
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from letstalk_core.audio.mel import MelEncoder
from letstalk_core.data.footage.shard_writer import Stretch
from letstalk_core.data.preparation import clip_latents, preparing, video_clips
from letstalk_core.data.preparation.clip_steps import Clip, measure_lips
from letstalk_core.data.preparation.manifest import MANIFEST, read_manifest, write_manifest
from letstalk_core.data.preparation.preparation_settings import VERSION, PreparationSettings, Thresholds
from letstalk_core.data.preparation.preparing import prepare
from letstalk_core.data.preparation.video_clips import Task, prepare_video
from letstalk_core.data.preparation.video_sources import VideoSource
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.errors import InputError

from .media_files import tone, write_media
from .talking_videos import RATE, talk, write_video

for package in ("webdataset", "scenedetect", "pyarrow", "matplotlib"):
    pytest.importorskip(package)
needs_speech = pytest.mark.skipif("espeak" not in available_engines(), reason="espeak-ng is not installed")
SETTINGS = PreparationSettings(size=64, features="mel", lips=False, eval_share=0.0)
GONE = video_clips.rejected("unreadable", "It is gone.")


def rows_of(path, output, settings=SETTINGS, **told):
    (output / "work").mkdir(parents=True, exist_ok=True)
    return prepare_video(Task(VideoSource(str(path), path.name, **told), settings, str(output)))


def write_pictures(path, frames, times, rate=25, rotation=0, options=None):
    """A video without sound whose frames come at these times, in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grey(count=30, width=64, height=48):
    return np.full((count, height, width, 3), 128, np.uint8)


def unreadable(tmp_path, name):
    """A file with that fault, and words of the sentence."""
    path = tmp_path / f"{name}.mp4"
    if name == "truncated":
        whole = write_video(path, grey(50), torch.randn(1, RATE * 2) * 0.1).read_bytes()
        path.write_bytes(whole[: len(whole) * 3 // 4])
        return path, "cut short"
    if name == "truncated matroska":
        noise = np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3)).astype(np.uint8)
        whole = write_video(path.with_suffix(".mkv"), noise, torch.randn(1, RATE * 2) * 0.1).read_bytes()
        path.with_suffix(".mkv").write_bytes(whole[: len(whole) // 2])
        return path.with_suffix(".mkv"), "cut short"
    if name == "no picture":
        return write_media(tmp_path / "sound.m4a", tone(RATE, RATE, 1), RATE).rename(path), "has no picture"
    if name == "no sound":
        return write_pictures(path, grey(), range(0, 1200, 40)), "has no sound; prepare --allow-silent"
    if name == "zero length":
        path.touch()
        return path, "is empty (0 bytes)"
    if name == "a folder":
        path.mkdir()
        return path, "is a folder"
    path.write_text("no video at all\n" * 99)
    return path, "cannot be decoded"


@pytest.mark.parametrize(
    "name", ["truncated", "truncated matroska", "no picture", "no sound", "zero length", "a folder", "text"]
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name):
    path, words = unreadable(tmp_path, name)
    (row,) = rows_of(path, tmp_path / "out")
    assert not row["kept"] and row["filters"] == ["unreadable"] and row["seconds"] == 0
    (reason,) = row["reasons"]
    assert words in reason and "\n" not in reason and len(reason) < 250
    assert not list((tmp_path / "out").glob("train/*"))


def test_one_broken_video_does_not_stop_the_rest(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("text", "no sound", "zero length", "truncated"):
        unreadable(tmp_path / "in", name)
    said = prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, workers=1)
    rows = read_manifest(tmp_path / "out" / MANIFEST)
    assert len(rows) == 4 and not any(row["kept"] for row in rows)
    assert "unreadable" in said and " 4 " in said


def test_a_fault_of_ours_is_the_videos_own(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(video_clips, "probe_video", fail)
    (row,) = rows_of(write_video(tmp_path / "a.mp4", grey(), torch.zeros(1, RATE)), tmp_path / "out")
    assert row["reasons"] == ["It cannot be prepared (ZeroDivisionError: nobody foresaw this)."]


@needs_speech
def test_a_full_disk_stops_everything_and_blames_no_video(tmp_path, monkeypatch):
    def full(path, stretches):
        next(iter(stretches))
        raise InputError(f"{path} cannot be written (No space left on device).")

    monkeypatch.setattr(video_clips, "write_shard", full)
    path = write_video(tmp_path / "a.mp4", *talk())
    with pytest.raises(InputError, match="No space left"):
        rows_of(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("work/*.json"))


def full_disk(path, content):
    raise InputError(f"{path} cannot be written (No space left on device).")


def test_a_full_disk_blames_no_video_for_its_thumbnail(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", grey(), torch.zeros(1, RATE))
    with monkeypatch.context() as patch:
        patch.setattr(video_clips, "write_durably", full_disk)
        with pytest.raises(InputError, match="jpg cannot be written .No space left"):
            rows_of(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("work/*.json"))
    assert rows_of(path, tmp_path / "out")[0]["filters"] != ["unreadable"]  # once there is space again


def made(tmp_path, monkeypatch, steps, settings=SETTINGS):
    """The rows of a video whose stretches are those of `steps`, called with its _Video."""
    path = write_video(tmp_path / "a.mp4", grey(), torch.zeros(1, RATE))
    monkeypatch.setattr(video_clips._Video, "_stretches", steps)
    return rows_of(path, tmp_path / "out", settings)


def test_a_full_disk_blames_no_video_for_its_silent_clip(tmp_path, monkeypatch):
    def steps(video):
        monkeypatch.setattr(video_clips, "write_durably", full_disk)
        video.rows.append({})
        video._write_silent(Clip(0, (64, 48), 1.0, frames=grey()))
        yield from ()

    with pytest.raises(InputError, match="mp4 cannot be written .No space left"):
        made(tmp_path, monkeypatch, steps)


def stretch(features):
    return Stretch("a", 25.0, features, 8, "mel", frames=grey(20), sound=torch.zeros(12800))


@pytest.mark.parametrize("fault", ["infinite", "memory", "av"])
def test_a_stretch_that_cannot_be_stored_rejects_its_video_alone(tmp_path, monkeypatch, fault):
    def steps(video):
        yield stretch(torch.zeros(36, 1, 4))
        if fault == "infinite":
            yield stretch(torch.full((36, 1, 4), torch.nan))
        error = MemoryError("too large") if fault == "memory" else av.error.FFmpegError(1, "encoder failed")
        monkeypatch.setattr(Stretch, "members", lambda self: (_ for _ in ()).throw(error))
        yield stretch(torch.zeros(36, 1, 4))

    (row,) = made(tmp_path, monkeypatch, steps)
    words = {"infinite": "NaN, infinite", "memory": "MemoryError: too large", "av": "encoder failed"}[fault]
    assert row["filters"] == ["unreadable"] and words in row["reasons"][0]
    assert not list((tmp_path / "out").glob("train/*")) and list((tmp_path / "out").glob("work/*.json"))


def test_nothing_stays_of_a_video_that_fails_half_way(tmp_path, monkeypatch):
    def steps(video):
        video.rows.append({})
        video._write_silent(Clip(0, (64, 48), 1.0, frames=grey()))
        assert len(list((tmp_path / "out").glob("silent/*.mp4"))) == 1
        raise InputError("It is cut short.")
        yield

    (row,) = made(tmp_path, monkeypatch, steps)
    assert row["reasons"] == ["It is cut short."] and not list((tmp_path / "out").glob("silent/*"))


def test_lips_are_compared_over_frames_without_a_face():
    opening = np.abs(np.sin(np.arange(60) / 3))
    faces = [None if number in (0, 20, 21, 59) else SimpleNamespace(opening=opening[number]) for number in range(60)]
    clip = Clip(0, (64, 48), 1.0, faces=faces)
    measure_lips(clip, SimpleNamespace(opening=lambda heard: heard), opening)
    assert clip.measures["lips_r"] > 0.95 and clip.measures["lips_lag"] == 0
    with pytest.raises(InputError, match="face_share is 0; choose above 0"):
        PreparationSettings(thresholds=Thresholds(face_share=0))


@needs_speech
def test_uneven_frame_rates_and_turned_phones(tmp_path):
    frames, _ = talk()
    settings = PreparationSettings(size=64, features="mel", lips=False, eval_share=0.0, allow_silent=True)
    times = np.cumsum(np.random.default_rng(0).choice([20, 33, 40, 70], len(frames[:60])))
    (uneven,) = rows_of(
        write_pictures(tmp_path / "uneven.mp4", frames[:60], times - times[0]), tmp_path / "out", settings
    )
    assert uneven["kept"] and abs(uneven["seconds"] - (times[-1] - times[0]) / 1000) < 0.1
    from letstalk_core.video.reader import read_video_frames

    assert len(read_video_frames(tmp_path / "out" / uneven["stored"])) == round(uneven["seconds"] * 25)


@needs_speech
def test_8k(tmp_path):
    """A picture of 7680 x 4320 is looked at small; its square is cut at its own size."""
    import cv2

    frames, _ = talk()
    large = []
    for frame in frames[:26]:
        picture = np.full((4320, 7680, 3), 90, np.uint8)
        picture[800:2848, 2000:4048] = cv2.resize(frame, (2048, 2048))
        large.append(picture)
    options = {"preset": "ultrafast"}
    path = write_pictures(tmp_path / "8k.mp4", large, range(0, 1040, 40), options=options)
    settings = PreparationSettings(size=64, features="mel", lips=False, eval_share=0.0, allow_silent=True)
    (row,) = rows_of(path, tmp_path / "out", settings)
    assert row["kept"] and (row["width"], row["height"]) == (7680, 4320), row["reasons"]
    assert 400 < row["eyes"] < 620  # 64 in the portrait of 256 pixels, eight times as large


@needs_speech
def test_two_people_and_the_box_that_chooses_one(tmp_path):
    frames, sound = talk()
    path = write_video(tmp_path / "two.mp4", np.concatenate([frames, frames[:, :, ::-1]], 2)[:40], sound[:, :25600])
    (both,) = rows_of(path, tmp_path / "out")
    assert both["filters"] == ["one face"] and both["reasons"] == ["It shows 2 faces."]
    (one,) = rows_of(path, tmp_path / "out", identity="celebv-hq/x", end=2.0, box=(0.0, 1.0, 0.5, 1.0))
    assert one["kept"] and one["faces"] == 1 and one["identity"] == "celebv-hq/x"


@needs_speech
def test_a_part_of_a_video_is_that_part(tmp_path):
    frames, sound = talk()
    path = write_video(tmp_path / "long.mp4", np.concatenate([frames] * 3), sound.repeat(1, 3))
    (row,) = rows_of(path, tmp_path / "out", identity="hdtf/x", start=3.0, end=5.0)
    assert (row["start"], row["seconds"]) == (3.0, 2.0)
    from letstalk_core.data.footage.shard_index import index_shard

    whole = rows_of(path, tmp_path / "other")
    entry, other = (index_shard(tmp_path / p)[0] for p in (f"out/{row['stored']}", f"other/{whole[0]['stored']}"))
    part = entry.rows("features.npy", 8, 58)
    assert torch.equal(part, other.rows("features.npy", 83, 133))


def test_memory_does_not_grow_with_the_length(tmp_path):
    """Frames are held for one clip at a time, however many a video has."""
    from letstalk_core.data.preparation import clip_steps

    held, most = [], []

    class Counted(clip_steps.ShotCuts):
        def begins(self, pixels):
            held.append(1)
            return False

    frames = iter((number, (av.VideoFrame(64, 48, "yuv420p"), None)) for number in range(2000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_steps, "ShotCuts", Counted)
        patch.setattr(clip_steps.FaceTracker, "follow", lambda self, pixels: (None, 0))
        for clip in clip_steps.cut_clips(frames, VideoSource("x", "x"), SETTINGS):
            most.append((len(clip), len(held)))
    assert [length for length, _ in most] == [250] * 8
    assert all(seen <= 250 * (number + 1) + 1 for number, (_, seen) in enumerate(most))  # none is read ahead


def test_many_tiny_files_are_opened_once(tmp_path, monkeypatch):
    """What is done is known by content: a second run decodes nothing, and says the same."""
    (tmp_path / "in").mkdir()
    for number in range(300):
        (tmp_path / "in" / f"{number:03d}.mp4").write_bytes(b"tiny %d" % number)
    work = []
    real = video_clips.probe_video
    monkeypatch.setattr(video_clips, "probe_video", lambda source: (work.append(source.name), real(source))[1])
    for _ in range(2):
        for number in range(300):
            rows_of(tmp_path / "in" / f"{number:03d}.mp4", tmp_path / "out")
    assert len(work) == 300 and len(list((tmp_path / "out" / "work").iterdir())) == 300


def test_damaged_work_is_done_again(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", grey(), torch.zeros(1, RATE))
    rows = rows_of(path, tmp_path / "out")
    (done,) = (tmp_path / "out").glob("work/*.json")
    done.write_text(done.read_text()[:-20])
    assert rows_of(path, tmp_path / "out") == rows


def test_a_copy_counts_once_whatever_its_name(tmp_path):
    for folder in ("one", "two"):
        write_video(tmp_path / folder / "a.mp4", grey(), torch.zeros(1, RATE))
    prepare([tmp_path / "one", tmp_path / "two"], tmp_path / "out", SETTINGS, workers=1)
    first, second = read_manifest(tmp_path / "out" / MANIFEST)
    assert {"a copy"} & {*first["filters"], *second["filters"]} and first["filters"] != second["filters"]


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="its file names are Unicode")
def test_a_name_that_is_no_text_costs_no_manifest(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    prepare([tmp_path / "in"], tmp_path / "out", SETTINGS, workers=1)
    (row,) = read_manifest(tmp_path / "out" / MANIFEST)
    assert row["video"] == "caf\ufffd.mp4" and "letters that this locale does not know" in row["reasons"][0]


def test_other_weights_at_the_same_path_need_another_folder(tmp_path, monkeypatch):
    write_video(tmp_path / "in" / "a.mp4", grey(), torch.zeros(1, RATE))
    encoder, autoencoder = MelEncoder(), SimpleNamespace(downscale=8, encoder_digest="one")
    monkeypatch.setattr(preparing, "find_autoencoder", lambda path: autoencoder)
    monkeypatch.setattr(preparing, "load_audio_encoder", lambda path: encoder)
    monkeypatch.chdir(tmp_path)
    given = {name: getattr(SETTINGS, name) for name in ("size", "lips", "eval_share")}
    settings = PreparationSettings(**given, features="heard", autoencoder="weights")
    for _ in range(2):
        monkeypatch.setitem(preparing.ENGINES, "local", lambda tasks, _: ((n, [GONE]) for n, _ in enumerate(tasks)))
        prepare(["in"], "out", settings)
    stored = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (stored["features"], stored["autoencoder"]) == (str(tmp_path / "heard"), str(tmp_path / "weights"))
    autoencoder.encoder_digest = "two"
    with pytest.raises(InputError, match="with another autoencoder_digest; give the same settings"):
        prepare(["in"], "out", settings)
    autoencoder.encoder_digest, encoder.settings = "one", "other"
    with pytest.raises(InputError, match="with another features_digest; give the same settings"):
        prepare(["in"], "out", settings)


def test_a_gpu_is_used_by_whom_it_is_for_and_where_there_is_one(monkeypatch):
    kept = SimpleNamespace(encoder_digest="one", device="cpu", to=lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(clip_latents, "find_autoencoder", lambda path: kept)
    made = clip_latents._autoencoder.__wrapped__
    for there, devices in ((True, ["cuda", "cpu"]), (False, ["cpu", "cpu"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert [made("weights", gpu)[0].device for gpu in (True, False)] == devices


def test_a_task_is_the_same_through_json():
    task = Task(VideoSource("a.mp4", "a.mp4", box=(0.0, 1.0, 0.5, 1.0)), SETTINGS, "out")
    assert Task.of(json.loads(json.dumps(asdict(task)))) == task


# The manifest --------------------------------------------------------------------------------------------------------


def test_the_manifest_does_not_depend_on_the_order(tmp_path):
    rows = [video_clips.rejected("length", "short") | {"video": f"{n}.mp4", "clip": n % 3} for n in range(9)]
    write_manifest(tmp_path / "a.parquet", rows)
    write_manifest(tmp_path / "b.parquet", rows[::-1])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert len(read_manifest(tmp_path / "a.parquet")) == 9


def test_a_corrupt_manifest_and_one_of_another_version(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / MANIFEST
    write_manifest(path, [video_clips.rejected("length", "short") | {"video": "a.mp4"}])
    path.write_bytes(path.read_bytes()[:-30] + os.urandom(30))
    with pytest.raises(InputError, match="damaged Parquet file"):
        read_manifest(path)
    table = pyarrow.table({"video": ["a"]}).replace_schema_metadata({"letstalk_preparation": "0"})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(InputError, match=f"version 0, and this is version {VERSION}"):
        read_manifest(path)
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", grey(), torch.zeros(1, RATE))
    prepare([tmp_path / "in"], tmp_path, SETTINGS, workers=1)  # it is made anew
    assert len(read_manifest(path)) == 1
