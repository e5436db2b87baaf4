"""prepare --syncnet: what SyncNet says of a clip is in its row and judged; a file that is none is refused at once."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from letstalk_core.cli import main
from letstalk_core.data.preparation import clip_steps, video_clips
from letstalk_core.data.preparation.manifest import MANIFEST, read_manifest
from letstalk_core.data.preparation.preparation_settings import PreparationSettings, Thresholds
from letstalk_core.data.preparation.preparing import prepare
from letstalk_core.data.preparation.syncnet import SyncNet, load_syncnet, sync_scores
from letstalk_core.data.preparation.video_sources import VideoSource
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.errors import InputError

from .talking_videos import talk, write_video
from .test_feature_networks import saved

for package in ("webdataset", "scenedetect", "pyarrow", "matplotlib"):
    pytest.importorskip(package)
needs_speech = pytest.mark.skipif("espeak" not in available_engines(), reason="espeak-ng is not installed")
SETTINGS = PreparationSettings(size=64, features="mel", lips=False, eval_share=0.0, allow_silent=True)
FRAMES = 30
ANY = Thresholds(sync_c=0, sync_lag=15)  # random weights are not sure of anything


def write_weights_of(path, seed=0):
    """Random ones, whose vectors lie further apart than fresh ones do."""
    torch.manual_seed(seed)
    net = SyncNet()
    with torch.no_grad():
        for layers in (net.netfcaud, net.netfclip):
            layers[3].weight.mul_(100)
    return saved(net, path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights_of(tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    frames, sound = talk()
    return write_video(tmp_path_factory.mktemp("talk") / "a.mp4", frames[:FRAMES], sound[:, : FRAMES * 640])


def row_of(path, output, settings):
    (output / "work").mkdir(parents=True)
    (row,) = video_clips.prepare_video(video_clips.Task(VideoSource(str(path), path.name), settings, str(output)))
    return row


@needs_speech
def test_a_row_has_the_scores_of_what_is_stored(video, weights, tmp_path, monkeypatch):
    kept, stretch_of = [], video_clips.Stretch
    monkeypatch.setattr(video_clips, "Stretch", lambda **given: kept.append(given) or stretch_of(**given))
    settings = replace(SETTINGS, size=224, syncnet=str(weights), thresholds=ANY)  # SyncNet's own size: nothing resized
    row = row_of(video, tmp_path / "out", settings)
    confidence, _, lag = sync_scores(load_syncnet(weights), kept[0]["frames"], kept[0]["sound"].numpy())
    assert row["kept"] and len(kept) == 1 and confidence > 0.01, row["reasons"]
    assert (row["sync_c"], row["sync_lag"]) == (round(confidence, 4), lag)


@needs_speech
def test_thresholds_reject_and_other_weights_need_another_folder(video, tmp_path):
    path = write_weights_of(tmp_path / "syncnet_v2.model")
    settings = replace(SETTINGS, syncnet=str(path), thresholds=replace(ANY, sync_c=100))
    said = prepare([video], tmp_path / "out", settings, workers=1)
    (row,) = read_manifest(tmp_path / "out" / MANIFEST)
    assert row["filters"] == ["SyncNet, confidence"] and "least 100" in said
    assert row["reasons"] == [
        f"SyncNet is not sure that the sound is of this mouth: Sync-C {row['sync_c']:.2f}, less than 100."
    ]
    write_weights_of(path, seed=1)
    with pytest.raises(InputError, match="with another syncnet_digest; give the same settings"):
        prepare([video], tmp_path / "out", settings, workers=1)


def refuse(_):
    raise AssertionError("it is not needed")


@needs_speech
@pytest.mark.parametrize("why", ["no file", "rejected before", "no sound"])
def test_what_is_not_measured_is_empty_and_not_judged(tmp_path, monkeypatch, why):
    monkeypatch.setattr(video_clips, "_syncnet", refuse)
    frames, sound = talk()
    path = write_video(tmp_path / "a.mp4", frames[:FRAMES], None if why == "no sound" else sound[:, : FRAMES * 640])
    thresholds = Thresholds(sharpness=99) if why == "rejected before" else Thresholds()
    settings = replace(SETTINGS, syncnet="" if why == "no file" else "syncnet_v2.model", thresholds=thresholds)
    row = row_of(path, tmp_path / "out", settings)
    assert row["sync_c"] is None and row["sync_lag"] is None and row["sharpness"] is not None
    assert row["filters"] == (["sharpness"] if why == "rejected before" else [])


def test_faces_are_the_frames_in_syncnets_size(monkeypatch):
    given = []

    def scores(net, faces, waveform):
        given.extend((net, faces, waveform))
        return 4.5, 7.0, -2

    monkeypatch.setattr(clip_steps, "sync_scores", scores)
    small = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    frames = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_CUBIC) for frame in small])
    clip, sound = clip_steps.Clip(0, (64, 48), 1.0, frames=frames), torch.arange(3 * 640.0)
    clip_steps.measure_sync(clip, "net", sound)
    assert clip.measures == {"sync_c": 4.5, "sync_lag": -2.0}
    net, faces, waveform = given
    resized = np.stack([cv2.resize(frame, (224, 224), interpolation=cv2.INTER_CUBIC) for frame in frames])
    assert net == "net" and np.array_equal(waveform, sound.numpy()) and faces.shape == (3, 224, 224, 3)
    assert np.abs(faces.astype(int) - resized).max() <= 2


def test_a_clip_too_short_for_one_shift_is_not_measured():
    clip = clip_steps.Clip(0, (64, 48), 1.0, frames=np.zeros((5, 64, 64, 3), np.uint8))
    clip_steps.measure_sync(clip, None, torch.zeros(5 * 640))
    assert clip.measures == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.model", "There is no file"),
        ("folder", "is a folder"),
        ("empty.model", "is empty"),
        ("other.model", "give syncnet_v2.model"),
        ("cut short.model", "no file of weights that can be read"),
    ],
)
def test_a_file_that_is_not_syncnet_is_refused_before_any_video(tmp_path, monkeypatch, capsys, weights, name, words):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("empty.model").touch()
    Path("cut short.model").write_bytes(weights.read_bytes()[:100_000])
    saved(torch.nn.Linear(2, 2), "other.model")
    assert main(["prepare", "nothing.mp4", "--features", "mel", "--syncnet", name, "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not Path("out").exists()


def test_settings_with_syncnet(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="SyncNet needs 25 frames a second, not 30"):
        PreparationSettings(fps=30, syncnet="syncnet_v2.model")
    monkeypatch.chdir(tmp_path)
    settings = replace(SETTINGS, syncnet="syncnet_v2.model").with_whole_paths()
    assert settings.syncnet == str(tmp_path / "syncnet_v2.model") and SETTINGS.with_whole_paths().syncnet == ""
    task = video_clips.Task(VideoSource("a.mp4", "a.mp4"), settings, "out")
    assert video_clips.Task.of(json.loads(json.dumps(asdict(task)))) == task
