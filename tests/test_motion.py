"""Motion over time: written as JSON, and what a video with it does."""

import json

import numpy as np
import pytest

from letstalk_core import cli
from letstalk_core.errors import InputError
from letstalk_core.evaluation.meter import READINGS, load_meter
from letstalk_core.evaluation.report import METER
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.render.render import write_video
from letstalk_core.video.clips import SamplingSettings
from letstalk_core.video.controls import AskedFor
from letstalk_core.video.motion_keys import EXAMPLE, Motion, draw
from letstalk_core.video.reader import probe, read_video_frames

from .media_files import tone, write_media
from .tiny import write_tiny_checkpoint


def test_keys_are_values_at_frames():
    motion = Motion.parse('{"yaw": [[1, 0], [2, 10]], "smile": 0.5}')
    tracks = motion.tracks(100, 25)
    yaw, times = np.array(tracks["yaw"]), (np.arange(100) + 0.5) / 25
    np.testing.assert_allclose(yaw, np.clip((times - 1) * 10, 0, 10))
    assert set(tracks["smile"]) == {0.5} and list(tracks) == ["yaw", "smile"]
    assert motion.seconds == 2 and Motion().tracks(5, 25) == {} and Motion().seconds == 0
    Motion.parse(EXAMPLE)


def test_one_motion_over_another_and_over_what_is_asked_for():
    both = Motion.parse('{"yaw": 5}').over(Motion.parse('{"yaw": 1, "roll": 2}'))
    assert {name: keys[0][1] for name, keys in both.keys.items()} == {"yaw": 5, "roll": 2}
    assert both.over(None) is both
    asked = both.added_to(AskedFor(blinks=3, tracks={"yaw": -3.0, "brows": 0.5}), 2, 25)
    assert asked.blinks == 3 and asked.tracks == {"yaw": (5.0, 5.0), "brows": 0.5, "roll": (2.0, 2.0)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not JSON like"), ("[1]", "not JSON like"), ('{"yaw": "left"}', "not JSON like"),
        ('{"yaw": [1, 2]}', "not JSON like"), ('{"yaw": [[0, 1, 2]]}', "not JSON like"), ('{"yaw": null}', "not JSON"),
        ('{"nose": 1}', "no control 'nose'; choose among eyelids, yaw"),
        ('{"yaw": 26}', "The control yaw is 26 at 0 s; choose one between -25 and 25"),
        ('{"yaw": NaN}', "The control yaw is nan"), ('{"yaw": [[0, 0], [0, 1]]}', "do not rise"),
        ('{"yaw": [[2, 0], [1, 1]]}', "do not rise"), ('{"yaw": []}', "need seconds"),
        ('{"yaw": [[-1, 0]]}', "need seconds"),
        ('{"yaw": [[Infinity, 0]]}', "need seconds"),
    ],
)  # fmt: skip
def test_what_is_no_motion(text, sentence):
    with pytest.raises(InputError, match=sentence) as raised:
        Motion.parse(text)
    assert ("JSON" in str(raised.value)) == ("JSON" in sentence)


def test_curves_are_drawn_each_in_its_colour():
    empty, drawn = draw(Motion()), draw(Motion.parse(EXAMPLE))
    assert empty.shape == drawn.shape == (320, 768, 3) and drawn.dtype == np.uint8
    high = draw(Motion.parse('{"yaw": 25}'))
    changed = np.nonzero((high != draw(Motion.parse('{"yaw": -25}'))).any(-1).any(1))[0]
    assert changed.min() < 20 and changed.max() > 300  # at the top, and at the bottom


def test_tracks_become_keys_within_their_ranges():
    motion = Motion.of_tracks({"yaw": np.array([-90.0, 0.0, 90.0])}, np.array([0.05, 0.15, 0.25]))
    assert motion.keys["yaw"] == ((0.05, -25.0), (0.15, 0.0), (0.25, 25.0))
    assert motion.tracks(3, 10)["yaw"] == (-25.0, 0.0, 25.0)


# Videos ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path):
    write_media(tmp_path / "me.wav", tone(16000, 16000, 1), 16000)
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "me.png")
    model = write_tiny_checkpoint(tmp_path / "tiny.safetensors")  # knows eyelids alone
    files = ["--portrait", str(tmp_path / "me.png"), "--audio", str(tmp_path / "me.wav"), "--face", "none"]
    return ["generate", *files, "--model", str(model), "--output", str(tmp_path / "a.mp4"), "--motion"]


def test_on_the_command_line(command, tmp_path, capsys):
    file = tmp_path / "motion.json"
    file.write_text(json.dumps({"eyelids": [[0, 0], [0.9, 1]]}), encoding="utf-8-sig")
    assert cli.main([*command, str(file)]) == 0
    assert probe(tmp_path / "a.mp4").frames == 25
    moved = read_video_frames(tmp_path / "a.mp4")
    file.write_text('{"eyelids": 0}')
    assert cli.main([*command, str(file)]) == 0
    assert not np.array_equal(read_video_frames(tmp_path / "a.mp4"), moved)
    for text, sentence in (
        ('{"yaw": 3}', "This model can't be asked for yaw; it knows eyelids."), ("{", "not JSON like"),
        ('{"eyelids": 2}', "choose one between 0 and 1"),
    ):  # fmt: skip
        file.write_text(text)
        assert cli.main([*command, str(file)]) == 1
        assert sentence in capsys.readouterr().err
    file.write_bytes(b"\xff\xfe\x00")
    assert cli.main([*command, str(file)]) == 1
    assert "is not text in UTF-8" in capsys.readouterr().err


def test_the_bundled_model_does_what_is_written(repository, tmp_path):
    pipeline, meter = LetsTalkPipeline.load(device="cpu"), load_meter(METER)
    motion = Motion.parse('{"eyelids": [[0, 0], [0.4, 0], [0.8, 1], [1.2, 0]], "yaw": [[0, -15], [1.6, 15]]}')
    files = repository / "assets" / "portrait.jpg", repository / "assets" / "speech.wav", tmp_path / "a.mp4"
    write_video(pipeline, *files, SamplingSettings(), max_seconds=1.6, motion=motion)
    read = meter.read(read_video_frames(tmp_path / "a.mp4"))
    asked = motion.tracks(len(read), 25)
    for name, reading in (("eyelids", "blink"), ("yaw", "yaw")):
        assert np.corrcoef(asked[name], read[:, READINGS.index(reading)])[0, 1] > 0.9
