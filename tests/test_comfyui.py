"""The pack in the real ComfyUI: every workflow, the cache, and cancelling."""

import asyncio
import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest

from letstalk_core.audio.recording import read_audio
from letstalk_core.config import SAMPLERS
from letstalk_core.video.reader import probe, read_video_frames

from .media_files import tone, write_media

pytestmark = pytest.mark.comfyui

NODES = (
    *("LoadLetsTalkModel", "EncodeAudio", "EncodePortrait", "LetsTalkSampler", "MemoryBankLongVideo"),
    *(
        "LetsTalkPasteBack",
        "LetsTalkAudioFile",
        "LetsTalkExample",
        "LetsTalkMotion",
        "LetsTalkSaveVideo",
        "LetsTalkSpeaker",
    ),
)
SOURCE = {"image": "1,64,64,3", "audio": "1,16000,16000", "sounds": 1, "value": 0.5, "nan": False}
WORKFLOWS = ("short_talking_portrait", "long_video", "continued_take", "full_picture", "two_people_talking")


def only(graph: dict, kind: str) -> dict:
    """The inputs of the first node of a class."""
    return next(node["inputs"] for node in graph.values() if node["class_type"] == kind)


def with_source(graph: dict, **changes) -> dict:
    """The graph with the test's own picture and sound."""
    graph["source"] = {"class_type": "TestSource", "inputs": {**SOURCE, **changes}}
    if "image" in changes or "value" in changes:
        only(graph, "EncodePortrait").update(image=["source", 0], no_face="centred crop")
    if {"audio", "nan"} & set(changes):
        only(graph, "EncodeAudio")["audio"] = ["source", 1]
    return graph


def test_it_starts_without_a_warning_and_in_no_time(comfyui):
    started = comfyui.log.partition("got prompt")[0]  # what other tests have asked of this server comes after it
    assert not [
        line
        for line in started.splitlines()
        if "LetsTalk" in line and re.search("WARN|Warning|ERROR|Traceback|Cannot|FAILED", line)
    ]
    seconds = re.search(r"([\d.]+) seconds.*ComfyUI-LetsTalk", started)
    assert seconds and float(seconds[1]) < 0.5


IMPORT = """
import asyncio, importlib, json, sys, time
comfyui, custom_nodes = sys.argv[1:]
sys.argv[1:], sys.path[:0] = [], [comfyui, custom_nodes]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import comfy.model_patcher, comfy_api.latest, server
before, began = set(sys.modules), time.perf_counter()
pack = importlib.import_module("ComfyUI-LetsTalk")
asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
print(json.dumps([time.perf_counter() - began, sorted(set(sys.modules) - before)]))
"""


