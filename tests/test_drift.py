"""The drift report: each number moves with what it is about, and with nothing else."""

import json

import numpy as np
import pytest

from letstalk_core.cli import main
from letstalk_core.data.drawn.avatars import Avatar
from letstalk_core.data.drawn.drawing import draw_frames
from letstalk_core.data.drawn.stills import HELD_OUT, random_controls
from letstalk_core.evaluation.drift import SERIES, measure_drift
from letstalk_core.evaluation.identity import load_identity
from letstalk_core.evaluation.meter import REDUCED
from letstalk_core.video.writer import VideoWriter

SECONDS = 6


@pytest.fixture(scope="module")
def people():
    """Of two people who were never trained on a portrait and a second of a moving face, uint8 [25,128,128,3]."""
    found = []
    for identity in (HELD_OUT + 100, HELD_OUT + 101):
        poses = random_controls(np.random.default_rng(5), 2)
        steps = np.sin(np.arange(25) / 25 * 2 * np.pi)[:, None] * 0.1 + 0.5
        found.append(
            draw_frames(
                Avatar((identity, 0), REDUCED), (poses[:1] * (1 - steps) + poses[1:] * steps).astype(np.float32)
            )
        )
    return found


def report(tmp_path, change) -> dict:
    """Of a video whose frame `number` is change(number), uint8 [H,W,3]."""
    with VideoWriter(tmp_path / "a.mp4", REDUCED, REDUCED, crf=4, preset="ultrafast") as writer:
        for number in range(25 * SECONDS):
            writer.write(np.clip(change(number), 0, 255).astype(np.uint8)[None])
    return measure_drift(tmp_path / "a.mp4")


def still(name: str, told: dict) -> bool:
    series = np.array(told["series"][name], float)
    return np.ptp(series) < 0.02 * max(1.0, abs(series.mean()))


def test_a_face_that_only_moves_does_not_drift(people, tmp_path):
    told = report(tmp_path, lambda i: people[0][i % 25])
    assert told["seconds"] == SECONDS and set(told["series"]) == set(SERIES)
    for name in ("identity", "brightness", "colour", "sharpness", "frozen"):
        assert still(name, told), (name, told["series"][name])
        assert abs(told["slopes_per_minute"][name]) < 0.5
    assert told["means"]["identity"] < 0.05 and told["means"]["frozen"] < 0.05
    assert 0.5 < told["border_jump"] < 2


def test_each_kind_of_drift_shows_in_its_series(people, tmp_path):
    def share(i):
        return i / (25 * SECONDS)

    def face(i):
        return people[0][i % 25].astype(float)

    another = report(tmp_path, lambda i: face(i) * (1 - share(i)) + people[1][i % 25] * share(i))
    assert another["series"]["identity"][-1] > 0.4 > 0.1 > another["series"]["identity"][0]
    darker = report(tmp_path, lambda i: face(i) * (1 - 0.4 * share(i)))
    assert darker["slopes_per_minute"]["brightness"] < -20
    redder = report(tmp_path, lambda i: face(i) + np.array([40, 0, -20]) * share(i))
    assert redder["series"]["colour"][-1] > 8 > 1 > redder["series"]["colour"][0]
    noise = np.random.default_rng(0).normal(0, 25, (REDUCED, REDUCED, 1))
    noisier = report(tmp_path, lambda i: face(i) + noise * share(i))
    assert noisier["series"]["sharpness"][-1] > 1.5 * noisier["series"]["sharpness"][0]
    freezing = report(tmp_path, lambda i: people[0][(i if i < 75 else 75) % 25])
    assert freezing["series"]["frozen"][-1] == 1 and freezing["series"]["frozen"][0] < 0.1
    jumping = report(tmp_path, lambda i: face(i) + (i // 16 % 2) * 6)
    assert jumping["border_jump"] > 2


def test_people_are_told_apart(people):
    net = load_identity()
    vectors = [net.read(frames) for frames in people]
    assert (1 - vectors[0] @ vectors[0].T).max() < 0.2 < 0.6 < (1 - vectors[0] @ vectors[1].T).min()


def test_the_command_writes_numbers_and_a_plot(people, tmp_path, capfd, repository):
    pytest.importorskip("matplotlib")
    report(tmp_path, lambda i: people[0][i % 25])
    portrait = repository / "assets" / "portrait.jpg"
    assert main(["drift", str(tmp_path / "a.mp4"), "--portrait", str(portrait)]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["means"]["identity"] > 0.5  # somebody else's portrait
    assert json.loads((tmp_path / "a-drift.json").read_text())["series"]
    assert (tmp_path / "a-drift.png").read_bytes().startswith(b"\x89PNG")
    for bad, words in ((["nowhere.mp4"], "no file"), ([str(portrait)], "drift takes two seconds")):
        assert main(["drift", *bad]) == 1
        assert words in capfd.readouterr().err
    assert main(["drift", str(tmp_path / "a.mp4"), "--clip-frames", "0"]) == 1
