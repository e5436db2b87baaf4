"""Shards that cannot be read or written: one clear sentence each."""

import io
import json
import re
import runpy
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from letstalk_core.data.footage.shard_writer import write_shard
from letstalk_core.errors import InputError
from letstalk_core.video.writer import VideoWriter

from .test_shards import LATER, ROOT, grey, replace_member, source, stretch, window

pytest.importorskip("webdataset")


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "a.tar", [stretch(), stretch(30, with_latents=True)])


def refused(words, path, **arguments):
    with pytest.raises(InputError) as caught:
        data = source(path, **arguments)
        for seed in range(30):
            data.read(0, np.random.default_rng(seed))
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and all(word in message for word in words), message


def test_no_data(tmp_path):
    refused(["no training data", "no tar files"], tmp_path)
    refused(["no training data", str(tmp_path / "nowhere")], tmp_path / "nowhere")
    refused(["list", "empty"], [])
    refused(["missing.tar", "cannot be read"], [tmp_path / "missing.tar"])
    (tmp_path / "256px").mkdir()
    write_shard(tmp_path / "256px" / "a.tar", [stretch()])
    refused(["name one of the folders in it", "256px"], tmp_path)


def test_controls_that_do_not_fit(tmp_path):
    for controls, words in (({"nose": np.zeros(70)}, "none of eyelids"), ({"yaw": np.zeros(69)}, "needs 70 values")):
        with pytest.raises(InputError, match=words):
            write_shard(tmp_path / "a.tar", [stretch(controls=controls)])
    path = write_shard(tmp_path / "a.tar", [stretch(controls={"yaw": np.zeros(70)})])
    replace_member(path, "controls.npy", None)
    refused(["has controls None for 70 frames of 1"], path)


