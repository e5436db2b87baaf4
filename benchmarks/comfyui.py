"""Times of the templates in the real ComfyUI on this machine's CPU, and its memory against the length of a video.

    python benchmarks/comfyui.py

Prints JSON: seconds of each workflow, first run and with another seed; for Long Video of 15, 60 and 120 s the seconds
and the server's peak resident memory. Needs requirements-dev.txt; ComfyUI is fetched as the tests do it.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.audio.recording import read_audio  # noqa: E402
from letstalk_core.video.writer import VideoWriter  # noqa: E402
from tests.comfyui import Server  # noqa: E402

WORKFLOWS = REPOSITORY / "workflows" / "api"


def timed(server: Server, graph: dict) -> tuple[float, int]:
    """(seconds, peak MiB of the server) of one prompt that has to succeed."""
    process, peak, done = psutil.Process(server.process.pid), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    ended = server.run(graph)
    seconds = time.monotonic() - began
    done.set()
    watcher.join()
    assert ended.status == "success", ended.error
    return round(seconds, 1), peak >> 20


def recording(path: Path, seconds: int) -> None:
    """The example's speech again and again, as the sound of a video of one grey dot."""
    waveform, rate = read_audio(REPOSITORY / "assets" / "speech.wav")
    sound = waveform.repeat(1, -(-seconds * rate // waveform.shape[1]))[:, : seconds * rate]
    with VideoWriter(path, 16, 16, 25, (sound, rate)) as writer:
        for _ in range(seconds):
            writer.write(torch.zeros(25, 3, 16, 16))


if __name__ == "__main__":
    result: dict = {"workflows": {}, "long_video": {}}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder)).start()
        try:
            for seconds in (15, 60, 120):
                recording(server.input / f"{seconds}.mp4", seconds)
                graph = json.loads((WORKFLOWS / "long_video.json").read_text())
                graph["sound"] = {"class_type": "LoadAudio", "inputs": {"audio": f"{seconds}.mp4"}}
                next(n for n in graph.values() if n["class_type"] == "EncodeAudio")["inputs"]["audio"] = ["sound", 0]
                took, peak = timed(server, graph)
                result["long_video"][f"{seconds} s"] = {"seconds": took, "peak_mib": peak}
            for path in sorted(WORKFLOWS.glob("*.json")):
                graph, times = json.loads(path.read_text()), []
                for seed in (100, 101):
                    for node in graph.values():
                        if "seed" in node["inputs"]:
                            node["inputs"]["seed"] = seed
                    times.append(timed(server, graph)[0])
                result["workflows"][path.stem] = {"first": times[0], "another_seed": times[1]}
        finally:
            server.stop()
    print(json.dumps(result, indent=2))
