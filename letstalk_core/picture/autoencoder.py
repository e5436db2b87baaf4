"""Images to latents and back: one plain module around diffusers' AutoencoderDC (DC-AE) or AutoencoderKL (SD-VAE), or
around our own that looks at the portrait (portrait_autoencoder.py).

The paper's linear model uses DC-AE f32c32 (arXiv 2410.10733) and its softmax model the SD-VAE f8c4 (arXiv 2112.10752);
the bundled model uses SMALL_PORTRAIT_AE, and SMALL_DC_AE is for small trainings.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import InputError
from ..weights import fill_strictly
from .portrait_autoencoder import PortraitAutoencoder, Seen

# A small AutoencoderDC f16c32, so that 128 px gives 8x8x32 latents. Zero layers in the first stage put
# conv_in and conv_out at half resolution, which is most of its speed; entry 0 of the channels is then unused.
SMALL_DC_AE: dict = {
    "_class_name": "AutoencoderDC",
    "in_channels": 3,
    "latent_channels": 32,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": [8, 16, 64, 128, 256],
    "decoder_block_out_channels": [8, 16, 64, 128, 256],
    "encoder_layers_per_block": [0, 1, 1, 1, 1],
    "decoder_layers_per_block": [0, 1, 2, 2, 1],
    "encoder_qkv_multiscales": [[], [], [], [], []],
    "decoder_qkv_multiscales": [[], [], [], [], []],
    "downsample_block_type": "conv",
    "upsample_block_type": "pixel_shuffle",
    "scaling_factor": 1.0,
}

# The configurations of released single files that have no config.json: the SD-VAE f8c4 and DC-AE f32c32 (sana-1.0).
SD_VAE: dict = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
DC_AE: dict = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
GUIDED = "PortraitAutoencoder"
_NAMES = ("AutoencoderDC", "AutoencoderKL", GUIDED)


class Autoencoder(nn.Module):
    """An autoencoder with scaled latents; diffusers' model or ours is `.model`, its configuration a dict in `.config`.

    One that is `guided` decodes beside a portrait: look_at, once for a video, then decode with what it gave. The others
    ignore it.

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
        self.guided = isinstance(model, PortraitAutoencoder)
        self.fitting: int | None = None  # images that the memory holds at a time, once it did not hold more
        channels = config.get("encoder_block_out_channels") or config["block_out_channels"]
        # pixels per latent position along each side
        self.downscale = model.downscale if self.guided else 2 ** (len(channels) - 1)
        self.latent_channels = int(config["latent_channels"])

    def encode(self, images: Tensor, chunk: int = 16) -> Tensor:
        """Images [n, 3, H, W] in -1..1 -> scaled latents [n, C, h, w] in the dtype of `images`.

        At most `chunk` images are encoded at a time, fewer where the graphics card's memory does not hold them. The KL
        autoencoder gives the mean of its posterior, so that the same image always gives the same latents. InputError
        for another shape, and where H or W is not a multiple of `downscale`.
        """
        self._check_images(images)
        return self._in_chunks(lambda part, _: self._encode(part) * self.latent_scale, images, chunk)

    def look_at(self, portraits: Tensor) -> Seen | None:
        """What decode needs of portraits [1 or n, 3, H, W] in -1..1; None where the autoencoder is not guided.

        InputError as for `encode`.
        """
        if not self.guided:
            return None
        self._check_images(portraits)
        return self.model.look_at(portraits)

    def _check_images(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"The autoencoder takes images of shape [n, 3, H, W], not {list(images.shape)}.")
        if height % self.downscale or width % self.downscale:
            raise InputError(
                f"The image is {width}x{height}, but this autoencoder needs both sides to be multiples of "
                f"{self.downscale}; choose a size that is."
            )

    def decode(self, latents: Tensor, seen: Seen | None = None, chunk: int = 16) -> Tensor:
        """Scaled latents [n, C, h, w] -> images [n, 3, H, W] clamped to -1..1, in the dtype of `latents`, with
        what other channels the picture of a guided autoencoder has.

        seen: of one portrait or of n (look_at). chunk: as for `encode`. InputError for latents of another shape, and
        where a guided autoencoder is given no portrait.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise InputError(
                f"This autoencoder decodes latents of shape [n, {self.latent_channels}, h, w], not "
                f"{list(latents.shape)}; the model and the autoencoder do not belong together."
            )
        if self.guided and seen is None:
            raise InputError("This autoencoder decodes beside a portrait; give it what look_at makes of one.")
        return self._in_chunks(lambda part, at: self.decoded(part, seen and seen.part(at)).clamp(-1, 1), latents, chunk)

    def decoded(self, latents: Tensor, seen: Seen | None) -> Tensor:
        """`decode` of one batch as it is, for training: nothing is clamped, checked or converted."""
        latents = latents / self.latent_scale
        return self.model.decode(latents, seen) if self.guided else self.model.decode(latents).sample

    @property
    def encoder_digest(self) -> str:
        """The digest of the encoder's weights and the latent scale, 12 hex digits: cached latents are known by it."""
        digest = hashlib.blake2b(repr(self.latent_scale).encode(), digest_size=6)
        for value in self.model.encoder.state_dict().values():
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _encode(self, images: Tensor) -> Tensor:
        encoded = self.model.encode(images)
        if self.guided:
            return encoded
        return encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()

    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _in_chunks(self, function: Callable[[Tensor, slice], Tensor], inputs: Tensor, chunk: int) -> Tensor:
        """The function of all inputs, `chunk` at a time, computed in the weights' dtype; from the time on that a
        graphics card's memory does not hold them fewer, which a warning says.

        function: is given a part of the inputs and where it lies in them.
        """
        if chunk < 1:
            raise InputError(f"The chunk size is {chunk}; it must be at least 1.")
        if len(inputs) == 0:
            raise InputError("There are no frames to encode or decode; give at least one.")
        chunk, dtype = min(chunk, self.fitting or chunk), self._dtype()
        try:
            parts = [slice(start, start + chunk) for start in range(0, len(inputs), chunk)]
            return torch.cat([function(inputs[part].to(dtype), part).to(inputs.dtype) for part in parts])
        except torch.cuda.OutOfMemoryError:
            if chunk == 1:
                raise
        self.fitting = chunk // 2  # outside of except, which keeps what failed alive
        warnings.warn(
            f"The graphics card's memory does not hold {chunk} frames at a time; going on with {self.fitting}, which "
            "may be slower.",
            stacklevel=3,
        )
        return self._in_chunks(function, inputs, self.fitting)


