"""A label in the frames: readable, in its corner only, always in the same place, or refused in a sentence."""

import cv2
import numpy as np
import pytest
import torch

from letstalk_core.cli import main
from letstalk_core.errors import InputError
from letstalk_core.render.render import render_video
from letstalk_core.video import label as labels
from letstalk_core.video.label import Label, label_video
from letstalk_core.video.marks import GENERATED
from letstalk_core.video.reader import probe, read_video_frames
from letstalk_core.video.verify import verify_marks

from .command_line import command
from .rendering import StopAt, make_job, stopped
from .test_marks import lines_of, write


def corner(label: Label, shape) -> np.ndarray:
    inside = np.zeros(shape[-3:-1], bool)
    inside[label.rows, label.columns] = True
    return inside


@pytest.mark.parametrize("size", [(256, 256), (512, 512), (1920, 1080), (90, 120)])
@pytest.mark.parametrize("ground", [0, 128, 255])
def test_only_the_corner_changes_and_it_can_be_read(size, ground):
    width, height = size
    frames = torch.full((3, height, width, 3), ground, dtype=torch.uint8)
    label = Label("AI video", width, height)
    drawn = label.draw(frames.clone()).numpy()
    inside = corner(label, drawn.shape)
    assert (drawn[:, ~inside] == ground).all() and (drawn == drawn[:1]).all()
    rows, columns = np.nonzero(inside)
    assert columns.max() < width and rows.max() < height and rows.min() > height * 0.7 and columns.min() < width * 0.08
    patch = drawn[0][inside][:, 0]
    assert patch.max() == 255 and (patch.min() <= 0.4 * ground + 1)  # white letters on a shade
    assert 14 <= rows.max() + 1 - rows.min() <= 0.2 * height


def test_letters_have_their_shape():
    """Against the same text drawn by OpenCV: another font, but ink lies where ink lies."""
    label = Label("LIL", 256, 256)
    drawn = label.draw(torch.zeros(1, 256, 256, 3, dtype=torch.uint8))[0].numpy()
    letters = (drawn[label.rows, label.columns, 0] > 128).astype(np.uint8)
    assert cv2.connectedComponents(letters)[0] - 1 == 3


@pytest.mark.usefixtures("short_segments")
def test_a_rendering_with_a_label(job, pipeline, tmp_path):
    labelled = make_job(pipeline, label="AI")
    assert labelled.fingerprint not in (job.fingerprint, make_job(pipeline, label="KI").fingerprint)
    latents = torch.rand(4, 3, 64, 64) * 2 - 1
    (before,), (after,) = job.pixels([latents]), labelled.pixels([latents])
    outside = ~corner(Label("AI", 64, 64), before.shape)
    assert (before.numpy()[:, outside] == after.numpy()[:, outside]).all() and not torch.equal(before, after)
    render_video(job, tmp_path / "bare.mp4")
    stopped(labelled, tmp_path / "a.mp4", 20)  # resumed in mid-video, it does not jump
    render_video(labelled, tmp_path / "a.mp4")
    bare, frames = (read_video_frames(tmp_path / name).astype(int) for name in ("bare.mp4", "a.mp4"))
    label = Label("AI", 64, 64)
    grown = cv2.dilate(corner(label, frames.shape).astype(np.uint8), np.ones((17, 17), np.uint8)) > 0  # codecs smear
    assert np.abs(frames - bare)[:, ~grown].mean() < 3  # the frames are noise
    patch = frames[:, label.rows, label.columns]
    assert np.abs(patch - bare[:, label.rows, label.columns]).mean() > 40
    assert np.abs(patch - patch[:1]).mean() < 25 and (patch.max((1, 2, 3)) > 180).all()


def test_the_command_line(inputs, tmp_path, capfd):
    assert main(command(inputs, tmp_path / "a.mp4", label="AI")) == 0
    assert main(command(inputs, tmp_path / "b.mp4")) == 0
    label = Label("AI", 64, 64)
    frames, bare = (read_video_frames(tmp_path / name).astype(int) for name in ("a.mp4", "b.mp4"))
    assert np.abs(frames - bare)[:, label.rows, label.columns].mean() > 20
    capfd.readouterr()
    assert main(command(inputs, tmp_path / "c.mp4", label="Made with artificial intelligence")) == 1
    error = capfd.readouterr().err
    assert "the picture is 64x64; shorten it to about" in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_the_length_that_is_said_fits():
    text = "Made with artificial intelligence, " * 9
    with pytest.raises(
        InputError, match=r"The label takes \d+ pixels, and the picture is 256x256; shorten it"
    ) as caught:
        Label(text, 256, 256)
    said = int(str(caught.value).split("about ")[1].split()[0])
    assert 20 < said < 60
    Label(text[: said - 3], 256, 256)
    with pytest.raises(InputError):
        Label(text[: said + 6], 256, 256)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_label(text):
    with pytest.raises(InputError, match="The label is empty"):
        Label(text, 256, 256)


def test_lines_become_one():
    assert Label("AI\n made", 256, 256).digest == Label("AI made", 256, 256).digest


def test_characters_that_no_font_has(monkeypatch, pipeline, tmp_path):
    monkeypatch.setattr(labels, "FONTS", ("there is no such font.ttf",))
    with pytest.raises(InputError, match=r"no font here can draw \(生成\); use others, or install a font"):
        Label("AI生成", 256, 256)
    seen = StopAt()
    with pytest.raises(InputError, match="no font here"):
        render_video(make_job(pipeline, label="AI生成"), tmp_path / "a.mp4", seen)
    assert seen.estimate is None and not list(tmp_path.iterdir())


def test_characters_that_a_font_of_the_system_has(monkeypatch):
    fonts = pytest.importorskip("matplotlib").get_data_path() + "/fonts/ttf/DejaVuSans.ttf"
    monkeypatch.setattr(labels, "FONTS", ("there is no such font.ttf", fonts))
    ours, others = Label("KI-Vidéo Привет", 256, 256), Label("KI-Vidéo Привет!", 256, 256)
    assert ours.digest != others.digest


def test_a_finished_video_gets_a_label(tmp_path):
    write(tmp_path / "a.mp4", 30)
    told = []
    with pytest.raises(InputError, match="the picture is 32x32"):
        label_video(tmp_path / "a.mp4", tmp_path / "b.mp4", "AI", GENERATED, lambda *_: None)
    with labels.VideoWriter(tmp_path / "c.mp4", 96, 64, 25, tmp_path / "a.mp4") as writer:
        writer.write(torch.zeros(30, 3, 64, 96))
    label_video(tmp_path / "c.mp4", tmp_path / "d.mp4", "AI", GENERATED, lambda *numbers: told.append(numbers))
    before, after = probe(tmp_path / "c.mp4"), probe(tmp_path / "d.mp4")
    assert (after.frames, after.fps, after.audio_rate) == (before.frames, before.fps, before.audio_rate)
    assert abs(after.audio_duration - before.audio_duration) < 0.04 and told == [(n, 30) for n in range(1, 31)]
    frames = read_video_frames(tmp_path / "d.mp4").astype(int)
    inside = corner(Label("AI", 96, 64), frames.shape)
    assert np.abs(frames[:, ~inside] - 128).mean() < 3 and frames[:, inside].max() > 230
    assert verify_marks(tmp_path / "d.mp4") == (lines_of(GENERATED, "mp4"), True)
