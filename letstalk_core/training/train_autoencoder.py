"""Training of an autoencoder, the small DC-AE or one to go on from, on footage, photographs or drawn portraits."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.drawn.stills import held_out_pictures
from ..data.images import DrawnPictures, PictureFiles, ShardPictures, image_folder, video_pictures
from ..errors import InputError
from ..files import cannot_write, move_into_place
from ..picture.autoencoder import SMALL_DC_AE, Autoencoder, build_autoencoder, load_autoencoder
from .build import find_autoencoder, freeze
from .examples import held_apart
from .export import STEPS
from .fitting import autocast, fit_source
from .loop import Loss, TrainingRun, make_accelerator, small_config
from .training_config import TrainingConfig
from .transformer_loss import Draws

IMAGE_SIZE = 128
LATENT_NOISE = 0.05  # of the latents' own deviation, so that the decoder forgives what a transformer gets wrong


# What the loss looks at: mouth and eyes are small and what people look at, the latents are made for them.
REGION_WEIGHTS = (1.0, 4.0, 4.0)  # elsewhere, mouth, eyes
SQUARED_WEIGHT = 4.0  # of squared beside absolute differences

HELD_OUT_PICTURES = 64  # that the log's PSNR is of
SCALE_PICTURES = 256  # that the scale of the latents is of
SHEET_PICTURES = 8
HELD_OUT_PSNR = "held_out_psnr"  # dB: its name in the log and in the file
Pictures = PictureFiles | ShardPictures | DrawnPictures


def to_images(pictures: np.ndarray) -> Tensor:
    """uint8 [n, H, W, 3] -> float [n, 3, H, W] in -1..1, channels last in memory."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def reconstruction_loss(output: Tensor, images: Tensor, regions: Tensor | None = None) -> Tensor:
    """Absolute, squared and edge differences of each of [B, 3, H, W], weighted by region [B, H, W] if given: [B]."""
    difference = output - images
    weight = torch.ones_like(images[:, :1])
    if regions is not None:
        weight = torch.tensor(REGION_WEIGHTS, device=images.device)[regions.long()][:, None]
        weight = weight / weight.mean((1, 2, 3), keepdim=True)
    edges = sum(
        (difference.diff(dim=axis).abs() * weight.narrow(axis, 1, weight.shape[axis] - 1)).mean((1, 2, 3))
        for axis in (2, 3)
    )
    return (weight * (difference.abs() + SQUARED_WEIGHT * difference.square())).mean((1, 2, 3)) + 0.5 * edges


def psnr(output: Tensor, images: Tensor, mask: Tensor | None = None) -> float:
    """Mean peak signal-to-noise ratio in dB of [n, 3, H, W] in -1..1, inside mask [n, H, W] if given."""
    error = (output.clamp(-1, 1) - images).square().mean(1) / 4
    if mask is None:
        error = error.mean((1, 2))
    else:
        error = (error * mask).sum((1, 2)) / mask.sum((1, 2))
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


