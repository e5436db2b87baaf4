"""The nodes' texts in every language of locales/: complete, and the English ones equal to the schemas'.

RENEW=1 python -m pytest tests/test_locales.py writes locales/en/nodeDefs.json from the schemas; people translate the
others.
"""

import json
import os
import re
from pathlib import Path

import pytest

LOCALES = Path(__file__).resolve().parents[1] / "locales"
LANGUAGES = ("en", "zh", "ja", "de", "es")
RENEW = "RENEW=1 python -m pytest tests/test_locales.py"


def read(language: str) -> dict:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def texts(info: dict) -> dict:
    """What a node's schema says, in the format of ComfyUI's nodeDefs.json. It has no place for a combo's choices."""
    inputs = {}
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            options = info["input"][group][name][1]
            inputs[name] = {"name": options.get("display_name") or name, "tooltip": options["tooltip"]}
    outputs = {
        str(slot): {"name": name, "tooltip": tooltip}
        for slot, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
    }
    kept = {key: info[key] for key in ("display_name", "description")}
    return {**kept, "inputs": inputs, "outputs": outputs}


def flat(tree: dict, path: str = "") -> dict[str, str]:
    """{"LetsTalkSampler.inputs.seed.tooltip": "...", ...}"""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


def mistakes(language: str, given: dict, schemas: dict) -> list[str]:
    """A line for each key of a file that is missing, too many or not a translation."""
    given, wanted = flat(given), flat(schemas)
    lines = [f"missing: {key} (English: {wanted[key]})" for key in wanted if not given.get(key)]
    lines += [f"not in any schema: {key}" for key in given if key not in wanted]
    for key in wanted.keys() & given.keys():
        sentence = key.rpartition(".")[2] != "name" and not key.endswith("display_name")
        if language == "en" and given[key] != wanted[key]:
            lines.append(f"the schema says otherwise: {key}; renew with {RENEW} and translate it again")
        elif language != "en" and sentence and given[key] == wanted[key]:
            lines.append(f"not translated: {key}")
        if re.search(r"[{}@|]", given[key]):  # vue-i18n's own signs: they would not be shown as they stand
            lines.append(f"one of {{ }} @ |, which the front end reads as commands: {key}")
        if key.endswith("display_name") and not given[key].startswith("LetsTalk "):
            lines.append(f"display names begin with LetsTalk: {key}")
    return [f"locales/{language}/nodeDefs.json: {line}" for line in sorted(lines)]


@pytest.fixture(scope="module")
def schemas(node_info):
    found = {node: texts(info) for node, info in node_info.items()}
    if os.environ.get("RENEW"):
        (LOCALES / "en" / "nodeDefs.json").write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return found


@pytest.mark.comfyui
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there_in_every_language(schemas, language):
    found = mistakes(language, read(language), schemas)
    assert not found, "\n" + "\n".join(found)


def test_nothing_else_lies_in_the_folder():
    files = {str(path.relative_to(LOCALES).as_posix()) for path in LOCALES.rglob("*") if path.is_file()}
    assert files == {f"{language}/nodeDefs.json" for language in LANGUAGES}


WRONG = {
    "missing": (lambda node: node["inputs"].pop("seed"), "missing: LetsTalkSampler.inputs.seed.tooltip (English: Bl"),
    "too many": (lambda node: node["inputs"].update(fps={"name": "x"}), "schema: LetsTalkSampler.inputs.fps.name"),
    "left empty": (lambda node: node.update(description=""), "missing: LetsTalkSampler.description"),
    "left English": (lambda node: node["inputs"]["seed"].update(tooltip="Blinks"), "not translated: LetsTalkSampler."),
    "a sign": (lambda node: node.update(description="a|b"), "reads as commands: LetsTalkSampler.description"),
    "a name": (lambda node: node.update(display_name="Sampler"), "LetsTalk: LetsTalkSampler.display_name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_file_and_key(case):
    english = {"LetsTalkSampler": read("en")["LetsTalkSampler"]}
    given = {"LetsTalkSampler": read("zh")["LetsTalkSampler"]}
    assert mistakes("zh", given, english) == []
    english["LetsTalkSampler"]["inputs"]["seed"]["tooltip"] = "Blinks"
    spoil, sentence = WRONG[case]
    spoil(given["LetsTalkSampler"])
    assert any(
        line.startswith("locales/zh/nodeDefs.json: ") and sentence in line for line in mistakes("zh", given, english)
    )


@pytest.mark.comfyui
def test_comfyui_serves_them(comfyui):
    served = comfyui.get("/i18n")
    for language in LANGUAGES:
        texts = served[language]["nodeDefs"]
        assert texts["MemoryBankLongVideo"] == read(language)["MemoryBankLongVideo"]
