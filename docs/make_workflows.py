"""Writes workflows/*.json and api/*.json there from the graphs below: python docs/make_workflows.py [SERVER]

SERVER is a running ComfyUI that has the pack (default http://127.0.0.1:8188): it knows every node's inputs, their order
and defaults. Titles of the files are what the Templates dialog shows. Each workflow is then run there, and some frames
of its video become its thumbnail.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
WORKFLOWS = REPOSITORY / "workflows"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
COLUMN, LEFT, TOP = 360, 40, 60

# name: (class, column, y, size, inputs); an input ("name", slot) is a link.
PICTURE = {"letstalk_model": ("model", 0), "image": ("example", 0)}
SOUND = {"letstalk_model": ("model", 0), "audio": ("example", 1)}
COMMON = {
    "model": ("LoadLetsTalkModel", 0, 0, (320, 190), {}),
    "example": ("LetsTalkExample", 0, 250, (320, 90), {}),
    "portrait": ("EncodePortrait", 1, 0, (320, 210), PICTURE),
    "audio": ("EncodeAudio", 1, 270, (320, 150), SOUND),
}  # fmt: skip
SAMPLING = {"letstalk_model": ("model", 0), "letstalk_portrait": ("portrait", 0), "letstalk_audio": ("audio", 0)}


def saved(images: tuple, column: int) -> dict:
    """Create Video and Save Video for images."""
    return {
        "video": ("CreateVideo", column, 0, (280, 110), {"images": images, "audio": ("audio", 2), "fps": 25.0}),
        "save": ("SaveVideo", column, 170, (400, 460), {"video": ("video", 0), "filename_prefix": "video/LetsTalk"}),
    }


GRAPHS = {
    "short talking portrait": {
        **COMMON,
        "crop": ("PreviewImage", 1, 480, (320, 260), {"images": ("portrait", 1)}),
        "sampler": ("LetsTalkSampler", 2, 0, (320, 290), {**SAMPLING, "size": 512}),
        **saved(("sampler", 0), 3),
    },
    "long video": {
        **COMMON,
        "video": ("MemoryBankLongVideo", 2, 0, (320, 250), SAMPLING),
        "save": ("SaveVideo", 3, 0, (400, 460), {"video": ("video", 0), "filename_prefix": "video/LetsTalk_long"}),
    },
    "continued take": {
        **COMMON,
        "first": ("LetsTalkSampler", 2, 0, (320, 290), {**SAMPLING, "frames": 90}),
        "second": ("LetsTalkSampler", 2, 560, (320, 290), {**SAMPLING, "letstalk_memory": ("first", 1)}),
        "both": (
            "BatchImagesNode", 3, 0, (240, 90), {"images.image0": ("first", 0), "images.image1": ("second", 0)},
        ),
        **saved(("both", 0), 4),
    },
    "full picture": {
        **COMMON,
        "example": ("LetsTalkExample", 0, 250, (320, 90), {"picture": "scene"}),
        "sampler": ("LetsTalkSampler", 2, 0, (320, 290), SAMPLING),
        "paste": (
            "LetsTalkPasteBack", 3, 0, (280, 60), {"images": ("sampler", 0), "letstalk_portrait": ("portrait", 0)},
        ),
        **saved(("paste", 0), 4),
    },
    "two people talking": {
        "model": COMMON["model"],
        "example": ("LetsTalkExample", 0, 250, (320, 90), {"picture": "two people"}),
        "portrait": ("EncodePortrait", 1, 0, (320, 210), {**PICTURE, "face": "left"}),
        "audio": ("EncodeAudio", 1, 270, (320, 150), {**SOUND, "channel": "left"}),
        "other": ("EncodePortrait", 1, 560, (320, 210), {**PICTURE, "face": "right"}),
        "voice": ("EncodeAudio", 1, 830, (320, 150), {**SOUND, "channel": "right"}),
        "speaker": (
            "LetsTalkSpeaker", 2, 560, (280, 110), {"letstalk_portrait": ("other", 0), "letstalk_audio": ("voice", 0)},
        ),
        "video": ("MemoryBankLongVideo", 3, 0, (320, 250), {**SAMPLING, "letstalk_speakers": ("speaker", 0)}),
        "save": ("SaveVideo", 4, 0, (480, 420), {"video": ("video", 0), "filename_prefix": "video/LetsTalk_two"}),
    },
}  # fmt: skip


THUMBNAILS = {
    "short talking portrait": [33], "long video": [33, 60, 116], "continued take": [89, 90], "full picture": [33],
    "two people talking": [33, 150],
}  # fmt: skip


def inputs_of(info: dict, given: dict) -> list[tuple[str, str, dict]]:
    """(name, type, options) in order; a list of choices is COMBO, and an input that grows has the sockets given."""
    found = []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, *options = info["input"][group][name]
            if kind == "COMFY_AUTOGROW_V3":
                (part,) = options[0]["template"]["input"]["required"].values()
                found += [(socket, part[0], {}) for socket in given if socket.startswith(f"{name}.")]
                continue
            choices = isinstance(kind, list)
            found.append((name, "COMBO" if choices else kind, {"options": kind} if choices else (options or [{}])[0]))
    return found


def default_of(kind: str, options: dict):
    if kind == "COMBO":
        return options.get("default", options["options"][0])
    if kind == "COMFY_DYNAMICCOMBO_V3":  # its value is the key of the first choice
        return options["options"][0]["key"]
    return options["default"]


def convert(graph: dict, nodes: dict) -> tuple[dict, dict]:
    """The same graph in the format of the canvas and in that of the API."""
    ids = {name: index + 1 for index, name in enumerate(graph)}
    canvas, api, links = [], {}, []
    for order, (name, (kind, column, y, size, given)) in enumerate(graph.items()):
        sockets, values, plain = [], [], {}
        for input_name, input_kind, options in inputs_of(nodes[kind], given):
            value = given.get(input_name)
            if isinstance(value, tuple):
                source, slot = value
                links.append([len(links) + 1, ids[source], slot, ids[name], len(sockets), input_kind])
                sockets.append({"name": input_name, "type": input_kind, "link": len(links)})
                plain[input_name] = [str(ids[source]), slot]
            elif input_kind in WIDGETS or input_kind == "COMFY_DYNAMICCOMBO_V3":
                plain[input_name] = default_of(input_kind, options) if value is None else value
                values.append(plain[input_name])
                if options.get("control_after_generate"):
                    values.append("fixed")
            else:
                sockets.append({"name": input_name, "type": input_kind, "link": None})
        outputs = [
            {"name": title, "type": output, "links": []}
            for title, output in zip(nodes[kind]["output_name"], nodes[kind]["output"], strict=True)
        ]
        canvas.append(
            {
                **{"id": ids[name], "type": kind, "pos": [LEFT + COLUMN * column, TOP + y], "size": list(size)},
                **{"flags": {}, "order": order, "mode": 0, "inputs": sockets, "outputs": outputs},
                **{"properties": {"Node name for S&R": kind}, "widgets_values": values},
            }
        )
        api[str(ids[name])] = {"class_type": kind, "inputs": plain}
    for number, source, slot, *_ in links:
        canvas[source - 1]["outputs"][slot]["links"].append(number)
    ends = {"last_node_id": len(graph), "last_link_id": len(links)}
    return {**ends, "nodes": canvas, "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4}, api


def thumbnail(video: Path, frames: list[int]) -> Image.Image:
    """These frames side by side, 512 pixels wide."""
    sys.path.insert(0, str(REPOSITORY))
    from letstalk_core.video.reader import read_video_frames

    strip = Image.fromarray(np.concatenate(list(read_video_frames(video)[frames]), axis=1))
    return strip.resize((512, round(512 * strip.height / strip.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188"
    with urllib.request.urlopen(f"{server}/object_info") as answer:
        nodes = json.load(answer)
    (WORKFLOWS / "api").mkdir(parents=True, exist_ok=True)
    for title, graph in GRAPHS.items():
        canvas, api = convert(graph, nodes)
        name = title.replace(" ", "_")
        (WORKFLOWS / f"{name}.json").write_text(json.dumps(canvas, indent=1) + "\n")
        (WORKFLOWS / "api" / f"{name}.json").write_text(json.dumps(api, indent=1) + "\n")
        with tempfile.TemporaryDirectory() as folder:
            video = Path(folder) / "video.mp4"
            script = [
                sys.executable,
                REPOSITORY / "workflows" / "api" / "queue_prompt.py",
                "--server",
                server,
                "--output",
                video,
            ]
            subprocess.run([*map(str, script), "--workflow", str(WORKFLOWS / "api" / f"{name}.json")], check=True)
            thumbnail(video, THUMBNAILS[title]).save(WORKFLOWS / f"{name}.jpg", quality=90)
