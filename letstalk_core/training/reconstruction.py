"""The loss of an autoencoder: what it is given, what it should give back, and where that counts most."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..picture.autoencoder import Autoencoder
from ..pixels import normalise
from .examples import on_device
from .loop import Loss
from .transformer_loss import Draws

LATENT_NOISE = 0.05  # share of the latents' deviation: the decoder learns to forgive what a transformer gets wrong


# Weight of the loss elsewhere, in the mouth and in the eyes: these are small, and what people look at.
REGION_WEIGHTS = (1.0, 8.0, 8.0)
SQUARED_WEIGHT = 4.0  # weight of squared beside absolute differences


def reconstruction_loss(
    output: Tensor, images: Tensor, regions: Tensor | None = None, weights: tuple[float, ...] = REGION_WEIGHTS
) -> Tensor:
    """Absolute, squared and edge differences of two batches [B, 3, H, W], one number for each example [B].

    regions [B, H, W]: 1 in the mouth, 2 in the eyes, 0 elsewhere, each with its weight.
    """
    difference = output - images
    weight = torch.ones_like(images[:, :1])
    if regions is not None:
        weight = torch.tensor(weights, device=images.device)[regions.long()][:, None]
        weight = weight / weight.mean((1, 2, 3), keepdim=True)
    edges = sum(
        (difference.diff(dim=axis).abs() * weight.narrow(axis, 1, weight.shape[axis] - 1)).mean((1, 2, 3))
        for axis in (2, 3)
    )
    return (weight * (difference.abs() + SQUARED_WEIGHT * difference.square())).mean((1, 2, 3)) + 0.5 * edges


def psnr(output: Tensor, images: Tensor, mask: Tensor | None = None) -> float:
    """Mean peak signal-to-noise ratio in dB of [n, 3, H, W] in -1..1, inside mask [n, H, W] if given."""
    return float(psnrs(output, images, mask).mean())


def psnrs(output: Tensor, images: Tensor, mask: Tensor | None = None) -> Tensor:
    """That of each picture, [n]."""
    error = (output.clamp(-1, 1) - images).square().mean(1) / 4
    if mask is None:
        error = error.mean((1, 2))
    else:
        error = (error * mask).sum((1, 2)) / mask.sum((1, 2))
    return -10 * error.clamp_min(1e-10).log10()


def with_noise(latents: Tensor, noise: Tensor) -> Tensor:
    """Latents [B,C,h,w] with noise of deviation 1, times LATENT_NOISE of their deviation."""
    deviation = latents.detach().float().std((1, 2, 3), keepdim=True)  # each one's own: its batch must not matter
    return latents + LATENT_NOISE * deviation * noise


class Reconstructor(nn.Module):
    """The way to latents and back in one forward pass, as distributed training needs it; unclamped."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor, noise: Tensor, portraits: Tensor | None = None) -> Tensor:
        """Images [B,3,S,S] in -1..1, reconstructed with noise [B,C,h,w] of deviation 1 on latents (LATENT_NOISE).

        portraits: [B,3,S,S] in -1..1, where the autoencoder is guided.
        """
        seen = None if portraits is None else self.autoencoder.look_at(portraits)
        latents = with_noise(self.autoencoder.encode(images, len(images)).float(), noise)
        return self.autoencoder.decoded(latents, seen).float()


class ReconstructionLoss:
    """The loss of batches (training/examples.py); every random number follows from an example's own seed."""

    def __init__(self, autoencoder: Autoencoder, device: torch.device):
        self.channels, self.downscale, self.device = autoencoder.latent_channels, autoencoder.downscale, device
        self.guided = autoencoder.guided

    def __call__(self, reconstructor: nn.Module, batch: dict) -> Loss:
        """The loss of one batch; reconstructor: a Reconstructor, as accelerate prepared it."""
        batch = on_device(batch, self.device)
        images = normalise(batch["image"]).contiguous(memory_format=torch.channels_last)
        sides = [side // self.downscale for side in images.shape[2:]]
        noise = Draws(batch["seed"], self.device).normal((self.channels, *sides))
        portraits = None
        if self.guided:
            portraits = normalise(batch["portrait"]).contiguous(memory_format=torch.channels_last)
        output = reconstructor(images, noise, portraits)
        losses = reconstruction_loss(output, images, batch.get("regions"))
        return Loss(losses, {"mse": F.mse_loss(output.detach(), images)}, batch["name"])
