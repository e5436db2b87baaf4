"""LetsTalk Motion in a real ComfyUI: written keys, a driving video, and what is wrong with either."""

import numpy as np
import pytest

from letstalk_core.pixels import pictures_to_pixels
from letstalk_core.video.reader import read_video_frames

from .test_driving import led, write_video

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
FRAMES = 32


@pytest.fixture
def graph(workflow):
    """The short talking portrait of FRAMES frames at 128 pixels, and a Motion node that leads it."""
    graph = workflow("short_talking_portrait")
    (sampler,) = (key for key, node in graph.items() if node["class_type"] == "LetsTalkSampler")
    graph[sampler]["inputs"] |= {"frames": FRAMES, "size": 128, "letstalk_motion": ["motion", 0]}
    graph["motion"] = {"class_type": "LetsTalkMotion", "inputs": {"keys": "{}"}}
    graph["curves"] = {"class_type": "PreviewImage", "inputs": {"images": ["motion", 1]}}
    return graph


def frames(comfyui, graph, keys) -> np.ndarray:
    graph["motion"]["inputs"]["keys"] = keys
    ended = comfyui.run(graph)
    assert ended.status == "success", ended.error
    (video,) = ended.videos
    return read_video_frames(video).astype(int)


def test_keys_lead_the_face(comfyui, graph):
    free = frames(comfyui, graph, "{}")
    assert free.shape == (FRAMES, 128, 128, 3)
    left, right = (frames(comfyui, graph, f'{{"yaw": {degrees}}}') for degrees in (-20, 20))
    assert np.abs(left - right).mean() > 1.5 * np.abs(left - free).mean() > 0.5


def test_a_driving_video_leads_the_face(comfyui, graph):
    """A video of the example, led by keys, leads it in turn."""
    keys = '{"yaw": [[0, -20], [1.2, 20]]}'
    led = frames(comfyui, graph, keys)
    (create,) = (key for key, node in graph.items() if node["class_type"] == "CreateVideo")
    (sampler,) = (key for key, node in graph.items() if node["class_type"] == "LetsTalkSampler")
    graph["first"] = {"class_type": "LetsTalkSampler", "inputs": {**graph[sampler]["inputs"], "size": 256}}
    graph["driving"] = {"class_type": "CreateVideo", "inputs": {**graph[create]["inputs"], "images": ["first", 0]}}
    graph["driven"] = {"class_type": "LetsTalkMotion", "inputs": {"keys": "{}", "driving_video": ["driving", 0]}}
    graph[sampler]["inputs"]["letstalk_motion"] = ["driven", 0]
    driven = frames(comfyui, graph, keys)
    turned = frames(comfyui, graph, keys.replace("-20", "0").replace("20", "-20").replace("[0, 0]", "[0, 20]"))
    assert np.abs(driven - led).mean() < 0.7 * np.abs(turned - led).mean()


def test_a_driving_video_is_read_frame_by_frame(comfyui, tmp_path):
    """A file's, from where the graph has it begin: half a second with a face, and then half a second without."""
    head = pictures_to_pixels(led("yaw", np.linspace(-15, 15, 12), 1))
    whole = write_video(tmp_path / "head.mp4", np.concatenate([head, np.full_like(head, 128)]))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:-3000])
    for file, start, sentence in (
        (whole, 0.0, None), (whole, 0.6, "No face was found in the driving video"), (cut, 0.0, "cannot be decoded"),
    ):  # fmt: skip
        video = {"class_type": "TestLongVideo", "inputs": {"file": str(file), "start": start}}
        motion = {"class_type": "LetsTalkMotion", "inputs": {"keys": "{}", "driving_video": ["video", 0]}}
        curves = {"class_type": "PreviewImage", "inputs": {"images": ["motion", 1]}}
        ended = comfyui.run({"video": video, "motion": motion, "curves": curves})
        assert ended.status == ("error" if sentence else "success"), ended.error
        assert sentence is None or sentence in ended.error


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("yaw 3", "not JSON like"),
        ('{"yaw": 99}', "choose one between -25 and 25"),
        ('{"nose": 1}', "no control 'nose'"),
    ],
)
def test_what_is_no_motion_is_said(comfyui, graph, keys, sentence):
    graph["motion"]["inputs"]["keys"] = keys
    ended = comfyui.run(graph)
    assert ended.status == "error" and sentence in ended.error