def build_autoencoder(config: dict, latent_scale: float | None = None) -> Autoencoder:
    """An untrained autoencoder from a diffusers configuration dict, whose `_class_name` says which, or one like
    SMALL_PORTRAIT_AE; else InputError."""
    name = config.get("_class_name")
    if name not in _NAMES:
        raise InputError(f"The autoencoder's configuration names the class {name!r}, not {', '.join(_NAMES)}.")
    if name == GUIDED:
        try:
            return Autoencoder(PortraitAutoencoder(config), config, latent_scale)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"The autoencoder's configuration does not make a {name}: {error}.") from error
    import diffusers

    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        model = getattr(diffusers, name).from_config(arguments)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"The autoencoder's configuration does not make an {name}: {error}.") from error
    kept = {"_class_name": name} | {key: value for key, value in model.config.items() if not key.startswith("_")}
    return Autoencoder(model, json.loads(json.dumps(kept)), latent_scale)


def load_autoencoder(path: str | Path, latent_scale: float | None = None, config: dict | None = None) -> Autoencoder:
    """Load an autoencoder from a diffusers folder, or from one .safetensors file.

    The configuration is `config` if given, else the file's metadata ("config", as JSON), else a config.json beside it,
    else that of the released SD-VAE or DC-AE, told apart by the names of the weights (diffusers' layout, or the
    original layouts that ComfyUI's vae folder usually holds). The result is float32, in evaluation mode, without
    gradients. InputError where the path is not an autoencoder; it names the missing and extra weights.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no autoencoder at {path}; give a diffusers folder or a .safetensors file.")
    file = path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"The folder {path} has no {file.name}; download that file and its config.json into it.")
    try:
        with safe_open(file, "pt") as opened:
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a safetensors file ({error}); download it again.") from error
    config = config or _find_config(file, metadata) or _known_config(file, weights)
    autoencoder = build_autoencoder(config, latent_scale)
    weights = _diffusers_names(weights, autoencoder.config)
    # Copied, so that nothing stays mapped to a file which may be replaced.
    weights = {key: value.to(torch.float32, copy=True) for key, value in weights.items()}
    advice = "use the file and config.json of one autoencoder"
    fill_strictly(autoencoder.model, weights, f"{file} does not fit its configuration", advice)
    return autoencoder.eval().requires_grad_(False)


def restore_autoencoder(config: dict, weights: Mapping[str, Tensor], where: str) -> Autoencoder:
    """An autoencoder from its configuration and weights, in evaluation mode, without gradients.

    Raises CheckpointError, which begins with `where`, unless they fit.
    """
    with torch.device("meta"):
        autoencoder = build_autoencoder(config)
    fill_strictly(autoencoder.model, weights, where)
    return autoencoder.eval().requires_grad_(False)


def _find_config(file: Path, metadata: dict) -> dict | None:
    """The configuration in the metadata or in a config.json beside the file; None where neither has one."""
    beside = file.parent / "config.json"
    text = metadata.get("config") or (beside.read_text(encoding="utf-8") if beside.is_file() else "")
    try:
        config = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"The configuration of {file} is not readable JSON ({error}); download it again.") from error
    # a config.json of something else may lie in a folder of many models
    return config if isinstance(config, dict) and config.get("_class_name") in _NAMES else None


def _known_config(file: Path, weights: dict[str, Tensor]) -> dict:
    """SD_VAE or DC_AE, by the names of the weights; InputError where they are of neither."""
    if any("mid.block_1.norm1" in key or "mid_block.resnets.0.norm1" in key for key in weights):
        return SD_VAE
    if any(key.startswith(("encoder.stages.", "encoder.down_blocks.0.0.conv1")) for key in weights):
        return DC_AE
    raise InputError(
        f"{file} is not an SD-VAE or DC-AE, and no config.json lies beside it; choose an autoencoder file."
    )


def _diffusers_names(weights: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Weights under the names of today's diffusers, from those of the original repositories or of older diffusers."""
    if config["_class_name"] == GUIDED:
        return weights
    from diffusers.loaders import single_file_utils

    if any("mid.block_1.norm1" in key for key in weights):
        return single_file_utils.convert_ldm_vae_checkpoint(weights, config)
    if any(key.startswith("encoder.stages.") for key in weights):
        return single_file_utils.convert_autoencoder_dc_checkpoint_to_diffusers(dict(weights))
    old = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    renamed = {}
    for key, value in weights.items():
        for before, after in old.items():
            key = key.replace(before, after)
        renamed[key] = value
    return renamed
