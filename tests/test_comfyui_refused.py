"""What the nodes say to bad input in the real ComfyUI, and unusual input that they take."""

import json
import re

import pytest

from letstalk_core.video.reader import probe

from .test_comfyui import only, with_source

pytestmark = pytest.mark.comfyui


# What goes wrong: (workflow, changes of node inputs by class, what the user reads).
BAD = {
    "no face": ("EncodePortrait", {"no_face": "stop with an error"}, {}, "No face was found"),
    "1x1": ("EncodePortrait", {}, {"image": "1,1,1,3"}, "smaller than 16 pixels"),
    "transparent": ("EncodePortrait", {}, {"image": "1,64,64,4", "value": 0.0}, "fully transparent"),
    "batch": ("EncodePortrait", {}, {"image": "3,64,64,3"}, "batch of 3 pictures; connect one"),
    "face index": ("EncodePortrait", {"face": "by index", "no_face": "stop with an error"}, {}, "No face was found"),
    "no samples": ("EncodeAudio", {}, {"audio": "1,0,16000"}, "nothing is left"),
    "several sounds": ("EncodeAudio", {}, {"audio": "1,16000,16000", "sounds": 2}, "batch of 2 recordings"),
    "no sound": ("EncodeAudio", {}, {"audio": "1,16000,16000", "sounds": 0}, "There is no sound here"),
    "late start": ("EncodeAudio", {"start": 30.0}, {}, "lasts 1.00 seconds, so nothing is left from 30.0"),
    "nan": ("EncodeAudio", {}, {"nan": True}, "NaN or infinite"),
    "beyond the end": ("LetsTalkSampler", {"frames": 900}, {}, "Frames 0 to 900 were asked for, but the recording has"),
    "unknown control": ("LetsTalkSampler", {"head_motion": 2.0}, {}, "can't be asked for yaw, pitch, roll; it knows"),
    "wrong sampler": ("LetsTalkSampler", {"sampler": "ddim"}, {}, "choose euler"),
    "truncated": ("LoadLetsTalkModel", {"model": "truncated.safetensors"}, {}, "truncated.safetensors"),
    "pickle": ("LoadLetsTalkModel", {"model": "pickle.ckpt"}, {}, "convert"),
    "architecture": ("LoadLetsTalkModel", {"model": "other.safetensors"}, {}, "other.safetensors"),
    "no autoencoder": ("LoadLetsTalkModel", {"model": "without_autoencoder.safetensors"}, {}, "autoencoder"),
    "wrong autoencoder": (
        "LoadLetsTalkModel", {"autoencoder": "kl/diffusion_pytorch_model.safetensors"}, {}, "latent channels",
    ),
}  # fmt: skip
PYTHON_NAMES = re.compile(r"Traceback|Error\b|NoneType|KeyError|object has no attribute|\bself\b")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(comfyui, workflow, case):
    kind, inputs, source, sentence = BAD[case]
    graph = workflow("short_talking_portrait")
    if case in ("no face", "face index"):
        source = {"image": "1,64,64,3"}
    if case == "unknown control":
        only(graph, "LoadLetsTalkModel")["model"] = "tiny.safetensors"
    if case == "late start":
        source = {"audio": "1,16000,16000"}
    graph = with_source(graph, **source)
    only(graph, kind).update(inputs)
    error = comfyui.run(graph).error
    print(f"{case}: {error}")
    assert sentence in error and "\n" not in error and not PYTHON_NAMES.search(error), error


@pytest.mark.parametrize(
    ("card", "advice"), [(True, "choose a smaller size, or precision bf16 or fp16"), (False, "make fewer frames")]
)
def test_out_of_memory_says_what_to_lower(comfyui, workflow, card, advice):
    graph = workflow("short_talking_portrait")
    graph["short"] = {"class_type": "TestShortOfMemory", "inputs": {"letstalk_model": ["1", 0], "card": card}}
    only(graph, "LetsTalkSampler")["letstalk_model"] = ["short", 0]
    error = comfyui.run(graph).error
    assert advice in error and "\n" not in error and "alloc" not in error.lower()


def test_a_file_that_is_not_there_is_refused_before_it_runs(comfyui, workflow):
    graph = workflow("short_talking_portrait")
    only(graph, "LoadLetsTalkModel")["model"] = "nowhere.safetensors"
    status, told = comfyui.post("/prompt", {"prompt": graph})
    assert status == 400 and "Value not in list" in json.dumps(told["node_errors"])


@pytest.mark.parametrize("audio", ["1,1,16000", "1,8000,8000", "6,96000,96000", "2,44100,44100"])
def test_unusual_sound_is_taken(comfyui, workflow, audio):
    graph = with_source(workflow("short_talking_portrait"), audio=audio)
    ended = comfyui.run(graph)
    _, samples, rate = map(int, audio.split(","))
    assert ended.status == "success", ended.error
    assert probe(ended.videos[0]).frames == -(-samples * 25 // rate)


def test_silence_is_taken(comfyui, workflow):
    graph = with_source(workflow("long_video"), audio="1,8000,16000")
    graph["source"]["inputs"]["value"] = 0.0
    assert comfyui.run(graph).status == "success"


def test_parts_of_another_model_are_refused(comfyui, workflow):
    graph = workflow("continued_take")
    graph["tiny"] = {"class_type": "LoadLetsTalkModel", "inputs": {**only(graph, "LoadLetsTalkModel")}}
    graph["tiny"]["inputs"]["model"] = "tiny.safetensors"
    for key in ("portrait", "audio"):
        kind = {"portrait": "EncodePortrait", "audio": "EncodeAudio"}[key]
        graph[key] = {"class_type": kind, "inputs": {**only(graph, kind), "letstalk_model": ["tiny", 0]}}
    second = next(node["inputs"] for node in graph.values() if node["inputs"].get("letstalk_memory"))
    second.update(letstalk_model=["tiny", 0], letstalk_portrait=["portrait", 0], letstalk_audio=["audio", 0])
    error = comfyui.run(graph).error
    assert "memory was made with letstalk-portraits" in error and "tiny.safetensors" in error
    second["letstalk_portrait"] = ["3", 0]
    del second["letstalk_memory"]
    assert "portrait was made with letstalk-portraits" in comfyui.run(graph).error


def test_a_picture_of_someone_without_a_face_is_cropped_with_a_warning(comfyui, workflow):
    graph = with_source(workflow("short_talking_portrait"), image="1,200,90,4")
    only(graph, "EncodeAudio")["duration"] = 0.2
    assert comfyui.run(graph).status == "success"
    assert "LetsTalk: No face was found in the picture; the middle of the picture is used." in comfyui.log


def test_the_server_is_healthy_afterwards(comfyui, workflow):
    graph = workflow("long_video")
    only(graph, "EncodeAudio")["duration"] = 0.4
    assert comfyui.run(graph).status == "success"
    assert comfyui.get("/queue") == {"queue_running": [], "queue_pending": []}
