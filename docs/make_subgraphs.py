"""Writes subgraphs/*.json, which ComfyUI offers as single nodes: python docs/make_subgraphs.py [SERVER]

SERVER is a running ComfyUI that has the pack (default http://127.0.0.1:8188). A file's name is its node's title.
"""

import json
import sys
import urllib.request
import uuid
from pathlib import Path

from make_workflows import COLUMN, COMMON, LEFT, SAMPLING, TOP, WIDGETS, convert, inputs_of

SUBGRAPHS = Path(__file__).resolve().parent.parent / "subgraphs"
INPUT_SIDE, OUTPUT_SIDE = -10, -20  # what links inside a subgraph call its borders

# As in make_workflows.py; what the node shows outside is an input (name, its graph's node, input) or an output slot.
SUBGRAPH = {
    "title": "Talking Portrait (LetsTalk)",
    "category": "Video generation and editing/Image to video",
    "description": "A portrait and a recording in, a talking video out, with the sound: of any length, with the model "
    "that comes with LetsTalk. Connect Save Video.",
    "graph": {
        **{name: COMMON[name] for name in ("model", "portrait", "audio")},
        "video": ("MemoryBankLongVideo", 2, 0, (320, 250), SAMPLING),
    },
    "inputs": [
        ("image", "portrait", "image"),
        ("audio", "audio", "audio"),
        *((name, "video", name) for name in ("picture", "seed", "blinks", "head_motion", "expression")),
    ],
    "outputs": [("video", "video", 0)],
}


def make_subgraph(about: dict, nodes: dict) -> dict:
    """A workflow of one node, whose definition is the graph."""
    ids = {name: index + 1 for index, name in enumerate(about["graph"])}
    inside = _inside(_without_example(about["graph"]), nodes)
    links = [link for node in inside for link in node.pop("links_in")]
    sockets = []
    for slot, (name, node, input_name) in enumerate(about["inputs"]):
        target = inside[ids[node] - 1]["inputs"]
        index = [one["name"] for one in target].index(input_name)
        target[index]["link"] = len(links) + 1
        links.append(_link(len(links) + 1, INPUT_SIDE, slot, ids[node], index, target[index]["type"]))
        widget = {"widget": {"name": name}} if "widget" in target[index] else {}
        sockets.append({"name": name, "type": target[index]["type"], "linkIds": [len(links)], **widget})
    ends = []
    for slot, (name, node, index) in enumerate(about["outputs"]):
        output = inside[ids[node] - 1]["outputs"][index]
        links.append(_link(len(links) + 1, ids[node], index, OUTPUT_SIDE, slot, output["type"]))
        output["links"].append(len(links))
        ends.append({"name": name, "type": output["type"], "linkIds": [len(links)]})
    right = LEFT + COLUMN * (1 + max(column for _, column, *_ in about["graph"].values()))
    definition = {
        **{"id": _id(about["title"]), "version": 1, "revision": 0, "name": about["title"]},
        **{key: about[key] for key in ("category", "description")},
        "state": {"lastGroupId": 0, "lastNodeId": len(inside), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": INPUT_SIDE, "bounding": [LEFT - 200, TOP, 120, 40 + 20 * len(sockets)]},
        "outputNode": {"id": OUTPUT_SIDE, "bounding": [right, TOP, 120, 60]},
        "inputs": [_border(about, one) for one in sockets],
        "outputs": [_border(about, one) for one in ends],
        **{"widgets": [], "nodes": inside, "groups": [], "links": links, "config": {}, "extra": {}},
    }
    node = {
        **{"id": 1, "type": definition["id"], "title": about["title"], "pos": [LEFT, TOP], "size": [320, 190]},
        **{"flags": {}, "order": 0, "mode": 0, "properties": {}, "widgets_values": []},
        "inputs": [
            {key: one[key] for key in ("name", "type", "widget") if key in one} | {"link": None} for one in sockets
        ],
        "outputs": [{"name": one["name"], "type": one["type"], "links": []} for one in ends],
    }
    whole = {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4}
    return {**whole, "definitions": {"subgraphs": [definition]}}


def _without_example(graph: dict) -> dict:
    """The nodes that take from the example, without that link: their inputs are the subgraph's."""
    return {
        name: (kind, column, y, size, {key: value for key, value in given.items() if _known(value, graph)})
        for name, (kind, column, y, size, given) in graph.items()
    }


def _known(value, graph: dict) -> bool:
    return not isinstance(value, tuple) or value[0] in graph


def _inside(graph: dict, nodes: dict) -> list[dict]:
    """The nodes of the canvas, each with all inputs, widgets too, in the schema's order, and its links_in."""
    canvas, _ = convert(graph, nodes)
    links = {number: link for number, *link in canvas["links"]}
    for node, (kind, _, _, _, given) in zip(canvas["nodes"], graph.values(), strict=True):
        linked = {one["name"]: one["link"] for one in node["inputs"]}
        node["inputs"] = [
            {"name": name, "type": input_kind, "link": linked.get(name)}
            | ({"widget": {"name": name}} if input_kind in WIDGETS else {})
            for name, input_kind, _ in inputs_of(nodes[kind], given)
        ]
        node["links_in"] = [
            _link(one["link"], *links[one["link"]][:2], node["id"], index, one["type"])
            for index, one in enumerate(node["inputs"])
            if one["link"]
        ]
    return canvas["nodes"]


def _link(number: int, origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> dict:
    ends = {"origin_id": origin, "origin_slot": origin_slot, "target_id": target, "target_slot": target_slot}
    return {"id": number, **ends, "type": kind}


def _border(about: dict, socket: dict) -> dict:
    kept = {key: socket[key] for key in ("name", "type", "linkIds")}
    return {"id": _id(f"{about['title']} {socket['name']}"), **kept}


def _id(name: str) -> str:
    """The same one each time that the file is written."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"ComfyUI-LetsTalk {name}"))


if __name__ == "__main__":
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188"
    with urllib.request.urlopen(f"{server}/object_info") as answer:
        nodes = json.load(answer)
    SUBGRAPHS.mkdir(exist_ok=True)
    written = json.dumps(make_subgraph(SUBGRAPH, nodes), indent=1) + "\n"
    (SUBGRAPHS / f"{SUBGRAPH['title']}.json").write_text(written)
