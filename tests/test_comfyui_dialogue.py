"""LetsTalk Speaker in a real ComfyUI: two people of one picture, each hearing a channel of one recording."""

import numpy as np
import pytest
from PIL import Image

from letstalk_core.audio.recording import read_audio
from letstalk_core.picture.picture_file import read_image
from letstalk_core.video.reader import probe, read_video_frames

from .media_files import tone, write_media

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]


@pytest.fixture
def graph(workflow, comfyui, repository):
    """The long video of two people side by side, of one second in which the left one speaks and then the right one."""
    people = [read_image(repository / "assets" / "people" / f"{name}.jpg") for name in ("005", "015")]
    Image.fromarray((np.concatenate(people, 1) * 255).astype(np.uint8)).save(comfyui.input / "two.png")
    waveform, rate = read_audio(repository / "assets" / "speech.wav")
    assert rate == 16000
    speech = waveform[:1, 8000:24000].repeat(2, 1).numpy()
    speech[0, 8000:] = speech[1, :8000] = 0
    write_media(comfyui.input / "two.wav", speech, 16000)
    graph = workflow("long_video")
    names = {node["class_type"]: name for name, node in graph.items()}
    portrait, long = graph[names["EncodePortrait"]]["inputs"], graph[names["MemoryBankLongVideo"]]["inputs"]
    graph["two"] = {"class_type": "LoadImage", "inputs": {"image": "two.png"}}
    portrait |= {"image": ["two", 0], "face": "left"}
    graph["other"] = {"class_type": "EncodePortrait", "inputs": {**portrait, "face": "right"}}
    for channel in ("left", "right"):
        inputs = {"letstalk_model": long["letstalk_model"], "audio": "two.wav", "channel": channel}
        graph[channel] = {"class_type": "LetsTalkAudioFile", "inputs": inputs}
    speaker = {"letstalk_portrait": ["other", 0], "letstalk_audio": ["right", 0]}
    graph["speaker"] = {"class_type": "LetsTalkSpeaker", "inputs": speaker}
    long |= {"letstalk_audio": ["left", 0], "picture": "full picture", "letstalk_speakers": ["speaker", 0]}
    graph["long"] = graph[names["MemoryBankLongVideo"]]
    return graph


def test_both_speak(comfyui, graph):
    ended = comfyui.run(graph)
    assert ended.status == "success", ended.error
    found, both = probe(ended.videos[0]), read_video_frames(ended.videos[0]).astype(int)
    assert both.shape == (25, 320, 640, 3) and found.audio_channels == 2
    del graph["long"]["inputs"]["letstalk_speakers"]
    alone = read_video_frames(comfyui.run(graph).videos[0]).astype(int)
    moves = [
        [np.abs(np.diff(video[..., half, :], axis=0)).mean() for half in np.s_[:320, 320:]] for video in (both, alone)
    ]
    assert moves[0][1] > 10 * moves[1][1] and moves[0][0] == pytest.approx(moves[1][0], rel=0.5)


@pytest.mark.parametrize(
    ("node", "inputs", "sentence"),
    [
        ("long", {"picture": "crop"}, "set picture to 'full picture'"),
        ("other", {"face": "left"}, "Two speakers have the same face"),
        ("other", {"image": ["example", 0], "face": "largest"}, "faces of one picture"),
        ("left", {"audio": "mono.wav", "channel": "right"}, "1 channel(s), and channel 1 is not among them"),
    ],
)
def test_what_does_not_fit_is_said(comfyui, graph, node, inputs, sentence):
    write_media(comfyui.input / "mono.wav", tone(16000, 16000, 1), 16000)
    graph["example"] = {"class_type": "LetsTalkExample", "inputs": {"picture": "portrait"}}
    graph[node]["inputs"] |= inputs
    ended = comfyui.run(graph)
    assert ended.status == "error" and sentence in ended.error
