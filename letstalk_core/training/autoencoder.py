"""Training of the small bundled DC-AE on pictures of drawn portraits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..autoencoder import SMALL_DC_AE, Autoencoder, build_autoencoder
from ..data.pictures import HELD_OUT, render_pictures
from .loop import TrainingRun

IMAGE_SIZE = 128
REGION_WEIGHT = torch.tensor([1.0, 6.0, 4.0])  # elsewhere, mouth, eyes: small, and what people look at
LATENT_NOISE = 0.05  # of the latents' own deviation, so that the decoder forgives what a transformer gets wrong


def to_images(pictures: np.ndarray) -> Tensor:
    """uint8 [n, H, W, 3] -> float [n, 3, H, W] in -1..1, channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def reconstruction_loss(output: Tensor, images: Tensor, regions: Tensor) -> Tensor:
    """Absolute, squared and edge differences of [n, 3, H, W], weighted by region [n, H, W]."""
    weight = REGION_WEIGHT[regions][:, None]
    weight = weight / weight.mean()
    difference = output - images
    edges = sum(
        (difference.diff(dim=axis).abs() * weight.narrow(axis, 1, weight.shape[axis] - 1)).mean() for axis in (2, 3)
    )
    return (weight * (difference.abs() + 4 * difference.square())).mean() + 0.5 * edges


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
    pictures, regions = render_pictures(work, 48, 4, IMAGE_SIZE, HELD_OUT, "pictures-heldout")
    images = to_images(pictures)
    regions = torch.from_numpy(regions).repeat_interleave(4, 0)
    output = autoencoder.decode(autoencoder.encode(images))
    return {
        "psnr": psnr(output, images),
        "psnr_mouth": psnr(output, images, regions == 1),
        "psnr_eyes": psnr(output, images, regions == 2),
    }


def train_autoencoder(
    work: Path, steps: int, identities: int = 2500, batch: int = 8, decoder_only: bool = False
) -> Autoencoder:
    """Train in work/autoencoder (resumed if begun) and return the averaged model with its latent scale set.

    decoder_only continues a finished run in work/decoder with the encoder fixed: latents stay what they were, so this
    can go on while a transformer learns them.
    """
    poses = 12
    pictures, regions = render_pictures(work, identities, poses, IMAGE_SIZE)
    torch.manual_seed(0)
    autoencoder = build_autoencoder(SMALL_DC_AE).to(memory_format=torch.channels_last)
    name = "decoder" if decoder_only else "autoencoder"
    if decoder_only:
        autoencoder.load_state_dict(torch.load(work / "autoencoder" / "state.pt", weights_only=True)["averaged"])
        autoencoder.model.encoder.requires_grad_(False)
    run = TrainingRun(work / name, autoencoder, steps, peak=3e-4 if decoder_only else 8e-4)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((1, step, int(decoder_only)))
        index = np.sort(rng.choice(len(pictures), batch, replace=False))
        images = to_images(pictures[index])
        if rng.random() < 0.5:
            images, region = images.flip(3), torch.from_numpy(regions[index // poses]).flip(2)
        else:
            region = torch.from_numpy(regions[index // poses])
        latents = autoencoder.model.encode(images).latent
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        latents = latents + LATENT_NOISE * latents.detach().std() * noise
        output = autoencoder.model.decode(latents).sample
        loss = reconstruction_loss(output, images, region.long())
        with torch.no_grad():
            numbers = {"loss": loss.item(), "mse": F.mse_loss(output, images).item()}
        return loss, numbers

    run.fit(loss_of)
    result = run.averaged.eval()
    with torch.no_grad():
        sample = to_images(pictures[:: max(1, len(pictures) // 256)])
        result.latent_scale = float(1 / result.encode(sample).std()) * result.latent_scale
    return result
