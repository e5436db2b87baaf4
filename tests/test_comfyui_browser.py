"""What a user of ComfyUI sees: each workflow opened and queued in ComfyUI's own front end, in a real browser.

SCREENSHOTS=docs python -m pytest tests/test_comfyui_browser.py renews the screenshots of the documentation.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from letstalk_core.video.reader import probe

from .test_comfyui import WORKFLOWS

pytestmark = pytest.mark.comfyui

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)


@pytest.fixture(scope="module")
def page(comfyui):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser_path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser_path is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1900, "height": 900})
        page.goto(comfyui.url)
        page.wait_for_function("window.app && window.app.graph && window.app.canvas", timeout=120_000)
        page.wait_for_timeout(3000)
        yield page
        browser.close()


def load(page, canvas: dict) -> None:
    page.keyboard.press("Escape")  # the Templates dialog of a first visit
    page.evaluate("async (data) => { await window.app.loadGraphData(data) }", canvas)
    page.wait_for_function(f"window.app.graph._nodes.length == {len(canvas['nodes'])}")
    page.wait_for_timeout(500)


def run(comfyui, page, frames: int = 221) -> None:
    """Queues the page's graph, which makes a video of the example's speech, or of as many frames."""
    before = set(comfyui.get("/history"))
    page.evaluate("async () => { await window.app.queuePrompt(0) }")
    until = time.monotonic() + 240
    while not (ended := set(comfyui.get("/history")) - before) and time.monotonic() < until:
        page.wait_for_timeout(200)
    (prompt,) = ended
    ended = comfyui.wait(prompt)
    assert ended.status == "success", ended.error
    assert probe(ended.videos[0]).frames == frames


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_opens_runs_and_ends_with_a_video_on_the_page(comfyui, workflow, repository, page, tmp_path, name):
    canvas = json.loads((repository / "workflows" / f"{name}.json").read_text())
    load(page, canvas)
    broken = "window.app.graph._nodes.filter(n => n.has_errors || !n.constructor.nodeData).map(n => n.type)"
    assert page.evaluate(broken) == []
    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    without_titles = {key: {k: node[k] for k in ("class_type", "inputs")} for key, node in sent.items()}
    assert without_titles == workflow(name)

    run(comfyui, page, 207 if name == "two_people_talking" else 221)  # of the example's dialogue
    page.wait_for_function("document.querySelector('video') && document.querySelector('video').readyState >= 2")
    page.evaluate("document.querySelectorAll('video').forEach(v => { v.pause(); v.currentTime = 1.32 })")
    page.wait_for_timeout(1500)
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    page.screenshot(path=str(folder / f"graph_{name}.png"))
    assert (folder / f"graph_{name}.png").stat().st_size > 20_000


def test_a_template_is_picked_from_the_dialog(comfyui, page):
    page.evaluate("window.app.graph.clear()")
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text("ComfyUI-LetsTalk").first.click()
    page.get_by_text("long video").first.click()
    page.wait_for_function("window.app.graph._nodes.some(n => n.type == 'MemoryBankLongVideo')", timeout=20_000)


CONNECT = """
(seed) => {
    const add = (kind) => { const node = LiteGraph.createNode(kind); window.app.graph.add(node); return node }
    const [talking] = window.app.graph._nodes, example = add("LetsTalkExample"), save = add("SaveVideo")
    talking.widgets.find((widget) => widget.name == "seed").value = seed
    example.connect(0, talking, 0)
    example.connect(1, talking, 1)
    talking.connect(0, save, 0)
    return talking.title
}
"""


def test_the_subgraph_is_found_added_and_run_as_one_node(comfyui, page):
    page.keyboard.press("Escape")
    page.evaluate("window.app.graph.clear()")
    page.mouse.dblclick(1000, 300)
    page.wait_for_timeout(800)
    page.keyboard.type("talking portrait", delay=20)
    page.wait_for_timeout(1200)
    page.keyboard.press("Enter")
    page.wait_for_timeout(800)
    page.mouse.click(1000, 300)  # put down
    page.wait_for_function("window.app.graph._nodes.length == 1", timeout=20_000)
    assert page.evaluate(CONNECT, 5) == "Talking Portrait (LetsTalk)"
    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    (inputs,) = (node["inputs"] for node in sent.values() if node["class_type"] == "MemoryBankLongVideo")
    assert inputs["seed"] == 5 and inputs["blinks"] == 16 and inputs["picture"] == "full picture"
    run(comfyui, page)


def test_nodes_speak_the_language_that_is_set(comfyui, page):
    def set_language(code: str) -> None:
        page.evaluate("async (code) => { await window.app.extensionManager.setting.set('Comfy.Locale', code) }", code)
        page.reload()
        page.wait_for_function("window.app && window.app.graph && window.app.canvas", timeout=120_000)
        page.wait_for_timeout(3000)

    set_language("ja")
    try:
        title, labels = page.evaluate(
            """() => {
                const node = LiteGraph.createNode("LetsTalkSampler")
                return [node.title, Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.label]))]
            }"""
        )
    finally:
        set_language("en")
    assert title == "LetsTalk サンプラー"
    assert labels["seed"] == "シード" and labels["cfg"] == "ガイダンススケール" and labels["blinks"] == "まばたき"
