"""Real people against what a model makes of their sound: numbers that are known, a folder from end to end."""

import json

import numpy as np
import pytest
import torch

from letstalk_core.audio.recording import Recording
from letstalk_core.cli import main
from letstalk_core.data.ridge import ridge
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.errors import InputError
from letstalk_core.evaluation.speakers import RIDGE, Speaker, at_frame_rate, follow, load_speakers
from letstalk_core.video.writer import VideoWriter

from .media_files import tone
from .tiny import write_tiny_checkpoint


def signal(seed, frames=200):
    """A slow random opening [frames]."""
    noise = np.random.default_rng(seed).standard_normal(frames + 8)
    return np.convolve(noise, np.ones(9) / 9, mode="valid")


def speaker(name, opening):
    return Speaker(name, Recording((torch.zeros(1, 16000), 16000)), opening)


def test_the_lag_is_found_and_anothers_sound_is_told_apart():
    truths = [signal(0), signal(1), signal(2)]
    speakers = [speaker(name, truth) for name, truth in zip("abc", truths, strict=True)]
    # The first comes two frames late, the second one early, the third is exact and lasts longer.
    ours = [3 * np.roll(truths[0], 2) + 1, np.roll(truths[1], -1), np.append(truths[2], np.ones(30))]
    report = follow(ours, speakers)
    rows = report["speakers"]
    assert [rows[name]["lag"] for name in "abc"] == [2, -1, 0]
    assert all(row["r"] > 0.99 for row in rows.values())
    assert rows["a"]["deviation"] == pytest.approx(3 * truths[0].std() * 21 / 64)  # in eye distances
    assert rows["a"]["r_at_lag_0"] < 0.9 and rows["c"]["r_at_lag_0"] > 0.99
    assert all(abs(row["r_of_anothers_sound"]) < 0.5 for row in rows.values())
    assert report["median"]["r"] == sorted(row["r"] for row in rows.values())[1]


def test_a_lag_beyond_three_frames_is_not_looked_for():
    truth = signal(3)
    report = follow([np.roll(truth, 6), signal(4)], [speaker("a", truth), speaker("b", signal(5))])
    assert report["speakers"]["a"]["r"] < 0.9 and abs(report["speakers"]["a"]["lag"]) <= 3


@pytest.mark.parametrize("fps", [25.0, 30.0, 24.5876])
def test_a_track_keeps_its_time(fps):
    times = (np.arange(int(8 * fps)) + 0.5) / fps
    track = at_frame_rate(np.sin(2 * np.pi * 0.5 * times), fps, 25.0)
    expected = np.sin(2 * np.pi * 0.5 * (np.arange(len(track)) + 0.5) / 25)
    assert abs(len(track) - 200) <= 1 and np.abs(track - expected)[2:-2].max() < 0.01


@pytest.mark.parametrize("width", [3, 40])
def test_the_linear_map_is_the_same_from_either_side(width):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, width)) + 3
    y = x[:, 0] - x[:, 1] - 7
    inner, outer = x - x.mean(0), y - y.mean()
    strength = 0.01 * len(x) * inner.var()
    expected = np.linalg.solve(inner.T @ inner + strength * np.eye(width), inner.T @ outer)
    weights, level = ridge(x, y, RIDGE)
    assert weights == pytest.approx(expected, abs=1e-8)
    assert x @ weights + level == pytest.approx(inner @ expected + y.mean(), abs=1e-8)


def write_person(folder, name, seconds=2.0, sound=True):
    audio = (torch.from_numpy(tone(16000, int(16000 * seconds), 1)), 16000) if sound else None
    with VideoWriter(folder / f"{name}.mp4", 32, 32, 25, audio) as writer:
        writer.write(torch.zeros(int(25 * seconds), 3, 32, 32))


def tracks(folder, **openings):
    np.savez(folder / "tracks.npz", **{name: np.stack([o, o], 1) for name, o in openings.items()})


def test_who_is_left_out_is_said(tmp_path):
    for name in ("one", "two", "still"):
        write_person(tmp_path, name)
    write_person(tmp_path, "mute", sound=False)
    tracks(
        tmp_path,
        one=signal(1, 50),
        two=signal(2, 50),
        still=0.01 * signal(3, 50),
        mute=signal(4, 50),
        gone=signal(5, 50),
    )
    with pytest.warns(UserWarning, match=r"gone \(no video\), mute \(no sound\), still \(the lips hardly move\)"):
        found = load_speakers(tmp_path, 25.0)
    assert [person.name for person in found] == ["one", "two"]
    assert len(found[0].opening) == 50 and found[0].recording.frames(25.0) == 50


@pytest.mark.filterwarnings("ignore:Left out")
def test_a_folder_without_people_is_refused(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        load_speakers(tmp_path, 25.0)
    (tmp_path / "tracks.npz").write_bytes(b"not an array")
    with pytest.raises(InputError, match="not a readable .npz"):
        load_speakers(tmp_path, 25.0)
    for unfit in (np.zeros(50), np.full((50, 2), np.nan), np.zeros((0, 2))):
        np.savez(tmp_path / "tracks.npz", one=unfit)
        with pytest.raises(InputError, match="one is not a table"):
            load_speakers(tmp_path, 25.0)
    tracks(tmp_path, one=signal(1, 50))
    with pytest.raises(InputError, match="0 people who speak"):
        load_speakers(tmp_path, 25.0)


@pytest.mark.skipif("espeak" not in available_engines(), reason="espeak-ng is not installed")
def test_a_report_of_people(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("letstalk_core.evaluation.speakers.fit_read_out.__defaults__", (2,))
    model = write_tiny_checkpoint(tmp_path / "tiny.safetensors", image_size=128, default_steps=1, clip_frames=8)
    folder = tmp_path / "people"
    folder.mkdir()
    for name in ("one", "two"):
        write_person(folder, name)
    tracks(folder, one=signal(1, 50), two=signal(2, 50))
    output = tmp_path / "out"
    assert (
        main(["evaluate", "--model", str(model), "--pairs", "0", "--speech", str(folder), "--output", str(output)]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] == 0 and "open_r" not in report
    for kind in ("tokens", "frames"):
        assert set(report["people"][kind]["speakers"]) == {"one", "two"}
        assert -1 <= report["people"][kind]["median"]["r"] <= 1
        assert report["people"][kind]["median"]["deviation"] >= 0
    assert (output / "speakers.png").stat().st_size > 1000 and (output / "people.png").stat().st_size > 1000
