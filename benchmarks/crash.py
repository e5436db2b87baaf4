"""Ends a rendering in every bad way, resumes it, and compares every decoded frame with those of an uninterrupted run.

    python benchmarks/crash.py [KILLS] [SECONDS] [SEED]     # default: 25 SIGKILLs at random moments of 60 s of video

Then a work folder that is removed in mid-run, and a disk that fills up (a small tmpfs, which takes root to mount).
Writes the counts into docs/long_video.json under "crash SEED"; a job that had ended before its moment came does not
count. Needs requirements-dev.txt.
"""

import contextlib
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

from long_video import PORTRAIT, save, write_recording  # noqa: E402

from letstalk_core.video.reader import iter_video_frames  # noqa: E402


def start(recording: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "letstalk_core", "generate", "--portrait", PORTRAIT, "--audio", recording]
    command += ["--output", output, "--device", "cpu"]
    return subprocess.Popen(
        [str(part) for part in command], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(recording: Path, output: Path) -> None:
    process = start(recording, output)
    _, error = process.communicate()
    assert process.returncode == 0, error


def frames_of(video: Path) -> tuple[int, str]:
    """(number of frames, digest of their pixels)."""
    digest, count = hashlib.sha256(), 0
    for frame in iter_video_frames(video):
        digest.update(frame.tobytes())
        count += 1
    return count, digest.hexdigest()


def segments(output: Path) -> int:
    return len(list(output.parent.glob("*.work-*/*.safetensors")))


def wait_for(output: Path, count: int, process: subprocess.Popen) -> None:
    while segments(output) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def killed(recording: Path, output: Path, seconds: float) -> int | None:
    """SIGKILL after so long, then the same command again; returns how many segments it found, None if it had ended."""
    process = start(recording, output)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = segments(output)
    finish(recording, output)
    return found


def disk_filled(recording: Path, output: Path) -> str:
    """A second file takes all space once two segments are there; returns the sentence."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", output.parent], check=True)
    process = start(recording, output)
    wait_for(output, 2, process)
    filler = output.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    told = process.communicate()[1].strip().splitlines()
    assert process.returncode == 1 and len(told) == 1 and not output.exists(), told
    filler.unlink()
    finish(recording, output)
    return told[0]


def folder_removed(recording: Path, output: Path) -> str:
    """Somebody removes the work folder once two segments are there; returns the sentence."""
    process = start(recording, output)
    wait_for(output, 2, process)
    while folders := list(output.parent.glob("*.work-*")):
        shutil.rmtree(folders[0], ignore_errors=True)
    told = process.communicate()[1].strip().splitlines()
    assert process.returncode == 1 and len(told) == 1 and not output.exists(), told
    finish(recording, output)
    return told[0]


if __name__ == "__main__":
    kills, seconds, seed = (int(value) for value in (sys.argv[1:] + ["25", "60", "1"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        recording, output = Path(folder) / "speech.wav", Path(folder) / "out" / "talk.mp4"
        output.parent.mkdir()
        write_recording(recording, seconds)
        began = time.monotonic()
        finish(recording, output)
        whole, wanted = time.monotonic() - began, frames_of(output)
        chance, moments, found, equal = random.Random(seed), [], [], 0
        while len(moments) < kills:
            moment = chance.uniform(0, whole)
            output.unlink()
            segments_found = killed(recording, output, moment)
            if segments_found is None:
                continue
            moments.append(moment)
            found.append(segments_found)
            equal += frames_of(output) == wanted
            print(f"killed after {moment:.1f} s with {found[-1]} segments: {equal} of {len(found)} equal", flush=True)
        told = {}
        for name, accident in (("folder removed", folder_removed), ("disk full", disk_filled)):
            output.unlink(missing_ok=True)
            try:
                told[name] = accident(recording, output).replace(folder, "FOLDER")
                told[f"{name}: frames equal"] = frames_of(output) == wanted
                left = [path.name for path in output.parent.iterdir()]
                assert left == [output.name], left
            finally:
                subprocess.run(["umount", output.parent], check=False, stderr=subprocess.DEVNULL)
    save(f"crash {seed}", {
        "seconds_of_video": seconds,
        "frames": wanted[0],
        "seconds_uninterrupted": round(whole, 1),
        "killed": kills,
        "equal_after_kill": equal,
        "killed_after_seconds": [round(moment, 1) for moment in moments],
        "segments_found": found,
        **told,
    })  # fmt: skip
