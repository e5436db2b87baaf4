"""workflows/api/queue_prompt.py: videos from running servers, and what happens when one of them is gone."""

import signal
import subprocess
import sys
import time
import wave

import pytest
from PIL import Image

from letstalk_core.video.reader import probe

pytestmark = pytest.mark.comfyui


SECONDS = 3  # that are spoken


def speak(repository, path) -> None:
    """The beginning of the example's speech as a file."""
    with wave.open(str(repository / "assets" / "speech.wav")) as whole, wave.open(str(path), "wb") as file:
        file.setparams(whole.getparams())
        file.writeframes(whole.readframes(SECONDS * whole.getframerate()))


def test_headless_with_files_of_ones_own(comfyui, repository, tmp_path):
    script = repository / "workflows" / "api" / "queue_prompt.py"
    Image.open(repository / "assets" / "scene.jpg").save(tmp_path / "one.jpg")
    for name in ("one", "two"):
        speak(repository, tmp_path / f"{name}.wav")
    (tmp_path / "two.png").write_bytes((repository / "assets" / "drawing.png").read_bytes())
    workflow = repository / "workflows" / "api" / "long_video.json"
    command = [sys.executable, script, "--workflow", workflow, "--batch", tmp_path, "--output", tmp_path / "out"]
    command += ["--server", "http://127.0.0.1:9", "--server", comfyui.url]  # nothing listens on the first
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 made" in done.stdout and "127.0.0.1:9 died" in done.stderr
    assert [probe(tmp_path / "out" / f"{name}.mp4").frames for name in ("one", "two")] == [25 * SECONDS] * 2
    (tmp_path / "two.wav").write_text("no sound")
    del command[-4:-2]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "1 of 2 made" in done.stdout and "Traceback" not in done.stderr


def test_files_go_where_the_workflow_takes_them(repository, workflow):
    sys.path.insert(0, str(repository / "workflows" / "api"))
    try:
        from queue_prompt import PromptError, with_inputs
    finally:
        sys.path.pop(0)
    with_example = with_inputs(workflow("long_video"), "me.png", "me.wav")
    assert {"LoadImage", "LoadAudio"} <= {node["class_type"] for node in with_example.values()}
    assert "LetsTalkExample" not in {node["class_type"] for node in with_example.values()}
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "old.png"}},
        "2": {"class_type": "LetsTalkAudioFile", "inputs": {"audio": "old.wav"}},
    }
    given = with_inputs(graph, "me.png", "me.wav")
    assert (given["1"]["inputs"]["image"], given["2"]["inputs"]["audio"]) == ("me.png", "me.wav")
    with pytest.raises(PromptError, match="no Load Image"):
        with_inputs({"1": graph["1"]}, "me.png", "me.wav")


def test_a_pair_goes_to_another_server_when_one_dies_in_the_middle(comfyui, repository, tmp_path):
    from .comfyui import Server

    doomed = Server(tmp_path / "doomed").start()
    for name in ("one", "two"):
        (tmp_path / f"{name}.png").write_bytes((repository / "assets" / "drawing.png").read_bytes())
        speak(repository, tmp_path / f"{name}.wav")
    command = [sys.executable, repository / "workflows" / "api" / "queue_prompt.py", "--server", doomed.url]
    command += ["--server", comfyui.url, "--batch", tmp_path, "--output", tmp_path / "out"]
    command += ["--workflow", repository / "workflows" / "api" / "long_video.json"]
    running = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while "Requested to load" not in doomed.log and time.monotonic() < until:
        time.sleep(0.05)
    doomed.stop(signal.SIGKILL)
    out, errors = running.communicate(timeout=240)
    assert running.returncode == 0, errors
    assert "2 of 2 made" in out and f"{doomed.url} died" in errors
    assert [probe(tmp_path / "out" / f"{name}.mp4").frames for name in ("one", "two")] == [25 * SECONDS] * 2
