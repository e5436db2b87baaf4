"""Footage that does not serve: what is left out, what is refused, and how both are said."""

import json
import warnings
from pathlib import Path

import av
import numpy as np
import pytest

from letstalk_core.data.footage import prepare as footage
from letstalk_core.errors import InputError
from letstalk_core.picture.autoencoder import build_autoencoder
from letstalk_core.picture.similarity import cut, square_at
from tests.media_files import tone, write_media
from tests.tiny import AUTOENCODER

from .test_footage import RATE, make_video, prepare, read_all

pytest.importorskip("webdataset")


def test_videos_that_are_left_out(tmp_path):
    folder = tmp_path / "in"
    whole = make_video(folder / "whole.mp4", 50)
    make_video(folder / "short.mp4", 24)
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "empty.mov").touch()
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[:-9000])
    (folder / "notes.txt").write_text("not a video, and nothing to warn of")
    (folder / "._whole.mp4").write_bytes(b"left behind by a system")
    with av.open(str(folder / "silent.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    write_media(folder / "picture.flac", tone(RATE, 3 * RATE, 1), RATE).rename(folder / "only sound.mkv")
    reasons = {
        "cut.mp4": "cut|decoded",
        "empty.mov": "empty",
        "only sound.mkv": "no picture",
        "short.mp4": "less than a second",
        "silent.mkv": "no audio",
        "text.mp4": "cannot be decoded",
    }
    for _ in range(2):  # the second call remembers why
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shards = prepare(folder, tmp_path / "out")
        messages = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        assert len(messages) == len(reasons), messages
        for message, (name, reason) in zip(messages, reasons.items()):
            assert message.startswith(f"A video is left out. {name}: "), message
            assert any(word in message for word in reason.split("|")), message
        assert len(shards) == 1 and "whole" in shards[0].name


def test_a_video_that_breaks_half_way_leaves_nothing(tmp_path, monkeypatch):
    make_video(tmp_path / "in" / "a.mp4", 150)
    make_video(tmp_path / "in" / "b.mp4", 30)
    monkeypatch.setattr(footage, "SHARD_STRETCHES", 1)
    decode = footage.timed_frames

    def broken(path):
        for number, picture in enumerate(decode(path)):
            if path.name == "a.mp4" and number == 120:
                raise InputError("it is damaged here")
            yield picture

    monkeypatch.setattr(footage, "timed_frames", broken)
    with pytest.warns(UserWarning, match="left out. a.mp4: it is damaged here"):
        shards = prepare(tmp_path / "in", tmp_path / "out")
    assert list(shards[0].parent.glob("*.tar")) == shards and "b-" in shards[0].name


def refused(words, *arguments, **changes):
    with pytest.raises(InputError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare(*arguments, **changes)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and all(word in message for word in words), message


def test_folders_without_videos(tmp_path):
    refused(["not a folder"], tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "in").mkdir()
    refused(["no videos", "0 other files"], tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "notes.txt").write_text("x")
    refused(["no videos", "1 other files", ".mp4"], tmp_path / "in", tmp_path / "out")
    refused(["not a folder"], tmp_path / "in" / "notes.txt", tmp_path / "out")
    make_video(tmp_path / "in" / "short.mp4", 10)
    refused(["None of the 1 videos", "short.mp4", "less than a second"], tmp_path / "in", tmp_path / "out")
    make_video(tmp_path / "in" / "a.mp4", 30)
    refused(["cannot be made"], tmp_path / "in", tmp_path / "in" / "notes.txt")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"size": 8}, "at least 16"),
        ({"fps": 0}, "frame rate"),
        ({"seconds": 0.5}, "1 to 60"),
        ({"seconds": 100}, "1 to 60"),
        ({"face": "left"}, "'largest'"),
        ({"keep_frames": False}, "autoencoder"),
    ],
)
def test_arguments_that_cannot_be_used(tmp_path, changes, words):
    make_video(tmp_path / "in" / "a.mp4", 10)
    refused([words], tmp_path / "in", tmp_path / "out", **changes)


def test_a_size_that_the_autoencoder_cannot_encode(tmp_path):
    make_video(tmp_path / "in" / "a.mp4", 10)
    autoencoder = build_autoencoder(AUTOENCODER)
    refused(["40", "multiple of 16"], tmp_path / "in", tmp_path / "out", autoencoder=autoencoder, size=40)


# Faces ---------------------------------------------------------------------------------------------------------------


def test_no_face(tmp_path):
    make_video(tmp_path / "in" / "a.mp4", 60, size=(96, 48))
    with pytest.warns(UserWarning, match=r"No face was found in 1 stretches of a.mp4 \(the first at 0.0 s\)"):
        shards = prepare(tmp_path / "in", tmp_path / "out", face="largest")
    assert len(read_all(shards, 50)[0]) == 1


def test_squares_that_reach_outside():
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4, 1).repeat(3, axis=2) * 20
    square = cut(picture, square_at(-1, -1, 4, 4), 4)[..., 0] // 20
    assert square.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]


@pytest.mark.parametrize("name", ["d11", "hdtf_WDA_KatieHill_000"])
def test_real_clips(tmp_path, shared, name):
    from letstalk_core.picture.face import find_faces

    (tmp_path / "in").mkdir()
    clip = Path(shared / "media" / "clips" / f"{name}.mp4")
    if not clip.exists():
        pytest.skip(f"no {clip.name}")
    (tmp_path / "in" / clip.name).symlink_to(clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        shards = prepare(tmp_path / "in", tmp_path / "out", size=128, seconds=3.0, face="largest")
    examples, data = read_all(shards, 75)
    assert len(data) == (3 if name == "d11" else 2)
    for example in examples:
        picture = example["clip"][0].permute(1, 2, 0).numpy() / 255
        face = find_faces(picture.astype(np.float32))[0]
        x, y = face.anchors.mean(0)
        assert abs(x - 64) < 10 and abs(y - 0.546 * 128) < 10 and 22 < face.eyes < 40


def test_the_settings_are_kept_for_people(tmp_path):
    make_video(tmp_path / "in" / "a.mp4", 30)
    shard = prepare(tmp_path / "in", tmp_path / "out")[0]
    assert shard.parent.name.startswith("32px-25fps-mel-")
    settings = json.loads((shard.parent / "settings.json").read_text())
    assert settings["size"] == 32 and settings["fps"] == "25" and settings["audio_encoder"] == "mel"
