"""The memory and work of a training on one device, counted before it begins."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ...autoencoders import find_autoencoder
from ...config import LetsTalkConfig
from ...data.footage.shards import HELD
from ...errors import InputError
from ...model.checkpoint import load_checkpoint
from ...picture.autoencoder import DC_AE, SD_VAE, build_autoencoder
from ...picture.portrait_autoencoder import SMALL_PORTRAIT_AE
from ..loop import native_precision
from ..training_config import TransformerTraining
from .counting import DTYPES, Parameters, Work, count_encoding, count_parameters, count_step

GIB = 2**30
FLOAT32 = 4  # bytes
MARGIN, MARGIN_SHARE = 1 * GIB, 0.05  # CUDA and its libraries; gaps between what is allocated
MANY_SHARDS = 64  # more are not counted but extrapolated


class ShardContents(NamedTuple):
    """What the shards of a training hold, about; as they should where there are none yet."""

    stretches: int = 0
    latents: bool = True
    held: float = 0.0  # bytes of all that a card may keep (ShardSource.hold)


@dataclass(frozen=True)
class TrainingEstimate:
    """What one training takes; bytes and FLOPs are those of one device, FLOPs of one batch."""

    config: TransformerTraining
    model: LetsTalkConfig
    devices: int
    kind: str  # "cuda" or "cpu": of the memory
    precision: str  # accelerate's name
    parameters: Parameters
    step: Work
    encoding: Work
    encoded: int  # frames of a clip
    autoencoder: int  # bytes
    latent_side: int
    shards: ShardContents

    @property
    def flops(self) -> int:
        """FLOPs of a step without encoding."""
        return self.step.flops * self.config.accumulation

    @property
    def encoding_flops(self) -> int:
        """FLOPs that encoding adds to a step."""
        return self.encoding.flops * self.config.accumulation

    @property
    def clips(self) -> int:
        """Clips of a step on all devices."""
        return self.config.batch_size * self.config.accumulation * self.devices

    def parts(self, sharded: bool = False) -> dict[str, float]:
        """Bytes by what they hold; sharded: with FSDP over the devices, else whole on each of them (DDP)."""
        all_of_them, trained = self.parameters.all * FLOAT32, self.parameters.trained * FLOAT32
        parts = {"weights": all_of_them, "gradients": trained, "AdamW": 2 * trained, "average": all_of_them}
        if sharded:
            parts = {"shares of weights, gradients, AdamW and average": sum(parts.values()) / self.devices}
            # Whole for a moment: what belongs to no block, this block and the next one.
            whole = self.parameters.all - max(0, self.model.transformer.depth - 2) * self.parameters.block
            parts["gathered weights"] = whole * (FLOAT32 if self.precision == "no" else 2)
        else:
            if self.devices > 1:
                parts["buckets of gradients"] = trained
            parts["weights in 16 bits"] = self.step.copies
        parts["autoencoder"] = self.autoencoder
        # One after the other: encoding, forward and backward, AdamW's own temporary copy.
        parts["activations"] = self.step.activations
        parts["work space"] = max(
            self.step.working,
            self.encoding.working - self.step.activations,
            trained / (self.devices if sharded else 1) - self.step.activations,
        )
        parts["margin"] = MARGIN + MARGIN_SHARE * sum(parts.values())
        return parts

    def memory(self, sharded: bool = False) -> float:
        return sum(self.parts(sharded).values())


def estimate_training(config: TransformerTraining, devices: int = 1) -> TrainingEstimate:
    """Count everything without computing anything. InputError where the configuration makes no model."""
    model = config.model_config() if config.preset else config.model_config(load_checkpoint(config.init_from).config)
    kind = "cpu" if config.device == "cpu" else "cuda"  # what is planned on a laptop trains on a card
    precision = native_precision(config.precision, config.device)
    if config.precision == "auto" and kind == "cuda" and not torch.cuda.is_available():
        precision = "bf16"
    autoencoder = _autoencoder_config(config, model)
    with torch.device("meta"):
        own = build_autoencoder(autoencoder)
    side, rest = divmod(model.image_size, own.downscale)
    if rest or side % model.transformer.patch_size or not side:
        raise InputError(
            f"Images of {model.image_size} pixels do not divide into patches of this model behind its autoencoder; "
            "choose another model.image_size."
        )
    size = 2 if kind == "cuda" and precision == "bf16" else FLOAT32
    shards = look_into_shards(config) if config.data == "shards" else ShardContents()
    encoded = _encoded_frames(config, model, shards)
    return TrainingEstimate(
        config=config,
        model=model,
        devices=devices,
        kind=kind,
        precision=precision,
        parameters=count_parameters(config, model),
        step=count_step(config, model, side, kind, DTYPES[precision]),
        encoding=count_encoding(autoencoder, encoded * config.batch_size, model.image_size, kind, DTYPES[precision]),
        encoded=encoded,
        autoencoder=size * sum(parameter.numel() for parameter in own.parameters()),
        latent_side=side,
        shards=shards,
    )


def _autoencoder_config(config: TransformerTraining, model: LetsTalkConfig) -> dict:
    """The configuration of the autoencoder that training would use, or of the released one where its file is not there
    yet."""
    there = config.autoencoder if Path(config.autoencoder or " ").exists() else ""
    found = find_autoencoder(there, config.init_from)
    if found is not None:
        return found.config
    return {"sd-vae": SD_VAE, "dc-ae": DC_AE, "portrait": SMALL_PORTRAIT_AE}[model.autoencoder]


def _encoded_frames(config: TransformerTraining, model: LetsTalkConfig, shards: ShardContents) -> int:
    """Frames of an example that are encoded in training: portrait and memory, for the noise on their pixels, or, where
    shards hold no latents, all of them."""
    conditions = 1 + model.transformer.memory_frames
    if not shards.latents:
        return conditions + model.transformer.clip_frames
    return conditions if config.memory_pixel_noise else 0


def look_into_shards(config: TransformerTraining) -> ShardContents:
    """What the shards hold; as they should be where there are none yet."""
    folder = Path(config.data_path)
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder] if folder.is_file() else []
    sizes: list[tuple[str, int]] = []
    try:
        for path in paths[:MANY_SHARDS]:
            with tarfile.open(path) as shard:
                sizes += [(member.name, member.size) for member in shard]
    except (OSError, tarfile.TarError):  # training will say what is wrong with it
        return ShardContents()
    times = len(paths) / max(1, min(len(paths), MANY_SHARDS))
    return ShardContents(
        stretches=round(times * sum(name.endswith(".json") for name, _ in sizes)),
        latents=not sizes or any(name.endswith(".latents.npy") for name, _ in sizes),
        held=times * sum(size for name, size in sizes if name.endswith(tuple(f".{part}" for part in HELD))),
    )
