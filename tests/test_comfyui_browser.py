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


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_opens_runs_and_ends_with_a_video_on_the_page(comfyui, workflow, repository, page, tmp_path, name):
    canvas = json.loads((repository / "workflows" / f"{name}.json").read_text())
    load(page, canvas)
    broken = "window.app.graph._nodes.filter(n => n.has_errors || !n.constructor.nodeData).map(n => n.type)"
    assert page.evaluate(broken) == []
    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    without_titles = {key: {k: node[k] for k in ("class_type", "inputs")} for key, node in sent.items()}
    assert without_titles == workflow(name)

    before = set(comfyui.get("/history"))
    page.evaluate("async () => { await window.app.queuePrompt(0) }")
    until = time.monotonic() + 240
    while not (ended := set(comfyui.get("/history")) - before) and time.monotonic() < until:
        page.wait_for_timeout(200)
    (prompt,) = ended
    ended = comfyui.wait(prompt)
    assert ended.status == "success", ended.error
    assert probe(ended.videos[0]).frames == 221
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
