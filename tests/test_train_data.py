"""Trainings from every kind of data, pixels included (videos, shards, drawn people), and which examples they see."""

import json
import shutil

import numpy as np
import pytest

from letstalk_core.cli import main
from letstalk_core.data.preparation.manifest import MANIFEST, read_manifest
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.model.checkpoint import load_checkpoint
from letstalk_core.training.config_file import load_config
from letstalk_core.training.examples import BatchOrder, held_apart
from letstalk_core.training.train import train

from .talking_videos import RATE, talk, write_video
from .test_shards import replace_member
from .tiny import write_tiny_checkpoint
from .training_runs import changes, losses

needs_speech = pytest.mark.skipif("espeak" not in available_engines(), reason="espeak-ng is not installed")


def write_talk(path, seconds=2.0, sound=True, person=145):
    """Somebody who speaks."""
    frames, waveform = talk(person)
    return write_video(path, frames[: round(25 * seconds)], waveform[:, : round(RATE * seconds)] if sound else None)


@pytest.fixture
def given(tmp_path):
    """(a folder of videos, the key=value pairs of a training on it with all of the memory's noise)."""
    videos = tmp_path / "videos"
    write_talk(videos / "a.mp4")
    model = write_tiny_checkpoint(tmp_path / "model.safetensors")
    options = changes(tmp_path / "run", videos, data="videos", autoencoder=str(model), memory_pixel_noise=True)
    return videos, options


@needs_speech
def test_a_folder_of_videos_is_prepared_once_and_trained_on(given, tmp_path, capsys):
    videos, options = given
    write_talk(videos / "b.mp4", person=5)
    assert main(["train", *options]) == 0
    shards = sorted((tmp_path / "run" / "prepared").rglob("*.tar"))
    written = [shard.stat().st_mtime_ns for shard in shards]
    assert len(shards) == 2 and len(losses(tmp_path / "run")) == 6
    assert main(["train", *options, "steps=8"]) == 0
    assert [shard.stat().st_mtime_ns for shard in shards] == written
    assert main(["demo", "--model", str(tmp_path / "run" / "model.safetensors"), "--max-seconds", "0.4", "--output",
                 str(tmp_path / "o.mp4")]) == 0  # fmt: skip
    assert [row["kept"] for row in read_manifest(tmp_path / "run" / "prepared" / MANIFEST)] == [True, True]
    prepared = str(shards[0].parent)
    assert main(["train", *options, "data=shards", f"data_path={prepared}", f"run={tmp_path / 'again'}"]) == 0
    assert losses(tmp_path / "again") == losses(tmp_path / "run")[:6]


@needs_speech
def test_latents_and_pixels_give_the_same_loss(given, tmp_path):
    """Where no noise is on the pixels; latents are kept in half precision."""
    _, options = given
    plain = [*options, "memory_pixel_noise=false"]
    train(load_config(None, plain))
    (shard,) = (tmp_path / "run" / "prepared").rglob("*.tar")
    pixels = shutil.copy(shard, tmp_path / "pixels.tar")
    replace_member(pixels, "latents.npy", None)
    train(load_config(None, [*plain, f"run={tmp_path / 'pixels'}", "data=shards", f"data_path={pixels}"]))
    assert losses(tmp_path / "pixels") == pytest.approx(losses(tmp_path / "run"), rel=0.02)
    assert losses(tmp_path / "pixels") != losses(tmp_path / "run")  # they were encoded anew


@needs_speech
def test_videos_that_do_not_serve_are_named(given, tmp_path, capsys):
    videos, options = given
    (videos / "a.mp4").unlink()
    assert main(["train", *options]) == 1
    assert str(videos) in capsys.readouterr().err.splitlines()[-1]
    write_talk(videos / "mute.mp4", sound=False)
    assert main(["train", *options]) == 1
    said = capsys.readouterr().err
    assert "mute.mp4" in said and "sound" in said
    write_talk(videos / "short.mp4", seconds=1.2)
    assert main(["train", *options, "model.clip_frames=40", "run=" + str(tmp_path / "other")]) == 1
    assert "42" in capsys.readouterr().err.splitlines()[-1]  # clip and memory


@needs_speech
def test_drawn_people_need_no_data(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model.safetensors")
    options = changes(
        tmp_path / "run", tmp_path / "people", data="avatar", avatar_clips=2, autoencoder=str(model),
        memory_pixel_noise=True, mouth_weight=4.0, eye_weight=2.0, blink_weight=2.0, steps=2,
        model=dict(image_size=64, controls=("eyelids",)),
    )  # fmt: skip
    assert main(["train", *options]) == 0
    path = tmp_path / "run" / "model.safetensors"
    assert load_checkpoint(path).config.departures.controls == ("eyelids",)
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["loss"] > 0


def test_every_stretch_is_used_once_an_epoch_whatever_the_processes():
    stretches = np.array([3, 5, 8, 9, 11, 12])
    whole = iter(BatchOrder(stretches, 0, 4))
    expected = [example for _ in range(6) for example in next(whole)]
    for epoch in range(4):
        assert sorted(stretch for stretch, _ in expected[6 * epoch : 6 * epoch + 6]) == stretches.tolist()
    assert [stretch for stretch, _ in expected[:6]] != [stretch for stretch, _ in expected[6:12]]
    pair = [iter(BatchOrder(stretches, 0, 2, rank, 2)) for rank in (0, 1)]
    assert [example for _ in range(6) for order in pair for example in next(order)] == expected
    assert next(iter(BatchOrder(stretches, 0, 4, first=3))) == expected[12:16]


def test_stretches_are_held_out():
    trained, held = held_apart(10, 0.3, 0)
    assert len(held) == 3 and sorted([*trained, *held]) == list(range(10))
    assert [len(part) for part in held_apart(1, 0.9, 0)] == [1, 0]
