"""Where prepare's videos come from: folders, and what HDTF's and CelebV-HQ's annotations say of local downloads."""

import json
import os
import sys

import pytest

from letstalk_core.data.preparation.video_sources import VideoSource, find_sources
from letstalk_core.errors import InputError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_files_and_folders(tmp_path):
    touch(tmp_path / "in", "b.mp4", "deep/a.MOV", "notes.txt", "._a.mp4")
    touch(tmp_path, "c.webm")
    sources, missing = find_sources([tmp_path / "in", tmp_path / "c.webm"])
    assert [(source.name, source.identity) for source in sources] == [
        ("b.mp4", None), ("c.webm", None), ("deep/a.MOV", None)
    ] and missing == []  # fmt: skip


def test_the_same_file_by_two_paths_is_one_source(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.mp4")
    monkeypatch.chdir(tmp_path)
    (source,) = find_sources(["in", tmp_path / "in"])[0]
    assert source == VideoSource(str(tmp_path / "in" / "a.mp4"), "a.mp4")


def test_results_are_no_sources(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "train/b.mp4", "out/silent/c.mp4", "silent/d.mp4")
    monkeypatch.chdir(tmp_path)

    def names(given, output):
        return [source.name for source in find_sources([given], output)[0]]

    assert names(".", "out") == ["a.mp4", "silent/d.mp4", "train/b.mp4"]
    assert names(tmp_path, tmp_path) == ["a.mp4", "out/silent/c.mp4", "train/b.mp4"]
    assert names("train", tmp_path) == ["b.mp4"]  # the output around the sources


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="its file names are Unicode")
def test_a_name_that_is_no_text_is_told_with_a_replacement(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    path.write_bytes(b"x")
    (source,) = find_sources([tmp_path])[0]
    assert (source.path, source.name) == (str(path), "caf\ufffd.mp4")
    assert find_sources([path])[0] == [source]


def test_hdtf(tmp_path):
    touch(
        tmp_path,
        "videos/KatieHill.mp4",
        "videos/WDA_AmyKlobuchar1.mkv",
        "clips/RD_Radio1_000.mp4",
        "clips/Radio2_0.mp4",
    )
    (tmp_path / "WDA_annotion_time.txt").write_text(
        "KatieHill.mp4 00:05-03:20\nAmyKlobuchar1.mp4 00:35-02:45 03:25-1:04:00\nGone.mp4 00:01-00:05\n"
    )
    (tmp_path / "RD_annotion_time.txt").write_text("Radio1.mp4 00:00-00:30 01:00-02:00\nRadio2.mp4 00:01-00:09\n")
    sources, missing = find_sources([tmp_path])
    found = {source.name: (source.identity, source.start, source.end) for source in sources}
    assert found == {
        "RD_Radio1_000": ("hdtf/RD_Radio1", 0.0, None),  # cut already
        "RD_Radio2_000": ("hdtf/RD_Radio2", 0.0, None),
        "WDA_KatieHill_000": ("hdtf/WDA_KatieHill", 5.0, 200.0),
        "WDA_AmyKlobuchar1_000": ("hdtf/WDA_AmyKlobuchar1", 35.0, 165.0),
        "WDA_AmyKlobuchar1_001": ("hdtf/WDA_AmyKlobuchar1", 205.0, 3840.0),
    }
    assert missing == ["RD_Radio1_001", "WDA_Gone_000"]
    (tmp_path / "RD_annotion_time.txt").write_text("Radio1.mp4 soon\n")
    with pytest.raises(InputError, match="RD_annotion_time.txt, line 1: 'soon' is not a time"):
        find_sources([tmp_path])


def test_celebv_hq(tmp_path):
    def clip(video, **changes):
        box = {"top": 0.1, "bottom": 0.6, "left": 0.2, "right": 0.5}
        return {"ytb_id": video, "duration": {"start_sec": 1.5, "end_sec": 5.0}, "bbox": box, **changes}

    touch(tmp_path, "raw/M2Ohb0FAaJU.mp4", "cut/zz_3.mp4")
    annotation = {"clips": {"M2Ohb0FAaJU_1": clip("M2Ohb0FAaJU"), "zz_3": clip("zz"), "gone_0": clip("gone")}}
    (tmp_path / "celebvhq_info.json").write_text(json.dumps(annotation))
    sources, missing = find_sources([tmp_path])
    raw, cut = sources
    assert raw == VideoSource(
        str(tmp_path / "raw/M2Ohb0FAaJU.mp4"), "M2Ohb0FAaJU_1", "celebv-hq/M2Ohb0FAaJU", 1.5, 5.0, (0.1, 0.6, 0.2, 0.5)
    )
    assert (cut.name, cut.identity, cut.start, cut.end, cut.box) == ("zz_3", "celebv-hq/zz", 0.0, None, None)
    assert missing == ["gone_0"]
    (tmp_path / "celebvhq_info.json").write_text('{"clips": {"a_0": {"ytb_id": "a"}}}')
    with pytest.raises(InputError, match="not CelebV-HQ's annotation"):
        find_sources([tmp_path])