def test_import_pulls_in_nothing_heavy(comfyui):
    command = [comfyui.python, "-c", IMPORT, comfyui.comfyui, comfyui.base / "custom_nodes"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, new = json.loads(done.stdout.splitlines()[-1])
    assert seconds < 0.5
    assert not {name.split(".")[0] for name in new} & {"cv2", "av", "transformers", "diffusers", "torchaudio"}
    # What the schemas name: sentences, limits, the encoders, the marks and the example's place.
    light = {"", ".errors", ".config", ".defaults", ".files", ".video", ".video.h264", ".video.marks"}
    assert {name.rpartition("letstalk_core")[2] for name in new if "letstalk_core" in name} == light


def test_every_node_is_there_and_explains_itself(comfyui):
    info = comfyui.get("/object_info")
    for name in NODES:
        node = info[name]
        assert node["display_name"].startswith("LetsTalk") and node["description"] and node["search_aliases"], name
        given = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert all(options[-1].get("tooltip") for options in given.values()), name
        assert all(node["output_tooltips"]), name
    offered = info["LetsTalkSampler"]["input"]["required"]["sampler"][1]["options"]
    assert set(offered[1:]) == set(SAMPLERS)
    assert info["LoadLetsTalkModel"]["input"]["required"]["model"][1]["options"][0].startswith("letstalk-portraits")


def test_templates_and_help_pages_are_served(comfyui):
    assert sorted(comfyui.get("/workflow_templates")["ComfyUI-LetsTalk"]) == sorted(WORKFLOWS)
    for name in WORKFLOWS:
        assert comfyui.get(f"/api/workflow_templates/ComfyUI-LetsTalk/{name}.json")["nodes"]
        assert comfyui.get(f"/api/workflow_templates/ComfyUI-LetsTalk/{name}.jpg", raw=True)[:2] == b"\xff\xd8"
    for name in NODES:
        assert comfyui.get(f"/extensions/ComfyUI-LetsTalk/docs/{name}.md", raw=True).startswith(b"# LetsTalk")


@pytest.fixture
def scripts(monkeypatch, repository):
    """The scripts of docs/ can be imported."""
    monkeypatch.syspath_prepend(str(repository / "docs"))


def test_the_subgraph_is_offered_as_its_script_makes_it(comfyui, repository, scripts):
    from make_subgraphs import SUBGRAPH, make_subgraph

    offered = comfyui.get("/global_subgraphs")
    (key,) = (key for key, one in offered.items() if one["info"]["node_pack"] == "custom_nodes.ComfyUI-LetsTalk")
    assert offered[key]["name"] == SUBGRAPH["title"]
    content = json.loads(comfyui.get(f"/global_subgraphs/{key}")["data"])
    assert content == json.loads(json.dumps(make_subgraph(SUBGRAPH, comfyui.get("/object_info"))))


def test_the_files_are_what_the_graphs_make(comfyui, repository, workflow, scripts):
    from make_workflows import GRAPHS, convert

    nodes = comfyui.get("/object_info")
    assert sorted(title.replace(" ", "_") for title in GRAPHS) == sorted(WORKFLOWS)
    for title, graph in GRAPHS.items():
        name = title.replace(" ", "_")
        canvas, api = convert(graph, nodes)
        assert json.loads((repository / "workflows" / f"{name}.json").read_text()) == json.loads(json.dumps(canvas))
        assert workflow(name) == json.loads(json.dumps(api))
        for node in api.values():  # every value fits the schema
            given = nodes[node["class_type"]]["input"]
            for key, value in node["inputs"].items():
                kind, *options = {**given.get("required", {}), **given.get("optional", {})}[key.split(".")[0]]
                options = options[0] if options else {}
                choices = kind if isinstance(kind, list) else options.get("options")
                if choices and isinstance(value, str) and not isinstance(choices[0], dict):
                    assert value in choices, (name, key)
                if kind in ("INT", "FLOAT"):
                    assert options.get("min", value) <= value <= options.get("max", value), (name, key)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_each_workflow_makes_the_whole_video(comfyui, workflow, repository, name):
    waveform, rate = read_audio(repository / "assets" / ("dialogue.flac" if "two_people" in name else "speech.wav"))
    frames = -(-waveform.shape[1] * 25 // rate)
    ended = comfyui.run(workflow(name))
    assert ended.status == "success", ended.error
    (video,) = ended.videos
    found = probe(video)
    assert found.frames == frames
    whole = {"full_picture": (768, 768), "long_video": (768, 768), "two_people_talking": (1024, 640)}
    square = (512, 512) if name == "short_talking_portrait" else (256, 256)
    assert (found.width, found.height) == whole.get(name, square)
    sound, sound_rate = read_audio(video)
    assert abs(sound.shape[1] / sound_rate - waveform.shape[1] / rate) < 0.05
    assert sound.std() > 0.5 * waveform.std()
    assert not list(comfyui.temp.glob("**/*.part")) and not list(comfyui.temp.glob("**/.*"))


def test_two_samplers_chained_by_memory_give_the_frames_of_one(comfyui, workflow):
    alone = workflow("short_talking_portrait")
    only(alone, "LetsTalkSampler")["size"] = 0
    videos = [comfyui.run(graph).videos for graph in (alone, workflow("continued_take"))]
    one, two = (read_video_frames(found[0]) if found else None for found in videos)
    if one is None or two is None:
        pytest.fail("a cached run gave no video")
    assert np.array_equal(one, two)


def test_a_second_run_does_nothing_and_a_new_seed_only_samples(comfyui, workflow):
    graph = workflow("short_talking_portrait")
    only(graph, "LetsTalkSampler")["seed"] = 71
    only(graph, "EncodeAudio")["duration"] = 1.0
    assert comfyui.run(graph).status == "success"
    again = comfyui.run(graph)
    assert again.cached == set(graph)
    only(graph, "LetsTalkSampler")["seed"] = 72
    other = comfyui.run(graph)
    ran = {graph[key]["class_type"] for key in set(graph) - other.cached}
    assert ran == {"LetsTalkSampler", "CreateVideo", "SaveVideo"}


def test_several_prompts_in_a_row(comfyui, workflow):
    prompts = []
    for seed in (1, 2, 3):
        graph = workflow("long_video")
        only(graph, "MemoryBankLongVideo")["seed"] = seed
        for name in ("blinks", "head_motion", "expression", "encoder"):  # as prompts were before these inputs
            del only(graph, "MemoryBankLongVideo")[name]
        only(graph, "EncodeAudio")["duration"] = 1.0
        prompts.append(comfyui.queue(graph))
    ended = [comfyui.wait(prompt) for prompt in prompts]
    assert [one.status for one in ended] == ["success"] * 3
    assert len({video.read_bytes() for one in ended for video in one.videos}) == 3


async def follow(comfyui, graph: dict, cancel_after: int | None = None) -> dict:
    """What a client sees of a prompt with a Long Video, cancelled after so many previews."""
    seen, asked = {"progress": [], "previews": 0, "texts": []}, None
    async for kind, data in comfyui.events("follow"):
        if kind == "connected":
            comfyui.queue(graph, "follow")
        elif kind == "text":
            seen["texts"].append(data[1])
        elif kind == "preview":
            seen["previews"] += 1
            if asked is None and seen["previews"] == cancel_after:
                asked = time.monotonic()
                comfyui.post("/interrupt", {})
        elif kind == "progress" and graph[data["node"]]["class_type"] == "MemoryBankLongVideo":
            seen["progress"].append(data["value"] / data["max"])
        elif kind == "execution_interrupted":
            return {**seen, "seconds": time.monotonic() - asked}
        elif kind == "execution_success":
            return seen
        assert kind != "execution_error", data
    raise AssertionError("the server hung up")


def test_a_cancelled_long_video_goes_on_where_it_was(comfyui, workflow):
    graph = with_source(workflow("long_video"), audio="1,160000,16000")  # 250 frames: segments end at 192 and 250
    only(graph, "MemoryBankLongVideo")["picture"] = "crop"  # a preview a clip

    def run(cancel_after=None):
        return asyncio.run(asyncio.wait_for(follow(comfyui, graph, cancel_after), 120))

    def files():
        return set(comfyui.output.rglob("*")) | set(comfyui.temp.rglob("*"))

    def video():
        return read_video_frames(max(comfyui.output.rglob("*.mp4"), key=lambda path: path.stat().st_mtime_ns))

    before = files()
    stopped = run(cancel_after=13)
    assert stopped["seconds"] < 2 and stopped["progress"] == sorted(stopped["progress"])
    assert max(np.diff([0, *stopped["progress"]])) < 0.07  # steadily
    (work,) = (comfyui.output / "letstalk_work").iterdir()
    assert {path.name for path in work.iterdir()} >= {"00000.mp4", "00000.safetensors", "job.json"}
    assert all(path.is_relative_to(work.parent) for path in files() - before)
    assert re.fullmatch(
        r"250 frames \(10.0 s\) in 16 clips: about \d+ s, [\d.]+ MB on the disk and [\d.]+ [MG]B of memory. "
        rf"Until it is whole, finished parts are kept in output.letstalk_work.{work.name}.",
        stopped["texts"][0],
    )
    resumed = run()
    assert "7.7 s of them there already" in resumed["texts"][0] and resumed["progress"][0] > 12 / 16
    assert not work.exists()
    frames = video()
    comfyui.forget()
    whole = run()
    assert "already" not in whole["texts"][0] and whole["previews"] > resumed["previews"]
    assert np.array_equal(frames, video()) and len(frames) == 250


def test_a_recording_is_read_from_its_file(comfyui, workflow, repository):
    """The same frames as from Load Audio's samples."""
    shutil.copy(repository / "assets" / "speech.wav", comfyui.input / "speech file.wav")
    graph = workflow("long_video")
    long = only(graph, "MemoryBankLongVideo")
    graph["file"] = {
        "class_type": "LetsTalkAudioFile",
        "inputs": {"letstalk_model": long["letstalk_model"], "audio": "speech file.wav"},
    }
    long["seed"], long["picture"] = 91, "crop"
    frames = []
    for audio in (long["letstalk_audio"], ["file", 0]):
        long["letstalk_audio"] = audio
        frames.append(read_video_frames(comfyui.run(graph).videos[0]))
    assert np.array_equal(*frames)
    write_media(comfyui.input / "eight.wav", tone(16000, 32000, 8), 16000)
    graph["file"]["inputs"]["audio"] = "eight.wav"
    assert len(read_video_frames(comfyui.run(graph).videos[0])) == 50
    graph["file"]["inputs"]["audio"] = "nowhere.wav"
    status, told = comfyui.post("/prompt", {"prompt": graph})
    assert status == 400 and "nowhere.wav" in json.dumps(told["node_errors"])


def test_the_same_file_is_loaded_once(comfyui, workflow):
    graph = workflow("continued_take")
    graph["again"] = {"class_type": "LoadLetsTalkModel", "inputs": {**only(graph, "LoadLetsTalkModel")}}
    graph["again"]["inputs"]["lora_strength"] = 0.5  # of no LoRA; ComfyUI itself runs equal nodes once
    key = next(key for key, node in graph.items() if node["inputs"].get("letstalk_memory"))
    graph[key]["inputs"]["letstalk_model"] = ["again", 0]
    only(graph, "EncodeAudio")["duration"] = 5.0
    only(graph, "LetsTalkSampler")["frames"] = 16
    before = comfyui.log.count("Requested to load")
    assert comfyui.run(graph).status == "success"
    assert comfyui.log.count("Requested to load") - before <= 1
