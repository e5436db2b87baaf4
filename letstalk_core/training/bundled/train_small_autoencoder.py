"""The bundled model's autoencoder: the small DC-AE on drawn people."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ...data.drawn.stills import held_out_pictures
from ...picture.autoencoder import Autoencoder, load_autoencoder
from ...pixels import pixels_to_images
from ..loop import small_config
from ..reconstruction import psnr
from ..train_autoencoder import IMAGE_SIZE, train_autoencoder
from ..training_config import AutoencoderTraining


@torch.no_grad()
def autoencoder_quality(autoencoder: Autoencoder, work: Path) -> dict[str, float]:
    """PSNR in dB of reconstructed held-out people: whole picture, mouth, eyes."""
    pictures, regions, _ = held_out_pictures(work, IMAGE_SIZE)
    images, regions = pixels_to_images(pictures), torch.from_numpy(regions)
    output = autoencoder.decode(autoencoder.encode(images))
    return {
        "psnr": psnr(output, images),
        "psnr_mouth": psnr(output, images, regions == 1),
        "psnr_eyes": psnr(output, images, regions == 2),
    }


def train_bundled_autoencoder(work: Path, steps: int, people: int = 2500, batch: int = 8) -> Autoencoder:
    """Train the small DC-AE on drawn people, in work/autoencoder (resumed if begun); KeyboardInterrupt if stopped."""
    config = AutoencoderTraining(
        run=str(work / "autoencoder"), data="avatar", data_path=str(work), avatar_people=people,
        image_size=IMAGE_SIZE, batch_size=batch, workers=0, **dataclasses.asdict(small_config(steps, 8e-4)),
    )  # fmt: skip
    path = train_autoencoder(config)
    if path is None:
        raise KeyboardInterrupt
    return load_autoencoder(path).to(memory_format=torch.channels_last)
