"""Workflows that people have saved go on working: the nodes keep what the published release has.

At a release, RECORD=1 python -m pytest tests/test_published_nodes.py records the nodes as they are then.
"""

import copy
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

PUBLISHED = Path(__file__).parent / "data" / "published_nodes.json"
RECORD = "RECORD=1 python -m pytest tests/test_published_nodes.py"
# Of an input's options, what a saved value depends on; control_after_generate saves a value of its own.
KEPT = ("default", "min", "max", "control_after_generate", "options")


def interface(info: dict) -> dict:
    """What saved workflows and prompts rely on of a node."""
    inputs = [
        {"name": name, "type": info["input"][group][name][0], "required": group == "required"}
        | {key: value for key, value in _options(info["input"][group][name]).items() if key in KEPT}
        for group in ("required", "optional")
        for name in info["input_order"].get(group, [])
    ]
    outputs = [{"name": name, "type": kind} for name, kind in zip(info["output_name"], info["output"], strict=True)]
    return {"inputs": inputs, "outputs": outputs}


def _options(spec: list) -> dict:
    return spec[1] if len(spec) > 1 else {}


def losses(published: dict, now: dict) -> Iterator[str]:
    """A sentence for each thing that a workflow of the published nodes would lose."""
    for node, was in published.items():
        if node not in now:
            yield f"{node} is gone: workflows that have it show a missing node."
            continue
        yield from _input_losses(node, was["inputs"], now[node]["inputs"])
        yield from _output_losses(node, was["outputs"], now[node]["outputs"])


def _input_losses(node: str, was: list[dict], now: list[dict]) -> Iterator[str]:
    found = {one["name"]: one for one in now}
    for old in was:
        name = f"{node}.{old['name']}"
        if old["name"] not in found:
            yield f"{name} is gone or renamed: what workflows have set there, or connected to it, is lost."
        else:
            yield from _changes(name, old, found[old["name"]])
    before, names = [one["name"] for one in was], [one["name"] for one in now]
    if set(before) <= set(names) and names[: len(before)] != before:
        yield (
            f"{node} had its inputs in the order {before} and has {names}: workflows save their values in that order "
            "without names, so they would end in the wrong inputs; add new ones after the last, as optional ones."
        )
    for name in set(names) - set(before):
        if found[name]["required"]:
            yield f"{node}.{name} is new and required: prompts without it are refused; make it optional."


def _changes(name: str, old: dict, new: dict) -> Iterator[str]:
    if old["type"] != new["type"]:
        yield f"{name} was {old['type']} and is {new['type']}: saved values and links no longer fit."
    if new["required"] and not old["required"]:
        yield f"{name} was optional and is required: prompts without it are refused."
    if old["required"] and not new["required"]:
        yield f"{name} was required and is optional: inputs after it move up, and saved values with them."
    if old.get("default") != new.get("default"):
        yield (
            f"{name} had the default {old.get('default')!r} and has {new.get('default')!r}: prompts that leave it out, "
            "and graphs built by hand after the documentation, make something else."
        )
    for option in old.get("options", []):
        if option not in new.get("options", []):
            yield f"{name} no longer offers {option!r}: workflows that chose it are refused."
    if new.get("min", 0) > old.get("min", 0) or new.get("max", 0) < old.get("max", 0):
        ranges = [f"{one.get('min')} to {one.get('max')}" for one in (old, new)]
        yield f"{name} took {ranges[0]} and takes {ranges[1]}: workflows with a value outside are refused."
    if old.get("control_after_generate") != new.get("control_after_generate"):
        yield f"{name} has another control_after_generate: saved values after it move into the wrong inputs."


def _output_losses(node: str, was: list[dict], now: list[dict]) -> Iterator[str]:
    for slot, old in enumerate(was):
        new = now[slot] if slot < len(now) else None
        if new != old:
            yield (
                f"{node}'s output {slot} was {old['name']} ({old['type']}) and is "
                f"{new and new['name']} ({new and new['type']}): links are saved by the output's number, so they break."
            )


def additions(published: dict, now: dict) -> list[str]:
    """What the published nodes have not."""
    found = [node for node in now if node not in published]
    for node in set(published) & set(now):
        for part in ("inputs", "outputs"):
            known = {one["name"] for one in published[node][part]}
            found += [f"{node}.{one['name']}" for one in now[node][part] if one["name"] not in known]
    return sorted(found)


