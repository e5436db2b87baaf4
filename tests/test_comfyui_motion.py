"""LetsTalk Motion in a real ComfyUI: written keys, a driving video, and what is wrong with either."""

import numpy as np
import pytest

from letstalk_core.video.reader import read_video_frames

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
