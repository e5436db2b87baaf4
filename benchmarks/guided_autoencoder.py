"""The portrait-guided autoencoder on people whom it never met, on real footage, and against the clock.

    python benchmarks/guided_autoencoder.py AUTOENCODER --work FOLDER [--clips FOLDER] [--sheet FILE.png]

--work: of its training, where held-out puppets and drawings are kept. --clips: videos of real people; the first frame,
aligned by the face in it, is the portrait of the next ten seconds, and the mouth is looked for where portraits have it.
Prints JSON: PSNR in dB of the whole picture, mouth and eyes beside that of the still portrait; milliseconds a frame of
encoding and decoding on all cores, frames of puppets a second (nothing else should run). --sheet: rows of portrait,
truth, result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.autoencoders import find_autoencoder
from letstalk_core.data.people.cast import random_puppet
from letstalk_core.data.people.geometry import SIZE
from letstalk_core.data.people.gestures import random_controls
from letstalk_core.data.people.pictures import MOUTH_HALF, PuppetPictures
from letstalk_core.picture.autoencoder import Autoencoder
from letstalk_core.picture.face import ALIGNED, find_faces
from letstalk_core.picture.similarity import cut
from letstalk_core.pixels import images_to_pixels, normalise, pixels_to_images, pixels_to_pictures
from letstalk_core.training.bundled.train_portrait_autoencoder import HELD_OUT_PEOPLE, quality
from letstalk_core.training.reconstruction import psnr
from letstalk_core.video.reader import iter_video_frames

FRAMES, EVERY = 250, 5  # of a clip: ten seconds at 25 fps, every fifth frame is measured
TIMED, CLIP = 16, 40  # frames of a clip: of the autoencoder's, of puppets

Rows = list[torch.Tensor]


@torch.no_grad()
def reconstructed(autoencoder: Autoencoder, frames: torch.Tensor, portrait: torch.Tensor) -> torch.Tensor:
    return autoencoder.decode(autoencoder.encode(frames), autoencoder.look_at(portrait[None]))


def real(autoencoder: Autoencoder, folder: Path, rows: Rows) -> dict:
    """Gains over the still first frame, clip by clip; None where no face is found in it."""
    mouth = torch.zeros(SIZE, SIZE)
    (x, y), (width, height) = ALIGNED[2], MOUTH_HALF
    mouth[int(y - height) : int(y + height), int(x - width) : int(x + width)] = 1
    found = {}
    for video in sorted(folder.glob("*.mp4")):
        pictures = list(itertools.islice(iter_video_frames(video), 0, FRAMES, EVERY))
        faces = find_faces(pixels_to_pictures(pictures[0]))
        if not faces:
            found[video.stem] = None
            continue
        square = faces[0].to_aligned()  # the same for all, so that the background keeps still
        images = pixels_to_images(np.stack([cut(picture, square, SIZE) for picture in pictures]))
        portrait, frames = images[0], images[1:]
        output, still = reconstructed(autoencoder, frames, portrait), portrait.expand_as(frames)
        region = mouth.expand(len(frames), -1, -1)
        found[video.stem] = {
            "whole": psnr(output, frames), "gain": psnr(output, frames) - psnr(still, frames),
            "mouth": psnr(output, frames, region),
            "mouth gain": psnr(output, frames, region) - psnr(still, frames, region),
        }  # fmt: skip
        worst = int((output - frames).square().mean((1, 2, 3)).argmax())
        rows += [torch.cat([portrait, frames[i], output[i]], -1) for i in (len(frames) // 2, worst)]
    if not found:
        return {}
    known = [numbers for numbers in found.values() if numbers]
    medians = {name: float(np.median([numbers[name] for numbers in known])) for name in ("gain", "mouth gain")}
    return {"median": medians, "clips": found}


@torch.inference_mode()
def times(autoencoder: Autoencoder) -> dict[str, float]:
    """Milliseconds a frame."""
    images = torch.rand(TIMED, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last) * 2 - 1
    seen, latents = autoencoder.look_at(images[:1]), autoencoder.encode(images)
    measured = {}
    for name, run in (
        ("encode", lambda: autoencoder.encode(images)),
        ("decode", lambda: autoencoder.decode(latents, seen)),
    ):
        run()
        began = time.perf_counter()
        for _ in range(3):
            run()
        measured[f"{name}, ms"] = 1000 * (time.perf_counter() - began) / (3 * TIMED)
    return measured


def puppet_speed(processes: int) -> float:
    """Frames a second of puppets in clips of CLIP frames, each of a new one, in so many processes."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(render_clip, range(processes)))  # imports are not counted
        began = time.perf_counter()
        list(pool.map(render_clip, range(8 * processes)))
    return 8 * processes * CLIP / (time.perf_counter() - began)


def render_clip(seed: int) -> None:
    puppet, rng = random_puppet(seed)
    puppet.render(random_controls(rng, CLIP))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    autoencoder = find_autoencoder(str(arguments.autoencoder)).to(memory_format=torch.channels_last)
    report: dict = quality(autoencoder, arguments.work)
    held = PuppetPictures(arguments.work / "puppets-heldout", HELD_OUT_PEOPLE, held_out=True)
    rows: Rows = []
    for number in range(0, HELD_OUT_PEOPLE, HELD_OUT_PEOPLE // 12):
        poses = normalise(torch.from_numpy(held.pictures[number]))
        output = reconstructed(autoencoder, poses[1:3], poses[0])
        rows += [torch.cat([poses[0], truth, made], -1) for truth, made in zip(poses[1:3], output, strict=True)]
    if arguments.clips:
        report["real people"] = real(autoencoder, arguments.clips, rows)
    report["times"] = times(autoencoder) | {"puppets, frames/s": puppet_speed(os.cpu_count() or 1)}
    if arguments.sheet:
        rows += [torch.full_like(rows[0], -1.0)] * (-len(rows) % 3)
        sheet = torch.cat([torch.cat(rows[i : i + 3], -1) for i in range(0, len(rows), 3)], -2)
        Image.fromarray(images_to_pixels(sheet).numpy()).save(arguments.sheet)
    autoencoder = autoencoder.to(torch.bfloat16)  # what a pipeline takes on a CPU that computes in it
    report["in bfloat16"] = {**quality(autoencoder, arguments.work), "times": times(autoencoder)}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
