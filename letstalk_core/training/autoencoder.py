"""Training of the small bundled DC-AE on pictures of drawn portraits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..autoencoder import SMALL_DC_AE, Autoencoder, build_autoencoder
from ..data.pictures import POSES, held_out_pictures, render_pictures
from .loop import Loss, TrainingRun, small_config

IMAGE_SIZE = 128
LATENT_NOISE = 0.05  # of the latents' own deviation, so that the decoder forgives what a transformer gets wrong


# What the loss looks at: mouth and eyes are small and what people look at, the latents are made for them.
REGION_WEIGHTS = (1.0, 4.0, 4.0)  # elsewhere, mouth, eyes
SQUARED_WEIGHT = 4.0  # of squared beside absolute differences


def to_images(pictures: np.ndarray) -> Tensor:
    """uint8 [n, H, W, 3] -> float [n, 3, H, W] in -1..1, channels last in memory."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def reconstruction_loss(output: Tensor, images: Tensor, regions: Tensor) -> Tensor:
    """Absolute, squared and edge differences of [n, 3, H, W], weighted by region [n, H, W]."""
    weight = torch.tensor(REGION_WEIGHTS)[regions][:, None]
    weight = weight / weight.mean()
    difference = output - images
    edges = sum(
        (difference.diff(dim=axis).abs() * weight.narrow(axis, 1, weight.shape[axis] - 1)).mean() for axis in (2, 3)
    )
    return (weight * (difference.abs() + SQUARED_WEIGHT * difference.square())).mean() + 0.5 * edges


def psnr(output: Tensor, images: Tensor, mask: Tensor | None = None) -> float:
    """Mean peak signal-to-noise ratio in dB of [n, 3, H, W] in -1..1, inside mask [n, H, W] if given."""
    error = (output.clamp(-1, 1) - images).square().mean(1) / 4
    if mask is None:
        error = error.mean((1, 2))
    else:
        error = (error * mask).sum((1, 2)) / mask.sum((1, 2))
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


@torch.no_grad()
def autoencoder_quality(autoencoder: Autoencoder, work: Path) -> dict[str, float]:
    """PSNR in dB on held-out people: whole picture, mouth, eyes."""
    pictures, regions, _ = held_out_pictures(work, IMAGE_SIZE)
    images, regions = to_images(pictures), torch.from_numpy(regions)
    output = autoencoder.decode(autoencoder.encode(images))
    return {
        "psnr": psnr(output, images),
        "psnr_mouth": psnr(output, images, regions == 1),
        "psnr_eyes": psnr(output, images, regions == 2),
    }


def train_autoencoder(work: Path, steps: int, identities: int = 2500, batch: int = 8) -> Autoencoder:
    """Train in work/autoencoder (resumed if begun); returns the averaged model with the scale of its latents set."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(SMALL_DC_AE).to(memory_format=torch.channels_last)
    run = TrainingRun(work / "autoencoder", autoencoder, small_config(steps, 8e-4))
    pictures, regions = render_pictures(work, identities, POSES, IMAGE_SIZE)

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((1, step, 0))
        index = np.sort(rng.choice(len(pictures), batch, replace=False))
        images, region = to_images(pictures[index]), torch.from_numpy(regions[index // POSES]).long()
        if rng.random() < 0.5:
            images, region = images.flip(3), region.flip(2)
        with run.accelerator.autocast():
            latents = autoencoder.model.encode(images).latent.float()
            noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
            output = autoencoder.model.decode(latents + LATENT_NOISE * latents.detach().std() * noise).sample.float()
        loss = reconstruction_loss(output, images, region)
        return Loss(loss, {"mse": F.mse_loss(output.detach(), images)})

    run.fit(loss_of)
    result = run.averaged()
    with torch.no_grad():
        result.latent_scale = float(1 / result.encode(to_images(pictures[:: max(1, len(pictures) // 256)])).std())
    return result
