"""Does `prepare` make the same of many videos, whoever runs it and however often it is killed? And how fast is it?

    python benchmarks/preparing_videos.py [--work DIR] [--videos 200] [--clips FOLDER] [--hours 68]

Writes videos of puppets who speak (1280 x 720, 25 frames a second) into DIR (default runs/preparing), puts those of
FOLDER beside them, and prepares all by the command line: by a pool of processes and by Ray, each once whole and once
killed when half is done and run again. The manifests and shards of all must be the same, byte for byte. Prints JSON:
seconds and seconds of video a second of each, with one process on a part of the videos, too, and what follows for
--hours of video on this machine and on ten. Needs requirements-dev.txt and espeak-ng; what is in DIR is done again.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.data.people import show  # noqa: E402
from letstalk_core.data.preparation.manifest import MANIFEST, read_manifest  # noqa: E402
from letstalk_core.data.speech.sentences import random_sentence  # noqa: E402
from letstalk_core.pixels import images_to_pixels  # noqa: E402
from letstalk_core.video.writer import VideoWriter  # noqa: E402

FPS, RATE = 25, 16000
FRAMES = 26  # of a video
WIDTH, HEIGHT = 1280, 720
PART = 8  # one process alone prepares one in so many videos
MACHINES = 10


def write_videos(folder: Path, count: int) -> None:
    """Stretches of what a few puppets say: so many people need not be rendered."""
    folder.mkdir(parents=True)
    rng, made = np.random.default_rng(0), 0
    with tqdm(total=count, desc="videos") as bar:
        for person in range(count):
            speech = show.speak(" ".join(random_sentence(rng, "en-us") for _ in range(4)))
            frames = torch.cat(list(show.frames_of(show.choose_puppet(person, 0), speech, person, 0.3)))
            pixels, sound = images_to_pixels(frames).numpy(), torch.from_numpy(speech.waveform)[None]
            for start in range(0, len(pixels) - FRAMES + 1, FRAMES):
                part = sound[:, start * RATE // FPS : (start + FRAMES) * RATE // FPS]
                write_video(folder / f"{made:03d}.mp4", pixels[start : start + FRAMES], part)
                made += 1
                bar.update()
                if made == count:
                    return


def write_video(path: Path, frames: np.ndarray, sound: torch.Tensor) -> None:
    with VideoWriter(path, WIDTH, HEIGHT, FPS, (sound, RATE), preset="ultrafast") as writer:
        for frame in frames:
            picture = np.full((1, HEIGHT, WIDTH, 3), 90, np.uint8)
            left = (WIDTH - HEIGHT) // 2
            picture[0, :, left : left + HEIGHT] = cv2.resize(frame, (HEIGHT, HEIGHT), interpolation=cv2.INTER_CUBIC)
            writer.write(picture)


def start(videos: Path, output: Path, engine: str, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "letstalk_core", "prepare", videos, "--output", output, "--engine", engine]
    return subprocess.Popen(
        list(map(str, [*command, "--workers", workers])), cwd=REPOSITORY, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors.decode()[-2000:])


def whole(videos: Path, output: Path, engine: str, workers: int) -> float:
    """Seconds of one preparation from nothing."""
    began = time.monotonic()
    finish(start(videos, output, engine, workers))
    return time.monotonic() - began


def killed(videos: Path, output: Path, engine: str, workers: int, count: int) -> int:
    """A preparation that is killed when half of the videos are done, and run again; returns how many were done."""
    process = start(videos, output, engine, workers)
    while len(list(output.glob("work/*.json"))) < count // 2:
        if process.poll() is not None:
            finish(process)
            raise SystemExit("It ended before it could be killed; take more videos.")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list(output.glob("work/*.json")))
    finish(start(videos, output, engine, workers))
    return done


def digest(output: Path) -> str:
    """Of the manifest, the shards and what is known of each video."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in (MANIFEST, "*/*.tar", "work/*.json") for path in output.glob(pattern)):
        found.update(f"{path.relative_to(output)} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def seconds_of(output: Path) -> float:
    return sum(row["seconds"] for row in read_manifest(output / MANIFEST))


def some_of(videos: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in sorted(videos.iterdir())[::PART]:
        os.link(path, folder / path.name)
    return folder


def main(work: Path, count: int, clips: Path | None, hours: float) -> dict:
    videos, workers = work / "videos", os.cpu_count() or 1
    if not videos.exists():
        write_videos(work / "part", count)
        for clip in sorted(clips.glob("*.mp4")) if clips else []:
            shutil.copyfile(clip, work / "part" / f"clip-{clip.name}")
        (work / "part").rename(videos)
    files, digests = len(list(videos.iterdir())), {}
    result = {"videos": files, "workers": workers, "seconds_of_video": None, "engines": {}}
    for name in ("local", "ray", "killed-local", "killed-ray", "one", "some"):
        shutil.rmtree(work / name, ignore_errors=True)
    for engine in ("local", "ray"):
        took = whole(videos, work / engine, engine, workers)
        length = result["seconds_of_video"] = seconds_of(work / engine)
        again = killed(videos, work / f"killed-{engine}", engine, workers, files)
        digests |= {engine: digest(work / engine), f"killed {engine}": digest(work / f"killed-{engine}")}
        result["engines"][engine] = {"seconds": took, "rate": length / took, "done_when_killed": again}
    took = whole(some_of(videos, work / "some"), work / "one", "local", 1)
    result["engines"]["local, one process"] = {"seconds": took, "rate": seconds_of(work / "one") / took}
    rows = read_manifest(work / "local" / MANIFEST)
    result |= {"clips": len(rows), "kept": sum(row["kept"] for row in rows), "same": len(set(digests.values())) == 1}
    for engine in ("local", "ray"):
        here = hours / result["engines"][engine]["rate"]
        result["engines"][engine] |= {"hours_here": here, f"hours_on_{MACHINES}": here / MACHINES}
    return result | {"digests": digests}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "preparing")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--hours", type=float, default=68.0, help="of the projection; CelebV-HQ's by default")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    print(json.dumps(main(given.work, given.videos, given.clips, given.hours), indent=2))
