"""Training of the framing network: drawings, moved and scaled at random, and where they should have been.

python -m letstalk_core.training.bundled.train_framing WORK_FOLDER makes letstalk_core/picture/framing.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.drawn.stills import POSES, held_out_pictures, render_pictures
from ...picture.framing import SIZE, WEIGHTS, FramingNet
from ...pixels import pixels_to_images
from ...weights import write_network
from ..loop import Loss, TrainingRun, small_config
from .train_small_autoencoder import IMAGE_SIZE

# How a picture goes on outside: mostly as crops of portraits do (picture/portrait.py).
BORDERS = (cv2.BORDER_REPLICATE, cv2.BORDER_REPLICATE, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101)


def random_crop(picture: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A square about the picture, off in size, place and tilt: crop uint8 [64,64,3] and FramingNet's answer to it."""
    near = 0.35 if rng.random() < 0.5 else 1.0  # half of them are nearly right, as in the later rounds of a search
    side = np.exp(near * rng.uniform(-0.5, 0.6))  # the crop's, in picture sides
    x, y = near * rng.uniform(-0.25, 0.25, 2)  # offset of the crop's centre, in picture sides
    angle = rng.normal(0, 3)
    zoom = SIZE / (side * IMAGE_SIZE)
    matrix = cv2.getRotationMatrix2D(((0.5 + x) * IMAGE_SIZE, (0.5 + y) * IMAGE_SIZE), angle, zoom)
    matrix[:, 2] += SIZE / 2 - np.array([0.5 + x, 0.5 + y]) * IMAGE_SIZE
    border = BORDERS[rng.integers(len(BORDERS))]
    crop = cv2.warpAffine(picture, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=border)
    # The tilt turns the offset too, by an angle too small to matter.
    return crop, np.array([-np.log(side), -x / side, -y / side], np.float32)


def random_crops(pictures: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One random crop of each picture, [n,3,64,64] in -1..1, in changed colours, and FramingNet's answers [n,3]."""
    crops, targets = zip(*(random_crop(picture, rng) for picture in pictures), strict=True)
    images = pixels_to_images(np.stack(crops))
    gain, lift = rng.uniform(0.7, 1.2, (len(images), 3, 1, 1)), rng.normal(0, 0.1, (len(images), 3, 1, 1))
    images = (images * torch.from_numpy(gain).float() + torch.from_numpy(lift).float()).clamp(-1, 1)
    return images, torch.from_numpy(np.stack(targets))


def train_framing(work: Path, people: int = 2500, steps: int = 4000, batch: int = 48) -> FramingNet:
    """Train the network in work/framing (resumed if begun), on the autoencoder's training pictures."""
    pictures = render_pictures(work, people, POSES, IMAGE_SIZE)[0]
    torch.manual_seed(0)
    net = FramingNet().to(memory_format=torch.channels_last)
    run = TrainingRun(work / "framing", net, small_config(steps, 1.5e-3))

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((7, step))
        images, targets = random_crops(pictures[np.sort(rng.choice(len(pictures), batch, replace=False))], rng)
        if rng.random() < 0.5:
            images, targets = images.flip(3), targets * torch.tensor([1.0, -1.0, 1.0])
        return Loss(F.smooth_l1_loss(run.module(images), targets, beta=0.05))

    run.fit(loss_of)
    return run.averaged()


@torch.inference_mode()
def framing_error(net: FramingNet, work: Path) -> dict[str, float]:
    """Root mean square errors on held-out people: side as a ratio, x and y in pixels of a 128-pixel picture."""
    images, targets = random_crops(held_out_pictures(work, IMAGE_SIZE)[0], np.random.default_rng(8))
    error = (net(images) - targets).square().mean(0).sqrt()
    return {"side": float(error[0]), "x": float(error[1]) * IMAGE_SIZE, "y": float(error[2]) * IMAGE_SIZE}


if __name__ == "__main__":
    trained = train_framing(Path(sys.argv[1]))
    print("errors on held-out people:", framing_error(trained, Path(sys.argv[1])))
    write_network(WEIGHTS, trained)