def test_short_stretches(tmp_path):
    path = write_shard(tmp_path / "a.tar", [stretch(5), stretch(6), stretch(3)])
    with pytest.warns(UserWarning, match="2 of 3 stretches have fewer than 6 frames"):
        assert len(source(path)) == 1
    refused(["longest", "6 frames", "need 7"], path, window=window(LATER, clip_frames=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source(write_shard(tmp_path / "b.tar", [stretch(6)]))


def test_data_that_does_not_fit(tmp_path):
    latents = write_shard(tmp_path / "latents.tar", [stretch(with_latents=True, frames=None, size=(32, 32))])
    whole = write_shard(tmp_path / "whole.tar", [stretch()])
    refused(["(2, 3)", "(4, 80)"], whole, shape=(4, 80))
    refused(["digest1", "other", "latents.tar"], latents, digest="other")
    refused(["digest1", "pixels"], latents)
    refused(
        ["turn pixel noise off", "frames kept"], latents, digest="digest1", window=window(LATER, pixel_conditions=True)
    )
    refused(["latents.tar", "whole.tar"], [whole, latents], digest="digest1")
    for name, words, changes in (
        ("fps", ["25.0", "30.0"], {"fps": 30.0}),
        ("size", ["(32, 32)", "(48, 48)"], {"frames": grey(70, 48, 48)}),
        ("encoder", ["mel", "wav2vec2"], {"audio_encoder": "wav2vec2"}),
    ):
        other = write_shard(tmp_path / f"{name}.tar", [stretch(**changes)])
        refused([*words, f"{name}.tar", "whole.tar"], [whole, other])


def test_damaged_tar_files(tmp_path, shard):
    whole = shard.read_bytes()
    assert len(whole) % 10240 == 0
    end = 1 + max(position for position, byte in enumerate(whole) if byte)
    for length in (0, 100, 700, 3000, len(whole) // 2, end - 300, end // 512 * 512):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        refused(["cut.tar", "damaged"], tmp_path / "cut.tar")
    (tmp_path / "text.tar").write_text("this is not a tar file\n" * 100)
    refused(["text.tar", "damaged"], tmp_path / "text.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(shard, "a")
    refused(["packed.tar", "compressed"], tmp_path / "packed.tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    refused(["empty.tar", "empty"], tmp_path / "empty.tar")
    with tarfile.open(shard) as tar:
        second = next(member.offset for member in tar if "-00001." in member.name)
    (tmp_path / "half.tar").write_bytes(whole[:second])  # nothing but the mark of the end says that a stretch is gone
    refused(["half.tar", "damaged"], tmp_path / "half.tar")
    hole = bytearray(whole)
    hole[second : second + 512] = b"x" * 512
    (tmp_path / "hole.tar").write_bytes(hole)
    refused(["hole.tar", "damaged"], tmp_path / "hole.tar")


def about(**changes):
    values = dict(name="x", frames=70, fps=25, size=[32, 32], context=3, audio_encoder="mel", autoencoder=None)
    return json.dumps({key: value for key, value in {**values, **changes}.items() if value != "leave out"}).encode()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "suffix, content, words",
    [
        ("json", None, ["lacks", "docs/data.md"]),
        ("features.npy", None, ["lacks"]),
        ("mp4", None, ["neither"]),
        ("json", b"{", ["cannot be understood"]),
        ("json", b"[1]", ["cannot be understood"]),
        ("json", about(fps="leave out"), ["fps"]),
        ("json", about(frames=69), ["(76, 2, 3)", "75"]),
        ("json", about(size=[64, 32]), ["32x32", "32x64"]),
        ("json", about(fps=30), ["at 30 a second"]),
        ("features.npy", b"text", ["cannot be understood"]),
        ("features.npy", npy(np.zeros((76, 2, 3)))[:200], ["incomplete"]),
        ("features.npy", npy(np.asfortranarray(np.zeros((76, 2, 3)))), ["order of its axes"]),
        ("features.npy", npy(np.array([{}])), ["cannot be understood"]),
        ("features.npy", npy(np.zeros((76, 6), np.float32)), ["(76, 6)"]),
        ("mp4", b"not a video" * 99, ["cannot be decoded"]),
    ],
)
def test_damaged_members(tmp_path, suffix, content, words):
    path = write_shard(tmp_path / "a.tar", [stretch()])
    replace_member(path, suffix, content)
    refused(["a.tar", *words], path)


def test_gone_while_training(shard):
    data = source(shard)
    shard.unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        data.read(0, np.random.default_rng(0))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"frames": None}, "neither frames nor latents"),
        ({"frames": grey(69)}, "69 frames, but features for 70"),
        ({"frames": grey(70).astype(np.float32)}, "float32"),
        ({"latents": torch.zeros(70, 4, 2, 2)}, "digest"),
        ({"frames": None, "latents": torch.zeros(70, 4, 2, 2), "autoencoder": "m"}, "size"),
        ({"latents": torch.zeros(70, 4, 2), "autoencoder": "m"}, "4 axes"),
        ({"latents": torch.full((70, 4, 2, 2), 1e5), "autoencoder": "m"}, "65504"),
        ({"features": np.full((76, 2, 3), np.nan)}, "NaN"),
        ({"portrait": np.zeros((16, 16, 3), np.uint8)}, "[16, 16, 3]"),
        (
            {"latents": torch.zeros(70, 4, 2, 2), "autoencoder": "m", "portrait": np.zeros((32, 32, 3), np.uint8)},
            "latents of its portrait",
        ),
    ],
)
def test_stretches_that_contradict_themselves(tmp_path, changes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        write_shard(tmp_path / "a.tar", [stretch(**changes)])
    assert list(tmp_path.iterdir()) == []


def test_shards_that_cannot_be_written(tmp_path):
    for path, stretches, words in (
        (tmp_path / "a.tar", [], "no stretches"),
        (tmp_path / "a.zip", [stretch()], "does not end in .tar"),
        (tmp_path / "none" / "a.tar", [stretch()], "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            write_shard(path, stretches)
    assert list(tmp_path.iterdir()) == []


# docs/data.md --------------------------------------------------------------------------------------------------------


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (own,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    with VideoWriter("talk.mp4", 256, 256, 25.0, (torch.randn(1, 48000) * 0.1, 16000), preset="ultrafast") as writer:
        writer.write(grey(75, 256, 256))
    Path("own.py").write_text(own)
    runpy.run_path("own.py")
    assert capsys.readouterr().out.strip() in text
