"""The evaluation runs from pairs to report: on an untrained model, whose numbers mean nothing."""

import json
import shutil

import numpy as np
import pytest
import torch

from letstalk_core.cli import main
from letstalk_core.config import CONTROLS
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.evaluation.held_out import held_out_pairs
from letstalk_core.video.controls import AskedFor

from .tiny import write_tiny_checkpoint


@pytest.mark.skipif(not available_engines(), reason="espeak-ng and flite are not installed")
@pytest.mark.parametrize("drawings", [False, True])
def test_a_report_of_pairs_and_recordings(drawings, tmp_path, repository, capsys):
    model = write_tiny_checkpoint(
        tmp_path / "tiny.safetensors", image_size=128, default_steps=1, clip_frames=8, controls=("eyelids", "yaw")
    )
    for name in ("one.wav", "two.wav"):
        (tmp_path / "speech").mkdir(exist_ok=True)
        shutil.copy(repository / "assets" / "speech.wav", tmp_path / "speech" / name)
    options = [
        "--pairs",
        "2",
        "--seconds",
        "1",
        "--speech",
        str(tmp_path / "speech"),
        "--output",
        str(tmp_path / "out"),
    ]
    changes = ["--drawings", "--articulation", "2"] if drawings else []
    assert main(["evaluate", "--model", str(model), *options, *changes]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == json.loads(capsys.readouterr().out)
    assert set(report["recordings"]) == {"one.wav", "two.wav"}
    assert -1 <= report["open_r"]["median"] <= 1 and report["pairs"] == 2
    assert report["drawings"] == drawings and report["articulation"] == 1 + drawings
    assert report["psnr_outside_mouth_still_head"]["median"] > 5
    assert report["psnr_still_portrait"]["median"] < 60 and report["autoencoder_psnr"]["median"] > 5
    assert (tmp_path / "out" / "pairs.png").exists() and (tmp_path / "out" / "recordings.png").exists()


def test_what_cannot_be_evaluated_is_said_before_anything_is_made(tmp_path, capsys):
    for options, words in (
        (["--pairs", "1"], "needs at least 2"),
        (["--seconds", "0"], "choose 1 to 60"),
        (["--articulation", "9"], "The articulation is 9"),
        (["--speech", str(tmp_path / "none")], "at least two"),
    ):
        assert main(["evaluate", "--output", str(tmp_path / "out"), *options]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("drawings", [False, True])
def test_pairs_are_of_people_whom_no_training_sees(drawings):
    first, second = held_out_pairs(2, 1.0, 64, drawings)
    assert first.still and not second.still
    assert first.portrait.shape == (3, 64, 64) and first.frames().shape == (25, 64, 64, 3)
    mouth = first.mouth()
    assert 0.02 < mouth.mean() < 0.2 and mouth[42:48, 28:36].mean() > 0.9
    asked = second.asked(("yaw", "eyelids"))
    assert len(asked["yaw"]) == 25 and min(asked["eyelids"]) >= 0 and abs(asked["yaw"][0]) < 1e-4
    AskedFor(tracks=second.asked(tuple(CONTROLS)))  # all of it within its range
    again = next(held_out_pairs(1, 1.0, 64, drawings))
    assert np.array_equal(again.waveform, first.waveform) and torch.equal(again.portrait, first.portrait)
