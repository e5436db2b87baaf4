"""Marks in the real ComfyUI: what our save node writes, and what ComfyUI's own leaves of them."""

import av
import numpy as np
import pytest

from letstalk_core.video.label import Label
from letstalk_core.video.marks import COMPOSITE, GENERATED
from letstalk_core.video.reader import probe, read_video_frames
from letstalk_core.video.verify import verify_marks

from .certificates import write_certificate
from .test_comfyui import only
from .test_marks import COMMENT, lines_of, packets

pytestmark = pytest.mark.comfyui
SAVE = {
    "filename_prefix": "marked/a",
    "label": "",
    "source": "as the video says",
    "sign_key": "",
    "sign_certificate": "",
}


def save(video: str, **changes) -> dict:
    return {"class_type": "LetsTalkSaveVideo", "inputs": {"video": [video, 0], **SAVE, **changes}}


def saved_by_comfyui(video: str) -> dict:
    inputs = {"video": [video, 0], "filename_prefix": "unmarked/a", "format": "auto", "codec": "auto"}
    return {"class_type": "SaveVideo", "inputs": inputs}


def frames_graph() -> dict:
    images = {"image": "9,64,96,3", "audio": "1,16000,16000", "sounds": 1, "value": 0.5, "nan": False}
    return {
        "1": {"class_type": "TestSource", "inputs": images},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "audio": ["1", 1], "fps": 25.0}},
    }


def run(comfyui, graph):
    ended = comfyui.run(graph)
    assert ended.status == "success", ended.error
    assert not list(comfyui.temp.glob("tmp*"))
    return ended.videos


@pytest.mark.parametrize(("picture", "source_type"), [("crop", GENERATED), ("full picture", COMPOSITE)])
def test_the_marks_of_a_long_video(comfyui, workflow, picture, source_type):
    graph = workflow("long_video")
    last, video = graph.popitem()[0], next(n for n in graph if graph[n]["class_type"] == "MemoryBankLongVideo")
    only(graph, "EncodeAudio")["duration"] = 0.5
    only(graph, "MemoryBankLongVideo")["picture"] = picture
    (ours,) = run(comfyui, {**graph, last: save(video)})
    assert ours.parent.name == "marked" and ours.suffix == ".mp4"
    assert verify_marks(ours) == (lines_of(source_type, "mp4"), True)
    (theirs,) = run(comfyui, {**graph, last: saved_by_comfyui(video)})
    assert verify_marks(theirs) == ([COMMENT + source_type], True)  # the XMP is gone, the comment stays
    assert packets(ours) == packets(theirs) and probe(ours).frames == 13
    with av.open(str(ours)) as container:  # the graph can be dragged back onto ComfyUI, as from Save Video
        assert "MemoryBankLongVideo" in container.metadata["prompt"]


def test_frames_have_no_mark_until_they_are_saved_here(comfyui):
    graph = frames_graph()
    (theirs,) = run(comfyui, {**graph, "3": saved_by_comfyui("2")})
    assert not verify_marks(theirs)[1]
    (ours,) = run(comfyui, {**graph, "3": save("2")})
    assert verify_marks(ours) == (lines_of(GENERATED, "mp4"), True)
    (pasted,) = run(comfyui, {**graph, "3": save("2", source="face in a real picture")})
    assert verify_marks(pasted) == (lines_of(COMPOSITE, "mp4"), True) and pasted != ours
    assert probe(ours).frames == 9 and probe(ours).audio_samples > 0


def test_a_label(comfyui):
    graph = frames_graph()
    (bare,) = run(comfyui, {**graph, "3": save("2")})
    (labelled,) = run(comfyui, {**graph, "3": save("2", label="AI")})
    assert verify_marks(labelled) == (lines_of(GENERATED, "mp4"), True)
    label, frames = Label("AI", 96, 64), read_video_frames(labelled).astype(int)
    changed = np.abs(frames - read_video_frames(bare)).max((0, 3)) > 20
    assert changed[label.rows, label.columns].mean() > 0.5
    changed[label.rows, label.columns] = False
    assert not changed.any()
    ended = comfyui.run({**graph, "3": save("2", label="Made with artificial intelligence")})
    assert ended.status == "error" and "the picture is 96x64; shorten it to about" in ended.error
    assert not list(comfyui.temp.glob("tmp*"))


def test_a_signature_is_the_last_thing(comfyui, tmp_path):
    pytest.importorskip("c2pa")
    key, certificate = map(str, write_certificate(tmp_path, "Anna"))
    signed = save("2", label="AI", sign_key=key, sign_certificate=certificate)
    (ours,) = run(comfyui, {**frames_graph(), "3": signed})
    lines, marked = verify_marks(ours)
    assert marked and lines[:2] == lines_of(GENERATED, "mp4")
    assert lines[2].startswith("C2PA manifest: valid, signed by Anna")
    again = {"class_type": "LoadVideo", "inputs": {"file": "signed.mp4"}}
    (comfyui.input / "signed.mp4").write_bytes(ours.read_bytes())
    (theirs,) = run(comfyui, {"1": again, "2": saved_by_comfyui("1")})
    assert verify_marks(theirs) == ([COMMENT + GENERATED], True)  # Save Video drops the manifest


def test_a_bad_signature_is_refused_when_the_graph_is_queued(comfyui, tmp_path):
    pytest.importorskip("c2pa")
    anna, old = write_certificate(tmp_path, "Anna"), write_certificate(tmp_path, "Old", (-9, -1))
    for key, certificate, words in [
        (old[0], old[1], "expired on"),
        (old[0], anna[1], "does not belong to the certificate"),
        (tmp_path / "nowhere.pem", anna[1], "There is no file"),
        (anna[0], "", "one is missing; give both"),
    ]:
        node = save("2", sign_key=str(key), sign_certificate=str(certificate))
        status, told = comfyui.post("/prompt", {"prompt": {**frames_graph(), "3": node}, "client_id": "test"})
        assert status == 400 and words in str(told["node_errors"]["3"]), told
