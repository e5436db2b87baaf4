"""Training of an autoencoder on footage, photographs, drawn portraits or puppets: the small DC-AE, the portrait-guided
one, or one to go on from."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..autoencoders import find_autoencoder
from ..data.drawn.stills import DrawnPictures
from ..data.images import PictureFiles, ShardPictures, image_folder, video_pictures
from ..data.people.pictures import PuppetPictures
from ..errors import InputError
from ..picture.autoencoder import SMALL_DC_AE, Autoencoder, build_autoencoder
from ..picture.portrait_autoencoder import SMALL_PORTRAIT_AE
from ..pixels import images_to_pixels, normalise
from ..weights import write_weights
from .build import freeze
from .examples import held_apart
from .export import STEPS_KEY
from .fitting import autocast, fit_source
from .loop import TrainingRun, make_accelerator
from .reconstruction import ReconstructionLoss, Reconstructor, psnr
from .training_config import AutoencoderTraining

IMAGE_SIZE, PEOPLE_SIZE = 128, 256  # pixels, where the configuration does not say otherwise
HELD_OUT_PICTURES = 64  # pictures that the log's PSNR is of
SCALE_PICTURES = 256  # pictures that the scale of the latents is measured on
SHEET_PICTURES = 8  # pictures of a sample
HELD_OUT_PSNR = "held_out_psnr"  # dB: its name in the log and in the file
Pictures = PictureFiles | ShardPictures | DrawnPictures | PuppetPictures


def train_autoencoder(config: AutoencoderTraining) -> Path | None:
    """Train as configured; returns the autoencoder's file, or None where it was asked to stop before the end."""
    folder = Path(config.run)
    accelerator = make_accelerator(config, folder)
    torch.manual_seed(config.seed)
    autoencoder = starting_point(config).train().to(memory_format=torch.channels_last)
    size = config.image_size or (PEOPLE_SIZE if config.data == "people" else IMAGE_SIZE)
    if size % autoencoder.downscale:
        raise InputError(f"image_size is {size}, but the autoencoder needs a multiple of {autoencoder.downscale}.")
    freeze(autoencoder, config.frozen)
    with accelerator.main_process_first():
        source = open_pictures(config, size, autoencoder.guided)
    training, held_out = held_apart(len(source), config.held_out_share, config.seed)
    exporter = AutoencoderExporter(config, autoencoder, source, training, held_out, accelerator)
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


def starting_point(config: AutoencoderTraining) -> Autoencoder:
    """The autoencoder of config.init_from or config.autoencoder (a file or folder of its own, or a model that bundles
    one), else the small DC-AE or, with config.guided, the portrait-guided one, with random weights."""
    if config.init_from and config.autoencoder:
        raise InputError("init_from and autoencoder both name an autoencoder to begin with; give one of them.")
    path = config.init_from or config.autoencoder
    if not path:
        return build_autoencoder(SMALL_PORTRAIT_AE if config.guided else SMALL_DC_AE)
    return find_autoencoder(path)


def open_pictures(config: AutoencoderTraining, size: int, portraits: bool) -> Pictures:
    """The pictures that a configuration names, cut to squares of size, with portraits where the autoencoder looks at
    them; InputError where there are none."""
    if config.data == "images":
        return image_folder(config.data_path, size, portraits)
    if config.data == "videos":
        return video_pictures(config.data_path, Path(config.run) / "pictures", size, portraits)
    if config.data == "shards":
        return ShardPictures(config.data_path, size, portraits)
    if config.data == "people":
        if size != PEOPLE_SIZE:
            raise InputError(f"image_size is {size}, but puppets are rendered at {PEOPLE_SIZE}; leave it out.")
        return PuppetPictures(Path(config.data_path), config.avatar_people).make(os.cpu_count() or 1)
    return DrawnPictures(Path(config.data_path), config.avatar_people, size, portraits)


class AutoencoderExporter:
    """Writes `autoencoder.safetensors` with the averaged weights, and now and then a picture of some originals over
    their reconstructions in `samples/`. Made before the autoencoder is moved or wrapped.

    training, held_out: numbers of the pictures that are trained on and of those that are not.
    """

    def __init__(
        self, config: AutoencoderTraining, autoencoder: Autoencoder, source: Pictures, training: np.ndarray,
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
        """Write the files of a step; average: the averaged state dict of a Reconstructor.

        Returns the PSNR of held-out pictures in dB, in the main process and where there are any, else None.
        """
        quality = None
        if self.accelerator.is_main_process:
            autoencoder, config = self.autoencoder.to(self.accelerator.device), self.config
            autoencoder.load_state_dict({name.removeprefix("autoencoder."): value for name, value in average.items()})
            if not self.fixed_latents:  # else those of before go on to mean the same
                autoencoder.latent_scale = 1.0
                latents = autoencoder.encode(self._pictures(self.training, SCALE_PICTURES)[0])
                autoencoder.latent_scale = 1 / max(float(latents.std()), 1e-6)
            if len(self.held_out):
                images, portraits = self._pictures(self.held_out, HELD_OUT_PICTURES)
                quality = psnr(self._reconstructed(images, portraits), images)
            self._write(step, quality)
            if config.sample_every and step % config.sample_every == 0:
                self._sample(step)
        self.accelerator.wait_for_everyone()
        return quality

    def _pictures(self, indices: np.ndarray, count: int) -> tuple[Tensor, Tensor | None]:
        """The same `count` pictures each time, from all over the given ones, and portraits where the autoencoder looks
        at them: [count,3,S,S] in -1..1 on the device."""
        chosen = indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]
        rngs = (np.random.default_rng((self.config.seed, 4, number)) for number in range(count))
        examples = [self.source.read(int(i), rng) for i, rng in zip(chosen, rngs, strict=True)]

        def stacked(name: str) -> Tensor:
            return normalise(torch.stack([example[name] for example in examples]).to(self.accelerator.device))

        return stacked("image"), stacked("portrait") if self.autoencoder.guided else None

    def _reconstructed(self, images: Tensor, portraits: Tensor | None) -> Tensor:
        seen = None if portraits is None else self.autoencoder.look_at(portraits)
        return self.autoencoder.decode(self.autoencoder.encode(images), seen)

    def _write(self, step: int, quality: float | None) -> None:
        """Write diffusers' weights with its configuration in the metadata, whole or not at all."""
        autoencoder = self.autoencoder
        metadata = {"config": json.dumps({**autoencoder.config, "scaling_factor": autoencoder.latent_scale})}
        metadata[STEPS_KEY] = str(step)
        if quality is not None:
            metadata[HELD_OUT_PSNR] = f"{quality:.2f}"
        write_weights(self.path, autoencoder.model.state_dict(), metadata)

    def _sample(self, step: int) -> None:
        """Write a picture for people's eyes. What goes wrong here must not end a training: it is said."""
        images, portraits = self._pictures(self.held_out if len(self.held_out) else self.training, SHEET_PICTURES)
        shown = [images, self._reconstructed(images, portraits)]
        rows = torch.stack(shown if portraits is None else [portraits, *shown]).cpu()  # [2 or 3,n,3,S,S]
        sheet = rearrange(images_to_pixels(rows), "rows n h w c -> (rows h) (n w) c")
        try:
            (self.folder / "samples").mkdir(exist_ok=True)
            Image.fromarray(sheet.numpy()).save(self.folder / "samples" / f"step-{step:08d}.png")
        except OSError as error:
            warnings.warn(f"no sample picture of step {step}: {error}", stacklevel=1)
