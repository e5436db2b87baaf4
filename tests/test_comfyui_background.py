"""Other backgrounds in the real ComfyUI."""

import cv2
import numpy as np
import pytest

from letstalk_core.files import ASSETS
from letstalk_core.video.marks import COMPOSITE, GENERATED
from letstalk_core.video.reader import is_transparent, iter_video_frames, probe, read_video_frames
from letstalk_core.video.verify import verify_marks

from .certificates import write_certificate
from .test_comfyui import only
from .test_comfyui_marks import run, save

pytestmark = pytest.mark.comfyui


def long_video(workflow, **changes) -> tuple[dict, str, str]:
    """(The graph, its last node, the node of the video.)"""
    graph = workflow("long_video")
    last, video = graph.popitem()[0], next(n for n in graph if graph[n]["class_type"] == "MemoryBankLongVideo")
    only(graph, "EncodeAudio")["duration"] = 0.5
    only(graph, "MemoryBankLongVideo").update(changes)
    return graph, last, video


@pytest.mark.parametrize(("picture", "source_type"), [("crop", GENERATED), ("full picture", COMPOSITE)])
def test_a_transparent_video_is_saved_as_it_is(comfyui, workflow, tmp_path, picture, source_type):
    graph, last, video = long_video(workflow, picture=picture, background="transparent")
    (saved,) = run(comfyui, {**graph, last: save(video)})
    assert saved.suffix == ".webm" and is_transparent(saved) and probe(saved).frames == 13
    frames = np.stack(list(iter_video_frames(saved, transparent=True)))
    middle = frames.shape[1] // 2
    assert not frames[:, :5, :5, 3].any() and (frames[:, middle, frames.shape[2] // 2, 3] > 250).all()
    lines, marked = verify_marks(saved)
    assert marked and lines[0] == f"tag: digital source type {source_type}"
    (labelled,) = run(comfyui, {**graph, last: save(video, label="AI")})
    drawn = np.stack(list(iter_video_frames(labelled, transparent=True)))
    assert drawn.shape == frames.shape and (drawn[..., 3].astype(int) - frames[..., 3]).max() > 100
    key, certificate = map(str, write_certificate(tmp_path, "Anna"))
    ended = comfyui.run({**graph, last: save(video, sign_key=key, sign_certificate=certificate)})
    assert ended.status != "success" and "C2PA has no place in that format" in str(ended.error)


def test_a_colour_and_a_matte(comfyui, workflow):
    graph, last, video = long_video(workflow, background="colour", background_colour="#204080", picture="full picture")
    height, width = cv2.imread(str(ASSETS / "portrait.jpg")).shape[:2]
    mask = {"width": width, "height": height, "value": 1.0}
    graph["matte"] = {"class_type": "SolidMask", "inputs": mask}
    (saved,) = run(comfyui, {**graph, last: save(video)})
    corner = read_video_frames(saved)[:, :5, :5].astype(int)
    assert saved.suffix == ".mp4" and np.abs(corner - (32, 64, 128)).max() <= 3
    only(graph, "EncodePortrait")["matte"] = ["matte", 0]  # all of the picture counts as the person
    (whole,) = run(comfyui, {**graph, last: save(video)})
    assert np.abs(read_video_frames(whole)[:, :5, :5].astype(int) - (32, 64, 128)).max() > 3
    mask["width"] = width + 1
    ended = comfyui.run({**graph, last: save(video)})
    assert "the matte has 1 of" in str(ended.error)


def test_a_colour_that_is_none_is_said_before_the_graph_runs(comfyui, workflow):
    graph, last, video = long_video(workflow, background="colour", background_colour="beach")
    status, told = comfyui.post("/prompt", {"prompt": {**graph, last: save(video)}})
    assert status == 400 and "choose keep, transparent, or a colour" in str(told["node_errors"])
