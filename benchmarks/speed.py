"""Computing time per second of video and peak memory of the command line: `generate`, as a square video of the model's
own size, of the example (the portrait and the recording in assets/) and of a longer recording.

    python benchmarks/speed.py [SECONDS]

Each is one process from start to end, imports and model loading included; the difference of the two tells what a
further second of video costs.
"""

import json
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
PORTRAIT, SPEECH = (REPOSITORY / "assets" / name for name in ("portrait.jpg", "speech.wav"))


def repeated(path: Path, seconds: float) -> Path:
    """The example recording over and over, exactly `seconds` long."""
    with wave.open(str(SPEECH), "rb") as source, wave.open(str(path), "wb") as target:
        target.setparams(source.getparams())
        samples = source.readframes(source.getnframes())
        wanted = round(seconds * source.getframerate()) * source.getsampwidth()
        target.writeframes((samples * (wanted // len(samples) + 1))[:wanted])
    return path


def measure(recording: Path, output: Path) -> dict:
    with wave.open(str(recording), "rb") as file:
        length = file.getnframes() / file.getframerate()
    files = ("--portrait", PORTRAIT, "--audio", recording, "--output", output)
    command = [sys.executable, "-m", "letstalk_core", "generate", *files, "--device", "cpu"]
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen([str(part) for part in command], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    if process.wait() != 0:
        raise SystemExit("generate failed")
    seconds = time.perf_counter() - began
    return {
        "video_seconds": round(length, 2),
        "seconds": round(seconds, 1),
        "seconds_per_video_second": round(seconds / length, 3),
        "peak_mib": round(peak / 2**20),
    }


if __name__ == "__main__":
    longer = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.mp4"
        example = measure(SPEECH, output)
        long = measure(repeated(Path(folder) / "long.wav", longer), output)
    further = (long["seconds"] - example["seconds"]) / (long["video_seconds"] - example["video_seconds"])
    found = {"square_example": example, "longer": long, "seconds_per_further_video_second": round(further, 3)}
    print(json.dumps(found, indent=2))
