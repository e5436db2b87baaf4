"""prepare: what comes out of videos, that it trains, goes on after a kill, and is the same by both engines."""

import json
import os
import signal
import subprocess
import sys
import time
import wave
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from letstalk_core.audio.load_encoder import load_audio_encoder
from letstalk_core.cli import main
from letstalk_core.data.footage.shard_index import index_shard
from letstalk_core.data.footage.shards import ShardSource
from letstalk_core.data.footage.stretches import with_latents
from letstalk_core.data.preparation import clip_latents, engines, preparing, video_clips
from letstalk_core.data.preparation.clip_drafts import draft_of, read_draft
from letstalk_core.data.preparation.clip_latents import add_latents
from letstalk_core.data.preparation.manifest import MANIFEST, read_manifest
from letstalk_core.data.preparation.preparation_settings import PreparationSettings, Thresholds
from letstalk_core.data.preparation.preparing import kept_shards, prepare
from letstalk_core.data.preparation.video_clips import Task, prepare_video
from letstalk_core.data.preparation.video_sources import VideoSource
from letstalk_core.data.source import Window
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.errors import InputError
from letstalk_core.picture.autoencoder import load_autoencoder
from letstalk_core.pixels import pixels_to_images

from .prepare_by_ray import QUICK, dies_of_b, encoder_dies_of_b
from .talking_videos import RATE, talk, write_video