class Reconstructor(nn.Module):
    """To latents and back in one forward pass, as distributed training needs it; differentiable and not clamped."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """images [B,3,S,S] in -1..1; noise [B,C,h,w] of deviation 1 is added to the latents as LATENT_NOISE says."""
        latents = self.autoencoder.encode(images, len(images)).float()
        deviation = latents.detach().std((1, 2, 3), keepdim=True)  # of each alone: its batch must not matter
        latents = latents + LATENT_NOISE * deviation * noise
        return self.autoencoder.model.decode(latents / self.autoencoder.latent_scale).sample.float()


class ReconstructionLoss:
    """Batches (training/examples.py) to losses; every random number follows from an example's own seed."""

    def __init__(self, autoencoder: Autoencoder, device: torch.device):
        self.channels, self.downscale, self.device = autoencoder.latent_channels, autoencoder.downscale, device

    def __call__(self, reconstructor: nn.Module, batch: dict) -> Loss:
        """reconstructor: a Reconstructor, as accelerate prepared it."""
        images = batch["image"].to(self.device).float() / 127.5 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        sides = [side // self.downscale for side in images.shape[2:]]
        noise = Draws(batch["seed"], self.device).normal((self.channels, *sides))
        output = reconstructor(images, noise)
        regions = batch["regions"].to(self.device) if "regions" in batch else None
        losses = reconstruction_loss(output, images, regions)
        return Loss(losses, {"mse": F.mse_loss(output.detach(), images)}, batch["name"])


def train_autoencoder_from(config: TrainingConfig) -> Path | None:
    """Train as configured; returns the autoencoder's file, or None where it was asked to stop before the end."""
    folder = Path(config.run)
    accelerator = make_accelerator(config, folder)
    torch.manual_seed(config.seed)
    autoencoder = starting_point(config).train().to(memory_format=torch.channels_last)
    size = config.image_size or IMAGE_SIZE
    if size % autoencoder.downscale:
        raise InputError(f"image_size is {size}, but the autoencoder needs a multiple of {autoencoder.downscale}.")
    freeze(autoencoder, config.frozen)
    with accelerator.main_process_first():
        source = open_pictures(config, size)
    training, held_out = held_apart(len(source), config.held_out_share, config.seed)
    exporter = Exporter(config, autoencoder, source, training, held_out, accelerator)
    if config.compile:
        for part in (autoencoder.model.encoder, autoencoder.model.decoder):
            part.compile()
    run = TrainingRun(
        folder, Reconstructor(autoencoder), config, config.batch_size, accelerator, {"pictures": len(source)}
    )
    loss_of = autocast(run, ReconstructionLoss(autoencoder, run.device))

    def after_save(step: int, average: dict[str, Tensor]) -> None:
        quality = exporter(step, average)
        if quality is not None:
            run.record({HELD_OUT_PSNR: quality})

    return fit_source(run, config, source, training, loss_of, after_save, exporter.path)


def starting_point(config: TrainingConfig) -> Autoencoder:
    """The autoencoder of config.init_from or config.autoencoder (a file or folder of its own, or a model that bundles
    one), else the small DC-AE with random weights."""
    if config.init_from and config.autoencoder:
        raise InputError("init_from and autoencoder both name an autoencoder to begin with; give one of them.")
    path = config.init_from or config.autoencoder
    if not path:
        return build_autoencoder(SMALL_DC_AE)
    return find_autoencoder(dataclasses.replace(config, init_from="", autoencoder=path))


def open_pictures(config: TrainingConfig, size: int) -> Pictures:
    """The pictures that a configuration names, cut to squares of size; InputError where there are none."""
    if config.data == "images":
        return image_folder(config.data_path, size)
    if config.data == "videos":
        return video_pictures(config.data_path, Path(config.run) / "pictures", size)
    if config.data == "shards":
        return ShardPictures(config.data_path, size)
    return DrawnPictures(Path(config.data_path), config.avatar_people, size)


class Exporter:
    """`autoencoder.safetensors` with the averaged weights, and now and then a picture of some originals over their
    reconstructions in `samples/`. Made before the autoencoder is moved or wrapped.

    training, held_out: numbers of the pictures that are trained on and of those that are not.
    """

    def __init__(
        self, config: TrainingConfig, autoencoder: Autoencoder, source: Pictures, training: np.ndarray,
        held_out: np.ndarray, accelerator,
    ):  # fmt: skip
        self.config, self.source, self.accelerator = config, source, accelerator
        self.training, self.held_out = training, held_out
        self.folder, self.path = Path(config.run), Path(config.run) / "autoencoder.safetensors"
        self.fixed_latents = not any(
            parameter.requires_grad
            for name, parameter in autoencoder.model.named_parameters()
            if name.startswith(("encoder.", "quant_conv."))
        )
        self.autoencoder = copy.deepcopy(autoencoder).eval().requires_grad_(False)
        if config.held_out_share and not len(held_out) and accelerator.is_main_process:
            warnings.warn(
                f"held_out_share {config.held_out_share:g} of {len(source)} pictures is none: nothing is held out.",
                stacklevel=2,
            )

    @torch.no_grad()
    def __call__(self, step: int, average: dict[str, Tensor]) -> float | None:
        """average: of a Reconstructor's weights. Returns the PSNR of held-out pictures in dB, in the main process."""
        quality = None
        if self.accelerator.is_main_process:
            autoencoder, config = self.autoencoder.to(self.accelerator.device), self.config
            autoencoder.load_state_dict({name.removeprefix("autoencoder."): value for name, value in average.items()})
            if not self.fixed_latents:  # else those of before go on to mean the same
                autoencoder.latent_scale = 1.0
                latents = autoencoder.encode(self._pictures(self.training, SCALE_PICTURES))
                autoencoder.latent_scale = 1 / max(float(latents.std()), 1e-6)
            if len(self.held_out):
                images = self._pictures(self.held_out, HELD_OUT_PICTURES)
                quality = psnr(self._reconstructed(images), images)
            self._write(step, quality)
            if config.sample_every and step % config.sample_every == 0:
                self._sample(step)
        self.accelerator.wait_for_everyone()
        return quality

    def _pictures(self, indices: np.ndarray, count: int) -> Tensor:
        """The same `count` pictures each time, from all over the given ones: [count,3,S,S] in -1..1 on the device."""
        chosen = indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]
        rngs = (np.random.default_rng((self.config.seed, 4, number)) for number in range(count))
        images = torch.stack([self.source.read(int(i), rng)["image"] for i, rng in zip(chosen, rngs)])
        return images.to(self.accelerator.device).float() / 127.5 - 1

    def _reconstructed(self, images: Tensor) -> Tensor:
        return self.autoencoder.decode(self.autoencoder.encode(images))

    def _write(self, step: int, quality: float | None) -> None:
        """diffusers' weights, with its configuration in the metadata; whole or not at all."""
        autoencoder = self.autoencoder
        metadata = {"config": json.dumps({**autoencoder.config, "scaling_factor": autoencoder.latent_scale})}
        metadata[STEPS] = str(step)
        if quality is not None:
            metadata[HELD_OUT_PSNR] = f"{quality:.2f}"
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            save_file(
                {name: value.cpu().contiguous() for name, value in autoencoder.model.state_dict().items()},
                aside,
                metadata,
            )
            move_into_place(aside, self.path)
        except (OSError, SafetensorError) as error:
            raise cannot_write(self.path, error) from error
        finally:
            aside.unlink(missing_ok=True)

    def _sample(self, step: int) -> None:
        """A picture for people's eyes. What goes wrong here must not end a training: it is said."""
        images = self._pictures(self.held_out if len(self.held_out) else self.training, SHEET_PICTURES)
        rows = torch.stack([images, self._reconstructed(images)]).cpu()  # [2,n,3,S,S]
        sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [2 S,n S,3]
        try:
            (self.folder / "samples").mkdir(exist_ok=True)
            pixels = ((sheet + 1) * 127.5).round().clamp(0, 255).byte().numpy()
            Image.fromarray(pixels).save(self.folder / "samples" / f"step-{step:08d}.png")
        except OSError as error:
            warnings.warn(f"no sample picture of step {step}: {error}", stacklevel=1)


# The bundled autoencoder ----------------------------------------------------------------------------------------------


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
    """Train on drawn people in work/autoencoder (resumed if begun); KeyboardInterrupt where it was asked to stop."""
    config = TrainingConfig(
        run=str(work / "autoencoder"), task="autoencoder", data="avatar", data_path=str(work), avatar_people=identities,
        image_size=IMAGE_SIZE, batch_size=batch, workers=0, **dataclasses.asdict(small_config(steps, 8e-4)),
    )  # fmt: skip
    path = train_autoencoder_from(config)
    if path is None:
        raise KeyboardInterrupt
    return load_autoencoder(path).to(memory_format=torch.channels_last)
