"""The marks that every video has, and what `verify` says of files with and without them."""

import re
import shutil
import struct
import subprocess

import av
import numpy as np
import pytest
import torch

from letstalk_core.cli import EXIT_NOT_MARKED, main
from letstalk_core.picture.paste_back import PasteBack
from letstalk_core.picture.portrait import Portrait
from letstalk_core.picture.similarity import square_at
from letstalk_core.render.render import render_video
from letstalk_core.video.marks import COMPOSITE, GENERATED, VERSION, VOCABULARY, XMP_BOX, boxes, source_type_in
from letstalk_core.video.reader import probe
from letstalk_core.video.verify import verify_marks
from letstalk_core.video.writer import VideoWriter

from .rendering import make_job

SUFFIXES = ("mp4", "m4v", "mov", "mkv")
COMMENT = f"comment: Synthetic video made with LetsTalk {VERSION}. Digital source type: {VOCABULARY}"


def write(path, frames=30, **options):
    sound = (torch.sin(torch.arange(8000) / 9)[None], 8000)
    with VideoWriter(path, 32, 32, 25, sound, preset="ultrafast", **options) as writer:
        writer.write(torch.rand(frames, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    return path


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0)]


def lines_of(source_type, suffix):
    kind = "tag" if suffix == "mkv" else "XMP"
    return [f"{kind}: digital source type {source_type}", COMMENT + source_type]


def unmarked(path, metadata=None):
    """A video of somebody else's: PyAV alone."""
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode(None))
    return path


def box_of(xmp: bytes) -> bytes:
    return struct.pack(">I4s", 24 + len(xmp), b"uuid") + XMP_BOX.bytes + xmp


def test_the_version_is_the_package_s(repository):
    assert re.search(r'^version = "(.+)"$', (repository / "pyproject.toml").read_text(), re.M)[1] == VERSION


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("source_type", [GENERATED, COMPOSITE])
def test_every_format_is_marked(tmp_path, suffix, source_type):
    path = write(tmp_path / f"a.{suffix}", source_type=source_type)
    assert verify_marks(path) == (lines_of(source_type, suffix), True)
    assert probe(path).frames == 30


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_others_find_the_xmp(tmp_path, suffix):
    """ffmpeg's own reader of XMP, which looks where Adobe's specification says."""
    path = write(tmp_path / f"a.{suffix}")
    with av.open(str(path), options={"export_xmp": "1"}) as container:
        assert source_type_in(container.metadata["xmp"].encode()) == VOCABULARY + GENERATED


