"""What a training would take, before it begins: parameters, work, memory and time (train --dry-run)."""

from __future__ import annotations

import dataclasses
import tarfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from ...config import LetsTalkConfig
from ...errors import InputError
from ...model.checkpoint import load_checkpoint
from ...picture.autoencoder import DC_AE, SD_VAE, SMALL_DC_AE, build_autoencoder
from ...render.estimate import duration
from ..build import find_autoencoder
from ..loop import native_precision
from ..training_config import TrainingConfig
from .counting import DTYPES, Parameters, Work, count_encoding, count_parameters, count_step
from .speed import Speed, measure, training_device

GIB = 2**30
FLOAT32 = 4  # bytes
MARGIN, MARGIN_SHARE = 1 * GIB, 0.05  # CUDA and its libraries; gaps between what is allocated
MANY_SHARDS = 64  # more are not counted but extrapolated
REFERENCE_RATE = 1e14  # FLOP/s, for planning where there is no graphics card


@dataclass(frozen=True)
class Estimate:
    """Of one training; bytes and FLOPs are those of one device, FLOPs of one batch."""

    config: TrainingConfig
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

    @property
    def flops(self) -> int:
        """Of a step, without encoding."""
        return self.step.flops * self.config.accumulation

    @property
    def encoding_flops(self) -> int:
        """Of a step."""
        return self.encoding.flops * self.config.accumulation

    @property
    def clips(self) -> int:
        """Of a step, on all devices."""
        return self.config.batch_size * self.config.accumulation * self.devices

    def parts(self, sharded: bool = False) -> dict[str, float]:
        """Bytes by what they hold; sharded: with FSDP over the devices, else whole on each of them (DDP)."""
        all_of_them, trained = self.parameters.all * FLOAT32, self.parameters.trained * FLOAT32
        parts = {"weights": all_of_them, "gradients": trained, "AdamW": 2 * trained, "average": all_of_them}
        if sharded:
            parts = {"shares of weights, gradients, AdamW and average": sum(parts.values()) / self.devices}
            # Whole for a moment: what belongs to no block, this block and the next one.
            whole = self.parameters.all - max(0, self.model.depth - 2) * self.parameters.block
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


def estimate(config: TrainingConfig, devices: int = 1) -> Estimate:
    """Count everything without computing anything. InputError where the configuration makes no model."""
    model = config.model_config() if config.preset else config.model_config(load_checkpoint(config.init_from).config)
    kind = "cpu" if config.device == "cpu" else "cuda"  # what is planned on a laptop trains on a card
    precision = native_precision(config.precision)
    if config.precision == "auto" and kind == "cuda" and not torch.cuda.is_available():
        precision = "bf16"
    autoencoder = _autoencoder_config(config, model)
    side, rest = divmod(model.image_size, 2 ** (len(_channels(autoencoder)) - 1))
    if rest or side % model.patch_size or not side:
        raise InputError(
            f"Images of {model.image_size} pixels do not divide into patches of this model behind its autoencoder; "
            "choose another model.image_size."
        )
    with torch.device("meta"):
        own = build_autoencoder(autoencoder)
    size = 2 if kind == "cuda" and precision == "bf16" else FLOAT32
    encoded = _encoded_frames(config, model)
    return Estimate(
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
    )


def _channels(autoencoder: dict) -> list[int]:
    return autoencoder.get("encoder_block_out_channels") or autoencoder["block_out_channels"]


def _autoencoder_config(config: TrainingConfig, model: LetsTalkConfig) -> dict:
    """Of the autoencoder that training would use, or of the released one where its file is not there yet."""
    if any(path and Path(path).exists() for path in (config.autoencoder, config.init_from)):
        there = config.autoencoder if Path(config.autoencoder).exists() else ""
        found = find_autoencoder(dataclasses.replace(config, autoencoder=there))
        if found is not None:
            return found.config
    return SD_VAE if model.autoencoder == "sd-vae" else DC_AE


def _encoded_frames(config: TrainingConfig, model: LetsTalkConfig) -> int:
    """Frames of an example that are encoded in training: portrait and memory, for the noise on their pixels, or, where
    shards hold no latents, all of them."""
    conditions = 1 + model.memory_frames
    if config.data == "shards" and not _look_into_shards(config)[1]:
        return conditions + model.clip_frames
    return conditions if config.memory_pixel_noise else 0


def _look_into_shards(config: TrainingConfig) -> tuple[int, bool]:
    """How many stretches the shards hold, about, and whether they have latents, as they should; (0, True) where there
    are none yet."""
    folder = Path(config.data_path)
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder] if folder.is_file() else []
    names = []
    try:
        for path in paths[:MANY_SHARDS]:
            with tarfile.open(path) as shard:
                names += shard.getnames()
    except (OSError, tarfile.TarError):  # training will say what is wrong with it
        return 0, True
    count = sum(name.endswith(".json") for name in names)
    latents = not names or any(name.endswith(".latents.npy") for name in names)
    return round(count * len(paths) / max(1, min(len(paths), MANY_SHARDS))), latents


# Telling --------------------------------------------------------------------------------------------------------------


def describe(config: TrainingConfig, devices: int = 1) -> str:
    """What a training would take on each of `devices` devices like the one at hand, in lines to read."""
    if devices < 1:
        raise InputError(f"A training needs one device or more, not {devices}.")
    if config.task == "autoencoder":
        return _describe_autoencoder(config, devices)
    plan = estimate(config, devices)
    lines = [
        *_model_lines(plan),
        *_memory_lines(plan),
        *_time_lines(plan, measure(config, plan.model, plan.step, plan.latent_side)),
    ]
    return "\n".join(_wrapped(title, text) for title, text in lines)


