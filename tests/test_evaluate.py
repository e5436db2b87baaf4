"""The evaluation runs from pairs to report: on an untrained model, whose numbers mean nothing."""

import json
import shutil

import pytest

from letstalk_core.cli import main
from letstalk_core.data.speech.synthesis import available_engines

from .tiny import write_tiny_checkpoint


@pytest.mark.skipif(not available_engines(), reason="espeak-ng and flite are not installed")
def test_a_report_of_pairs_and_recordings(tmp_path, repository, capsys):
    model = write_tiny_checkpoint(tmp_path / "tiny.safetensors", image_size=128, default_steps=1, clip_frames=8)
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
    assert main(["evaluate", "--model", str(model), *options]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == json.loads(capsys.readouterr().out)
    assert set(report["recordings"]) == {"one.wav", "two.wav"}
    assert -1 <= report["open_r"]["median"] <= 1 and report["pairs"] == 2
    assert (tmp_path / "out" / "pairs.png").exists() and (tmp_path / "out" / "recordings.png").exists()


def test_what_cannot_be_evaluated_is_said_before_anything_is_made(tmp_path, capsys):
    for options, words in (
        (["--pairs", "1"], "needs at least 2"),
        (["--seconds", "0"], "choose 1 to 60"),
        (["--speech", str(tmp_path / "none")], "at least two"),
    ):
        assert main(["evaluate", "--output", str(tmp_path / "out"), *options]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