def test_marks_move_nothing(tmp_path, monkeypatch):
    marked = write(tmp_path / "a.mp4").read_bytes()
    with open(tmp_path / "a.mp4", "rb") as file:
        kinds = [(kind, size) for kind, size in boxes(file)]
    assert [kind for kind, _ in kinds] == [b"ftyp", b"moov", b"free", b"mdat", XMP_BOX]
    monkeypatch.setattr("letstalk_core.video.writer.append_xmp", lambda *_: None)
    bare = write(tmp_path / "b.mp4").read_bytes()
    assert marked.startswith(bare) and len(marked) == len(bare) + kinds[-1][1] + 24
    monkeypatch.setattr("letstalk_core.video.writer.tags", lambda *_: {})
    assert packets(write(tmp_path / "c.mp4")) == packets(tmp_path / "a.mp4")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_program_plays_it_without_a_word(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}")
    done = subprocess.run(["ffmpeg", "-v", "warning", "-i", path, "-f", "null", "-"], capture_output=True, check=True)
    assert not done.stderr


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_video_joined_of_several_segments(job, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    render_video(job, path, keep_work=True)
    assert verify_marks(path) == (lines_of(GENERATED, suffix), True)
    segments = sorted(tmp_path.glob("*.work-*/0*.mp4"))
    assert len(segments) == 5
    for segment in segments:
        assert verify_marks(segment) == (lines_of(GENERATED, "mp4"), True)


def test_a_face_in_a_real_picture_is_a_composite(pipeline, tmp_path):
    portrait = Portrait(torch.full((3, 64, 64), 0.1), square_at(10, 20, 60, 64), (90, 120))
    job = make_job(pipeline, seconds=0.5, paste_back=PasteBack(torch.rand(120, 90, 3), portrait))
    render_video(job, tmp_path / "a.mp4")
    assert verify_marks(tmp_path / "a.mp4") == (lines_of(COMPOSITE, "mp4"), True)


def test_the_comment_survives_a_copy_of_the_packets(tmp_path):
    """As ComfyUI's Save Video and `ffmpeg -c copy` do."""
    write(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        target.metadata.update(source.metadata)
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert verify_marks(tmp_path / "b.mp4") == ([COMMENT + GENERATED], True)


def test_verify_on_marked_and_unmarked_files(tmp_path, capfd):
    assert main(["verify", str(write(tmp_path / "a.mp4"))]) == 0
    assert capfd.readouterr().out.splitlines() == lines_of(GENERATED, "mp4")
    for name in ("b.mp4", "b.mkv"):
        assert main(["verify", str(unmarked(tmp_path / name))]) == EXIT_NOT_MARKED
        assert capfd.readouterr() == ("no mark of synthetic video\n", "")
    assert main(["verify", str(unmarked(tmp_path / "c.mp4", {"comment": "Holiday\nin 2020"}))]) == EXIT_NOT_MARKED
    assert capfd.readouterr().out == "comment: Holiday in 2020\nno mark of synthetic video\n"


@pytest.mark.parametrize(
    ("description", "says", "marked"),
    [
        ('e:DigitalSourceType="{v}algorithmicMedia"/>', "algorithmicMedia", True),
        ("><e:DigitalSourceType>{v}compositeSynthetic</e:DigitalSourceType></r:Description>", "compositeSynthetic", 1),
        ('><e:DigitalSourceType r:resource="{v}trainedAlgorithmicMedia"/></r:Description>', GENERATED, True),
        ('e:DigitalSourceType="{v}digitalCapture"/>', "digitalCapture", False),
        ("/>", None, False),
        ("<not XML", None, False),
    ],
)
def test_xmp_of_others(tmp_path, description, says, marked):
    """However the property is written, and whatever the namespaces are called."""
    xmp = (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
        ' xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><r:Description '
        + description.format(v=VOCABULARY)
        + "</r:RDF>"
        + " " * 2000
        + '<?xpacket end="w"?>'
    )
    path = unmarked(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes() + box_of(xmp.encode()))
    lines, found = verify_marks(path)
    assert found == bool(marked)
    assert lines[0] == (f"XMP: digital source type {says}" if says else "XMP: without a digital source type")
    assert (lines[-1] == "no mark of synthetic video") != found


def test_truncated_files(tmp_path, capfd):
    whole = write(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])  # the table of contents is at the front
    assert main(["verify", str(tmp_path / "cut.mp4")]) == 0
    assert capfd.readouterr().out.splitlines() == [
        COMMENT + GENERATED,
        "The file is cut off: marks at its end are missing.",
    ]
    other = unmarked(tmp_path / "b.mp4").read_bytes() + box_of(b"x" * 500)
    for name, content, words in [
        ("head.mp4", whole[:700], "cannot be decoded"),
        ("other.mp4", other[:-100], "is cut off, and what is left has no mark"),
        ("text.mp4", b"not a video", "cannot be decoded"),
        ("empty.mp4", b"", "is empty"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert main(["verify", str(tmp_path / name)]) == 1
        out, err = capfd.readouterr()
        assert not out and words in err and err.count("\n") == 1
    assert main(["verify", str(tmp_path / "nowhere.mp4")]) == 1
    assert "There is no file" in capfd.readouterr().err