for package in ("webdataset", "scenedetect", "pyarrow", "matplotlib"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif("espeak" not in available_engines(), reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three people who speak: one as photographed, one at 30 frames a second, one in two shots."""
    place = tmp_path_factory.mktemp("videos")
    frames, sound = talk()
    write_video(place / "a.mp4", frames, sound)
    write_video(place / "deep" / "b.mp4", frames[:60], sound[:, : 2 * RATE], fps=30.0)
    other, speech = talk(5)
    both = np.concatenate([frames[:40], other[:40]])
    write_video(place / "c.mp4", both, torch.cat([sound[:, : 40 * 640], speech[:, : 40 * 640]], 1))
    return place


def rows_of(folder, output, settings=QUICK, **changes):
    prepare([folder], output, settings, **{"workers": 1, **changes})
    return read_manifest(output / MANIFEST)


SAME = ("manifest.parquet", "train/*.tar", "work/*.json")


def files_of(output, *patterns):
    return {path.relative_to(output): path.read_bytes() for pattern in patterns for path in output.glob(pattern)}


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared")
    return output, rows_of(folder, output)


def test_clips_of_shots_at_25_frames_a_second(prepared):
    _, rows = prepared
    assert [row["video"] for row in rows] == ["a.mp4", "c.mp4", "c.mp4", "deep/b.mp4"]
    assert [row["kept"] for row in rows] == [True] * 4, [row["reasons"] for row in rows]
    assert [(row["start"], row["seconds"]) for row in rows[1:3]] == [(0.0, 1.6), (1.6, 1.6)]
    assert rows[3]["fps"] == 30.0 and rows[3]["seconds"] == 2.0
    assert len({row["identity"] for row in rows}) == 3 and {row["split"] for row in rows} == {"train"}


def test_shards_train_and_have_their_sound(prepared):
    output, rows = prepared
    encoder = load_audio_encoder("mel")
    source = ShardSource(
        output / "train", Window(16, 2, 5), latents_digest=None, features_shape=(encoder.blocks, encoder.channels)
    )
    assert len(source) == 4 and (source.fps, source.size, source.audio_encoder) == (25.0, (64, 64), "mel")
    example = source.read(0, np.random.default_rng(0))
    assert example["clip"].shape == (16, 3, 64, 64)
    for row in rows:
        entry = next(e for e in index_shard(output / row["stored"]) if e.frames == round(row["seconds"] * 25))
        place, size = entry.members["wav"]
        content = (output / row["stored"]).read_bytes()[place : place + size]
        with wave.open(BytesIO(content)) as sound:
            assert (sound.getframerate(), sound.getnframes()) == (RATE, entry.frames * 640)


def test_the_square_is_steady_and_holds_the_face(prepared):
    from letstalk_core.picture.face import find_faces

    output, _ = prepared
    for path in sorted((output / "train").glob("*.tar")):
        entry = index_shard(path)[0]
        for picture in entry.pixels(0, entry.frames)[::15]:
            face = find_faces(picture.permute(1, 2, 0).numpy().astype(np.float32) / 255, 8.0)[0]
            assert np.abs(face.anchors.mean(0) - (32, 35)).max() < 6 and 10 < face.eyes < 21


def test_the_heads_motion_is_told(prepared):
    """As it is measured of the video's own frames."""
    from letstalk_core.picture.driving import HEAD, head_motion

    output, rows = prepared
    (entry,) = index_shard(output / rows[0]["stored"])
    told = entry.rows("controls.npy", 0, entry.frames).numpy()
    frames = talk()[0].astype(np.float32) / 255
    _, measured = head_motion((number / 25, frame) for number, frame in enumerate(frames))
    assert entry.controls == HEAD and len(told) == len(frames)
    for column, name in enumerate(HEAD):
        assert np.corrcoef(told[:, column], measured[name])[0, 1] > 0.9
        assert 0.8 < told[:, column].std() / measured[name].std() < 1.25


def test_a_second_call_decodes_nothing(folder, prepared, monkeypatch):
    output, rows = prepared
    before = files_of(output, "train/*", "*.parquet")
    monkeypatch.setattr(video_clips, "_Video", None)
    sources = [video_clips.VideoSource(str(folder / row["video"]), row["video"]) for row in rows]
    for source, row in zip(sources, rows, strict=True):
        found = video_clips.prepare_video(video_clips.Task(source, QUICK, str(output)))
        assert row["key"] in {one["key"] for one in found}
    assert files_of(output, "train/*", "*.parquet") == before


def test_a_renamed_video_is_known_by_its_content_and_copies_count_once(folder, prepared, tmp_path):
    _, rows = prepared
    for name in ("new name.mp4", "again.mp4"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes((folder / "a.mp4").read_bytes())
    copy, own = rows_of(tmp_path / "in", tmp_path / "out")[0], rows[0]
    assert (copy["key"], copy["identity"], copy["video"]) == (own["key"], own["identity"], "again.mp4")
    second = read_manifest(tmp_path / "out" / MANIFEST)[1]
    assert not second["kept"] and second["reasons"] == ["It has the same content as again.mp4."]
    assert len(list((tmp_path / "out" / "train").iterdir())) == 1


def test_the_split_is_by_identity_and_about_the_share():
    settings = PreparationSettings(eval_share=0.2)
    splits = [settings.split_of(f"somebody {number}") for number in range(2000)]
    assert 0.17 < splits.count("eval") / 2000 < 0.23
    assert splits == [settings.split_of(f"somebody {number}") for number in range(2000)]
    more = PreparationSettings(eval_share=0.3)  # who was held out stays so
    assert all(more.split_of(f"somebody {number}") == "eval" for number in range(2000) if splits[number] == "eval")


# Latents -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoding(tmp_path_factory):
    """Settings with a tiny autoencoder."""
    from letstalk_core.picture.autoencoder import build_autoencoder

    from .tiny import AUTOENCODER

    path = tmp_path_factory.mktemp("autoencoder") / "vae"
    torch.manual_seed(0)
    build_autoencoder(AUTOENCODER).model.save_pretrained(path)
    return replace(QUICK, autoencoder=str(path))


@pytest.fixture(scope="module")
def encoded(folder, encoding, tmp_path_factory):
    output = tmp_path_factory.mktemp("encoded")
    return output, rows_of(folder, output, encoding)


@pytest.mark.parametrize("keep_frames", [True, False])
def test_latents_are_of_the_pixels_before_they_are_compressed(folder, encoding, tmp_path, keep_frames):
    settings = replace(encoding, keep_frames=keep_frames)
    task = Task(VideoSource(str(folder / "deep" / "b.mp4"), "b.mp4"), settings, str(tmp_path))
    (tmp_path / "work").mkdir()
    rows = prepare_video(task)
    ((stretch, _),) = read_draft(tmp_path / draft_of(rows))
    assert files_of(tmp_path, "*/*.json", "*/*.tar").keys() == {Path(draft_of(rows))}  # it is not done
    (row,) = add_latents(task, rows, gpu=False)
    assert files_of(tmp_path, "*/*.json", "*/*.tar").keys() == {Path(row["stored"]), Path("work", row["key"] + ".json")}
    (entry,) = index_shard(tmp_path / row["stored"])
    autoencoder = load_autoencoder(settings.autoencoder)
    assert ("mp4" in entry.members) == keep_frames and entry.autoencoder == autoencoder.encoder_digest
    with torch.no_grad():
        wanted = autoencoder.encode(pixels_to_images(torch.from_numpy(stretch.frames[:16]))).half().float()
    assert entry.frames == 50 and torch.equal(entry.latents(0, 16), wanted)
    if keep_frames:
        difference = entry.pixels(0, 2).permute(0, 2, 3, 1).numpy().astype(int) - stretch.frames[:2]
        assert np.abs(difference).max() > 0 and np.abs(difference).mean() < 2


def test_the_rest_of_a_shard_does_not_depend_on_latents(prepared, encoded):
    assert prepared[1] == encoded[1]
    for row in prepared[1]:
        plain, latent = (index_shard(output / row["stored"]) for output in (prepared[0], encoded[0]))
        for entry, other in zip(plain, latent, strict=True):
            assert other.members.keys() - entry.members.keys() == {"latents.npy"}
            for name in entry.members.keys() - {"json"}:
                assert entry._read(*entry.members[name]) == other._read(*other.members[name])


def test_killed_between_the_stages_and_run_again(folder, encoding, encoded, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / ".a.tar.0123abcd.part").write_bytes(b"half of it")
    task = Task(VideoSource(str(folder / "deep" / "b.mp4"), "b.mp4"), encoding, str(tmp_path))
    assert (tmp_path / draft_of(prepare_video(task))).exists()
    (row,) = rows_of(folder / "deep", tmp_path, encoding)
    assert files_of(tmp_path, "*/*", "*/.*") == files_of(encoded[0], f"*/{row['key']}*")


def in_turn(monkeypatch):
    """Prepare in this process, where it can be broken."""
    monkeypatch.setitem(preparing.ENGINES, "local", lambda tasks, _: enumerate(map(engines.prepare_whole, tasks)))


def test_a_second_stage_that_fails_rejects_its_video_alone(folder, encoding, encoded, tmp_path, monkeypatch):
    def fails(stretch, *given, **named):
        if stretch.name.startswith(f"{encoded[1][1]['key']}, 1.6"):  # the second clip of c.mp4
            raise ZeroDivisionError("nobody foresaw this")
        return with_latents(stretch, *given, **named)

    in_turn(monkeypatch)
    monkeypatch.setattr(clip_latents, "with_latents", fails)
    rows = rows_of(folder, tmp_path, encoding)
    assert [row["kept"] for row in rows] == [True, False, True] and rows[1]["filters"] == ["unreadable"]
    assert rows[1]["reasons"] == ["It cannot be prepared (ZeroDivisionError: nobody foresaw this)."]
    assert [row["video"] for row in rows] == ["a.mp4", "c.mp4", "deep/b.mp4"]
    before = files_of(tmp_path, "*/*", "*/.*")
    assert not any(rows[1]["key"] in path.name for path in before if path.suffix != ".json")
    monkeypatch.setattr(video_clips, "_Video", None)
    assert rows_of(folder, tmp_path, encoding) == rows and files_of(tmp_path, "*/*", "*/.*") == before  # it is known


def test_a_gpu_that_fails_is_no_videos_fault(folder, encoding, encoded, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    in_turn(monkeypatch)
    elsewhere = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    with monkeypatch.context() as patch:
        patch.setattr(clip_latents, "_autoencoder", lambda path, gpu: (elsewhere, "digest"))
        patch.setattr(clip_latents, "with_latents", fails)
        with pytest.raises(InputError, match=r"The GPU cannot encode \(CUDA out of memory\)"):
            rows_of(folder / "deep", tmp_path, encoding)
    assert not files_of(tmp_path, "work/*.json", "*/*.tar", "*/.*")
    (row,) = rows_of(folder / "deep", tmp_path, encoding)
    assert files_of(tmp_path, "*/*") == files_of(encoded[0], f"*/{row['key']}*")


def test_one_process_holds_the_gpu(folder, encoding, encoded, tmp_path, monkeypatch):
    """Only this process takes a GPU to be there: the others fall back to the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rows_of(folder, tmp_path / "out", encoding, workers=2)
    assert files_of(tmp_path / "out", *SAME, "*/.*", "work/*.tar") == files_of(encoded[0], *SAME)


@pytest.mark.slow
def test_a_video_that_ends_the_process_with_the_gpu_is_rejected_alone(folder, encoding, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engines, "add_latents", encoder_dies_of_b)
    rows = rows_of(folder, tmp_path, encoding, workers=2)
    assert [row["kept"] for row in rows] == [True, True, True, False]
    assert "process that read it ended" in rows[3]["reasons"][0] and not files_of(tmp_path, "work/*.tar")


# Engines -------------------------------------------------------------------------------------------------------------


def test_processes_give_the_same_bytes(folder, prepared, tmp_path):
    rows_of(folder, tmp_path / "out", workers=2)
    assert files_of(tmp_path / "out", *SAME) == files_of(prepared[0], *SAME)


def by_ray(folder, output, kind: str, repository, autoencoder: str = "") -> subprocess.CompletedProcess:
    pytest.importorskip("ray.data", reason="Ray is not installed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(repository), *sys.path]))}
    command = [
        sys.executable,
        "-m",
        "tests.prepare_by_ray",
        str(folder),
        str(output),
        kind,
        *filter(None, [autoencoder]),
    ]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_ray_gives_the_same_bytes(folder, prepared, tmp_path, repository):
    done = by_ray(folder, tmp_path / "out", "whole", repository)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out", *SAME) == files_of(prepared[0], *SAME)


@pytest.mark.slow
def test_ray_gives_the_same_latents_by_actors_that_hold_a_gpu(folder, encoding, encoded, tmp_path, repository):
    done = by_ray(folder, tmp_path / "out", "gpu", repository, encoding.autoencoder)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out", *SAME, "*/.*", "work/*.tar") == files_of(encoded[0], *SAME)
    held = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("cut", "encoder")}
    assert held == {"cut": {"CPU": 1, "GPU": 0}, "encoder": {"CPU": 0, "GPU": 1}}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What the command prepares, never stopped."""
    output = tmp_path_factory.mktemp("whole")
    rows_of(folder, output, PreparationSettings(features="mel", lips=False, eval_share=0.0))
    return files_of(output, *SAME)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_killed_in_the_middle_and_run_again(folder, whole, tmp_path, repository, engine):
    if engine == "ray":
        pytest.importorskip("ray.data", reason="Ray is not installed")
    options = ["--features", "mel", "--no-lips", "--eval-share", "0", "--workers", "1", "--engine", engine]
    command = [sys.executable, "-m", "letstalk_core", "prepare", folder, "--output", tmp_path / "out", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(repository), *sys.path]))}

    def start():
        return subprocess.Popen(
            list(map(str, command)), env=environment, cwd=repository, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    process, deadline = start(), time.monotonic() + 120
    while not list(tmp_path.glob("out/work/*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = files_of(tmp_path / "out", "work/*.json")
    assert 1 <= len(done) < 3 and not (tmp_path / "out" / MANIFEST).exists()
    assert start().wait(timeout=180) == 0
    assert files_of(tmp_path / "out", *SAME) == whole


def test_a_video_that_ends_its_process_is_rejected_and_the_others_go_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "prepare_whole", dies_of_b)
    rows = rows_of(folder, tmp_path / "out", workers=2)
    assert [row["kept"] for row in rows] == [True, True, True, False]
    assert "process that read it ended" in rows[3]["reasons"][0]


@pytest.mark.slow
def test_ray_too_rejects_a_video_that_ends_its_process(folder, tmp_path, repository):
    done = by_ray(folder, tmp_path / "out", "dies", repository)
    assert done.returncode == 0, done.stderr
    rows = read_manifest(tmp_path / "out" / MANIFEST)
    assert [row["kept"] for row in rows] == [True, True, True, False]
    assert "process that read it ended" in rows[3]["reasons"][0]


@pytest.mark.slow
def test_ray_too_ends_where_nothing_can_be_written(folder, tmp_path, repository):
    done = by_ray(folder, tmp_path / "out", "full", repository)
    assert done.returncode != 0 and "InputError" in done.stderr and "No space left" in done.stderr


# Asked for -----------------------------------------------------------------------------------------------------------


def test_the_report_has_the_papers_table_and_ours(prepared):
    output, rows = prepared
    page = (output / "report.html").read_text()
    for words in ("<td>35666</td>", "<td>41.27</td>", "<td>raw</td><td>3</td><td>4</td>", "report.png"):
        assert words in page
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")


def test_other_settings_need_another_folder(folder, prepared):
    with pytest.raises(InputError, match="another size; give the same settings"):
        prepare([folder], prepared[0], PreparationSettings(size=128, features="mel", lips=False, eval_share=0.0))


def test_work_of_another_version_is_refused(folder, prepared, tmp_path):
    old = json.loads(QUICK.to_json()) | {"version": 0}
    (tmp_path / "settings.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match="another version"):
        prepare([folder], tmp_path, QUICK)


def test_one_process_at_a_time(folder, tmp_path):
    import filelock

    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="Another process"):
        prepare([folder], tmp_path, QUICK)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "There is no file or folder nowhere"),
        (["."], "There are no videos in ."),
        ([".", "--threshold", "sharpnes=2"], "no threshold 'sharpnes'"),
        ([".", "--threshold", "sharpness=high"], "must be a number"),
        ([".", "--seconds", "0.5"], "choose 1 to 60"),
        ([".", "--no-keep-frames"], "frames have to be kept"),
        ([".", "--features", "nowhere"], "nowhere"),
        ([".", "--workers", "0"], "at least 1"),
        ([".", "--eval-share", "1"], "below 1"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *arguments, "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_thresholds_change_what_is_kept(folder, tmp_path):
    rows = rows_of(folder, tmp_path / "out", replace(QUICK, thresholds=Thresholds(seconds=1.9)))
    assert [row["kept"] for row in rows] == [True, False, False, True]
    assert rows[1]["filters"] == ["length"] and rows[1]["reasons"] == ["It lasts 1.60 s, less than 1.9 s."]


@pytest.mark.slow
def test_real_people(tmp_path, shared):
    from letstalk_core.picture.face import find_faces

    clips = [shared / "media" / "clips" / f"{name}.mp4" for name in ("d11", "hdtf_WDA_KatieHill_000")]
    if not all(clip.exists() for clip in clips):
        pytest.skip("no shared clips")
    prepare(clips, tmp_path, PreparationSettings(128, seconds=3.0, features="mel", lips=False, eval_share=0.0))
    rows = read_manifest(tmp_path / MANIFEST)
    assert all(row["kept"] for row in rows if row["seconds"] >= 1), [row["reasons"] for row in rows]
    entries = [entry for shard in kept_shards(tmp_path) for entry in index_shard(shard)]
    assert len(entries) >= 5
    for entry in entries:
        face = find_faces(entry.pixels(0, 1)[0].permute(1, 2, 0).numpy().astype(np.float32) / 255)[0]
        x, y = face.anchors.mean(0)
        assert abs(x - 64) < 10 and abs(y - 0.546 * 128) < 10 and 22 < face.eyes < 40