@pytest.mark.comfyui
def test_no_saved_workflow_loses_anything(node_info):
    now = {node: interface(info) for node, info in node_info.items()}
    if os.environ.get("RECORD"):
        PUBLISHED.write_text(json.dumps(now, indent=1) + "\n")
    published = json.loads(PUBLISHED.read_text())
    lost = list(losses(published, now))
    assert not lost, "\n".join(["Saved workflows would break:", *lost])
    if new := additions(published, now):
        warnings.warn(
            f"new since the last release: {', '.join(new)}; when it is out, record it: {RECORD}", stacklevel=1
        )


def change(node: str, part: str, index: int | None = None, **changes):
    """A change of a node's inputs or outputs: of one of them, or (index None) a new one at the end."""

    def apply(nodes: dict) -> None:
        given = nodes[node][part]
        if index is None:
            given.append(changes)
        else:
            given[index].update(changes)

    return apply


SAMPLER, LOADER = "LetsTalkSampler", "LoadLetsTalkModel"
BREAKS = {
    "a node that is gone": (lambda nodes: nodes.pop(SAMPLER), f"{SAMPLER} is gone"),
    "an input that is gone": (lambda nodes: nodes[SAMPLER]["inputs"].pop(3), "start_frame is gone or renamed"),
    "a renamed input": (change(SAMPLER, "inputs", 3, name="first"), "start_frame is gone or renamed"),
    "another order": (lambda nodes: nodes[SAMPLER]["inputs"].insert(3, nodes[SAMPLER]["inputs"].pop(4)), "order"),
    "one put between": (
        lambda nodes: nodes[SAMPLER]["inputs"].insert(3, {"name": "fps", "type": "FLOAT", "required": False}),
        "in the order",
    ),
    "another type": (change(SAMPLER, "inputs", 3, type="FLOAT"), "start_frame was INT and is FLOAT"),
    "made required": (change(LOADER, "inputs", 4, required=True), "lora was optional and is required"),
    "made optional": (change(LOADER, "inputs", 0, required=False), "model was required and is optional"),
    "a new one that is required": (
        change(SAMPLER, "inputs", name="fps", type="FLOAT", required=True), "fps is new and required",
    ),
    "another default": (change(LOADER, "inputs", 5, default=0.5), "had the default 1.0 and has 0.5"),
    "a choice that is gone": (change(LOADER, "inputs", 3, options=["auto", "fp32"]), "no longer offers 'bf16'"),
    "less at the top": (change(SAMPLER, "inputs", 3, max=9), "outside are refused"),
    "less at the bottom": (change(SAMPLER, "inputs", 3, min=1), "outside are refused"),
    "no seed control": (change(SAMPLER, "inputs", 5, control_after_generate=False), "control_after_generate"),
    "an output that is gone": (lambda nodes: nodes[SAMPLER]["outputs"].pop(), "output 1 was letstalk_memory"),
    "outputs in another order": (lambda nodes: nodes[SAMPLER]["outputs"].reverse(), "output 0 was images (IMAGE) and"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_what_would_break_a_workflow_is_said(case):
    published = json.loads(PUBLISHED.read_text())
    now = copy.deepcopy(published)
    apply, sentence = BREAKS[case]
    apply(now)
    assert any(sentence in one for one in losses(published, now)), list(losses(published, now))


def test_optional_ones_at_the_end_and_more_choices_are_additions():
    published = json.loads(PUBLISHED.read_text())
    now = copy.deepcopy(published)
    change(SAMPLER, "inputs", name="fps", type="FLOAT", required=False)(now)
    change(SAMPLER, "outputs", name="mask", type="MASK")(now)
    now[LOADER]["inputs"][3]["options"].insert(1, "fp8")
    now["LetsTalkNew"] = {"inputs": [], "outputs": []}
    assert list(losses(published, now)) == []
    assert additions(published, now) == ["LetsTalkNew", "LetsTalkSampler.fps", "LetsTalkSampler.mask"]
    assert list(losses(published, published)) == [] and additions(published, published) == []
