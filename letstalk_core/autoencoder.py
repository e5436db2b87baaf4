"""Images to latents and back: one plain module around diffusers' AutoencoderDC (DC-AE) or AutoencoderKL (SD-VAE).

The paper's linear model uses DC-AE f32c32 and its softmax model the SD-VAE f8c4; the bundled model uses SMALL_DC_AE.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import InputError

# The bundled autoencoder: AutoencoderDC f16c32, so that 128 px gives 8x8x32 latents. Zero layers in the first stage put
# conv_in and conv_out at half resolution, which is most of its speed; entry 0 of the channels is then unused.
SMALL_DC_AE: dict = {
    "_class_name": "AutoencoderDC",
    "in_channels": 3,
    "latent_channels": 32,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": [16, 32, 64, 128, 256],
    "decoder_block_out_channels": [16, 32, 64, 128, 256],
    "encoder_layers_per_block": [0, 1, 1, 1, 1],
    "decoder_layers_per_block": [0, 1, 2, 2, 1],
    "encoder_qkv_multiscales": [[], [], [], [], []],
    "decoder_qkv_multiscales": [[], [], [], [], []],
    "downsample_block_type": "conv",
    "upsample_block_type": "pixel_shuffle",
    "scaling_factor": 1.0,
}


class Autoencoder(nn.Module):
    """encode and decode with scaled latents; the diffusers model is `.model`, its configuration a dict in `.config`.

    latent_scale multiplies latents on the way in and divides them on the way out (about 1 / their standard deviation);
    None takes the file's own scaling_factor. A plain module: no `device` property, no mixins, so that ComfyUI's
    ModelPatcher can move it.
    """

    def __init__(self, model: nn.Module, config: dict, latent_scale: float | None = None):
        super().__init__()
        self.model = model
        self.config = dict(config)
        self.latent_scale = float(config.get("scaling_factor") or 1.0) if latent_scale is None else float(latent_scale)
        if not self.latent_scale > 0:
            raise InputError(f"The latent scale is {self.latent_scale}; it must be greater than 0.")
        channels = config.get("encoder_block_out_channels") or config["block_out_channels"]
        self.downscale = 2 ** (len(channels) - 1)  # pixels per latent position along each side
        self.latent_channels = int(config["latent_channels"])

    def encode(self, images: Tensor, chunk: int = 16) -> Tensor:
        """images [n, 3, H, W] in -1..1 -> scaled latents [n, C, h, w], at most `chunk` images at a time.

        The KL autoencoder gives the mean of its posterior, so that the same image always gives the same latents.
        Result in the dtype of `images`. InputError where H or W is not a multiple of `downscale`.
        """
        height, width = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"The autoencoder takes images of shape [n, 3, H, W], not {list(images.shape)}.")
        if height % self.downscale or width % self.downscale:
            raise InputError(
                f"The image is {width}x{height}, but this autoencoder needs both sides to be multiples of "
                f"{self.downscale}; choose a size that is."
            )
        return _in_chunks(lambda part: self._encode(part) * self.latent_scale, images, chunk, self._dtype())

    def decode(self, latents: Tensor, chunk: int = 16) -> Tensor:
        """Scaled latents [n, C, h, w] -> images [n, 3, H, W] clamped to -1..1, in the dtype of `latents`."""
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise InputError(
                f"This autoencoder decodes latents of shape [n, {self.latent_channels}, h, w], not "
                f"{list(latents.shape)}; the model and the autoencoder do not belong together."
            )
        return _in_chunks(
            lambda part: self.model.decode(part / self.latent_scale).sample.clamp(-1, 1), latents, chunk, self._dtype()
        )

    def _encode(self, images: Tensor) -> Tensor:
        encoded = self.model.encode(images)
        return encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()

    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def _in_chunks(function: Callable[[Tensor], Tensor], inputs: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    if chunk < 1:
        raise InputError(f"The chunk size is {chunk}; it must be at least 1.")
    if len(inputs) == 0:
        raise InputError("There are no frames to encode or decode; give at least one.")
    return torch.cat([function(part.to(dtype)).to(inputs.dtype) for part in inputs.split(chunk)])


def build_autoencoder(config: dict, latent_scale: float | None = None) -> Autoencoder:
    """An untrained autoencoder from a diffusers configuration dict with `_class_name` AutoencoderDC or AutoencoderKL."""
    import diffusers

    name = config.get("_class_name")
    if name not in ("AutoencoderDC", "AutoencoderKL"):
        raise InputError(f"The autoencoder's configuration names the class {name!r}, not AutoencoderDC or AutoencoderKL.")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        model = getattr(diffusers, name).from_config(arguments)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"The autoencoder's configuration does not make an {name}: {error}.") from error
    kept = {"_class_name": name} | {key: value for key, value in model.config.items() if not key.startswith("_")}
    return Autoencoder(model, json.loads(json.dumps(kept)), latent_scale)