def _wrapped(title: str, text: str) -> str:
    before, indent = f"{title + ':' if title else '':<12}", " " * (len(text) - len(text.lstrip()))
    return textwrap.fill(before + text, 112, subsequent_indent=" " * 12 + indent)


def _describe_autoencoder(config: TrainingConfig, devices: int) -> str:
    found = find_autoencoder(config) if config.init_from or config.autoencoder else None
    with torch.device("meta"):
        module: nn.Module = found or build_autoencoder(SMALL_DC_AE)
    count = sum(parameter.numel() for parameter in module.parameters())
    images = config.batch_size * config.accumulation * devices
    return (
        f"Autoencoder: {count / 1e6:.2f} M parameters; {config.steps * images:,} images in {config.steps:,} steps of "
        f"{images}. There is no estimate of its memory and time."
    )


def _model_lines(plan: Estimate) -> list[tuple[str, str]]:
    config, model, parameters = plan.config, plan.model, plan.parameters
    trained = "all" if parameters.trained == parameters.all else millions(parameters.trained)
    name = config.preset or f"as in {config.init_from}"
    if config.preset and config.model:
        name += " with changes"
    adapters = f", adapters {millions(parameters.adapters)}" if parameters.adapters else ""
    examples = config.steps * plan.clips
    data = (
        f"{examples:,} clips of {model.clip_frames} frames in {config.steps:,} steps of {plan.clips} (batch_size "
        f"{config.batch_size} x accumulation {config.accumulation} x {plan.devices} "
        f"device{'s' if plan.devices > 1 else ''})"
    )
    stretches = _look_into_shards(config)[0] if config.data == "shards" else 0
    stretches = round((1 - config.held_out_share) * (config.avatar_clips if config.data == "avatar" else stretches))
    if stretches:
        data += f"; {examples / stretches:.3g} epochs of {stretches:,} stretches"
    work = f"{flop(plan.flops)} per step and device"
    if config.gradient_checkpointing:
        work += ", blocks computed twice"
    if plan.encoded:
        why = "the shards hold no latents" if plan.encoded > 1 + model.memory_frames else "noise on portrait and memory"
        work += f"; {flop(plan.encoding_flops)} more to encode {plan.encoded} frames an example ({why})"
    return [
        (
            "Model",
            f"{name}, {model.image_size} px: {millions(parameters.all)} parameters (transformer "
            f"{millions(parameters.transformer)}, audio projection {millions(parameters.audio_projection)}{adapters}), "
            f"{trained} of them trained",
        ),
        ("Data", data),
        ("Work", work),
    ]


def _memory_lines(plan: Estimate) -> list[tuple[str, str]]:
    where = "a graphics card" if plan.kind == "cuda" else "the CPU"
    way = f", each of {plan.devices} (DDP)" if plan.devices > 1 else ""
    precision = {"no": "fp32"}.get(plan.precision, plan.precision)
    lines = [("Memory", f"{gib(plan.memory())} on {where} in {precision}{way}"), ("", _parts_text(plan.parts()))]
    if plan.devices > 1:
        lines += [("", f"{gib(plan.memory(True))} with FSDP over {plan.devices}"), ("", _parts_text(plan.parts(True)))]
    here, there = _device_memory(plan.config)
    if plan.memory() > there:
        steps = ([] if plan.config.gradient_checkpointing else ["gradient_checkpointing=true"]) + (
            ["a smaller batch_size with more accumulation"] if plan.config.batch_size > 1 else []
        )
        advice = " or ".join(steps) or "a smaller model, or more devices with FSDP"
        lines.append(("", f"More than the {gib(there)} of {here}: choose {advice}."))
    return lines


def _parts_text(parts: dict[str, float]) -> str:
    return "  " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)


def _device_memory(config: TrainingConfig) -> tuple[str, int]:
    """Of the device that training would use now: its name and bytes."""
    if training_device(config).type == "cuda":
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    name = "this computer" if config.device == "cpu" else "this computer, which has no graphics card"
    return name, psutil.virtual_memory().total


def _time_lines(plan: Estimate, speed: Speed) -> list[tuple[str, str]]:
    work = plan.flops + plan.encoding_flops
    seconds = work / speed.block
    lines = [
        (
            "Speed",
            f"{speed.block / 1e12:.3g} TFLOP/s in one block forward and backward on {speed.device}: "
            f"{100 * speed.block / speed.product:.0f} % of a large matrix product's {speed.product / 1e12:.3g}",
        ),
        ("", f"  measured with {speed.shape}"),
        ("Time", f"{_long(seconds * plan.config.steps)} for {plan.config.steps:,} steps of {seconds:.3g} s"),
    ]
    if plan.devices > 1:
        lines.append(("", f"  on {plan.devices} such devices, if none waits for another (perfect scaling)"))
    days_here = seconds * plan.config.steps / 86400
    if days_here > 2 and plan.kind == "cuda" and training_device(plan.config).type == "cpu":
        hours = _long(work / REFERENCE_RATE * plan.config.steps)
        lines.append(("", f"  on a device that reaches {REFERENCE_RATE / 1e12:.0f} TFLOP/s: {hours}"))
    lines.append(("", "  not counted: reading the data, AdamW, sample videos, torch.compile"))
    return lines


def _long(seconds: float) -> str:
    hours = seconds / 3600
    return duration(seconds) if hours < 48 else f"{hours:,.0f} h ({hours / 24:,.1f} days)"


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e7 else f"{count / 1e6:.3f} M"


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def flop(count: float) -> str:
    """Three digits, in the unit that suits."""
    for unit, factor in (("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 1e3 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count / 1e9:.3g} GFLOP"
