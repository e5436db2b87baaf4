"""What a training would take, in lines to read."""

from __future__ import annotations

import textwrap

import psutil
import torch
from torch import nn

from ...autoencoders import find_autoencoder
from ...errors import InputError
from ...model.transformer import GRADIENT_CHECKPOINTING
from ...picture.autoencoder import SMALL_DC_AE, build_autoencoder
from ...picture.portrait_autoencoder import SMALL_PORTRAIT_AE
from ...render.estimate import duration
from ..sources import HELD_SHARE
from ..training_config import AutoencoderTraining, TrainingConfig, TransformerTraining
from .block_speed import Speed, measure_speed, training_device
from .requirements import GIB, TrainingEstimate, estimate_training

COMPUTED_AGAIN = {"selective": "what is cheap and large computed twice", "full": "blocks computed twice"}
REFERENCE_RATE = 1e14  # FLOP/s, for planning where there is no graphics card


def describe_training(config: TrainingConfig, devices: int = 1) -> str:
    """What a training would take on each of `devices` devices like the one at hand, in lines to read."""
    if devices < 1:
        raise InputError(f"A training needs one device or more, not {devices}.")
    if isinstance(config, AutoencoderTraining):
        return _describe_autoencoder(config, devices)
    estimate = estimate_training(config, devices)
    lines = [
        *_model_lines(estimate),
        *_memory_lines(estimate),
        *_time_lines(estimate, measure_speed(config, estimate.model, estimate.step, estimate.latent_side)),
    ]
    return "\n".join(_wrapped(title, text) for title, text in lines)


def _wrapped(title: str, text: str) -> str:
    before, indent = f"{title + ':' if title else '':<12}", " " * (len(text) - len(text.lstrip()))
    return textwrap.fill(before + text, 112, subsequent_indent=" " * 12 + indent)


def _describe_autoencoder(config: AutoencoderTraining, devices: int) -> str:
    found = find_autoencoder(config.autoencoder or config.init_from)
    with torch.device("meta"):
        module: nn.Module = found or build_autoencoder(SMALL_PORTRAIT_AE if config.guided else SMALL_DC_AE)
    count = sum(parameter.numel() for parameter in module.parameters())
    images = config.batch_size * config.accumulation * devices
    return (
        f"Autoencoder: {count / 1e6:.2f} M parameters; {config.steps * images:,} images in {config.steps:,} steps of "
        f"{images}. There is no estimate of its memory and time."
    )


def _model_lines(estimate: TrainingEstimate) -> list[tuple[str, str]]:
    config, model, parameters = estimate.config, estimate.model, estimate.parameters
    trained = "all" if parameters.trained == parameters.all else millions(parameters.trained)
    name = config.preset or f"as in {config.init_from}"
    if config.preset and config.model:
        name += " with changes"
    adapters = f", adapters {millions(parameters.adapters)}" if parameters.adapters else ""
    examples = config.steps * estimate.clips
    data = (
        f"{examples:,} clips of {model.transformer.clip_frames} frames in {config.steps:,} steps of {estimate.clips} "
        f"(batch_size {config.batch_size} x accumulation {config.accumulation} x {estimate.devices} "
        f"device{'s' if estimate.devices > 1 else ''})"
    )
    stretches = config.avatar_clips if config.data == "avatar" else estimate.shards.stretches
    stretches = round((1 - config.held_out_share) * stretches)
    if stretches:
        data += f"; {examples / stretches:.3g} epochs of {stretches:,} stretches"
    work = f"{flop(estimate.flops)} per step and device"
    if config.gradient_checkpointing != "none":
        work += f", {COMPUTED_AGAIN[config.gradient_checkpointing]}"
    if estimate.encoded:
        why = (
            "the shards hold no latents"
            if estimate.encoded > 1 + model.transformer.memory_frames
            else "noise on portrait and memory"
        )
        work += f"; {flop(estimate.encoding_flops)} more to encode {estimate.encoded} frames an example ({why})"
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


def _memory_lines(estimate: TrainingEstimate) -> list[tuple[str, str]]:
    where = "a graphics card" if estimate.kind == "cuda" else "the CPU"
    way = f", each of {estimate.devices} (DDP)" if estimate.devices > 1 else ""
    precision = {"no": "fp32"}.get(estimate.precision, estimate.precision)
    lines = [
        ("Memory", f"{gib(estimate.memory())} on {where} in {precision}{way}"),
        ("", _parts_text(estimate.parts())),
    ]
    if estimate.shards.held and estimate.kind == "cuda" and not estimate.encoded:  # see ShardSource.hold
        enough = f"if {HELD_SHARE:.0%} of what is free is enough"
        lines.append(("", f"  {gib(estimate.shards.held)} more for all latents and features of the shards, {enough}"))
    if estimate.devices > 1:
        lines += [
            ("", f"{gib(estimate.memory(True))} with FSDP over {estimate.devices}"),
            ("", _parts_text(estimate.parts(True))),
        ]
    here, there = _device_memory(estimate.config)
    if estimate.memory() > there:
        steps = [f"gradient_checkpointing={way}" for way in _next_checkpointing(estimate.config)] + (
            ["a smaller batch_size with more accumulation"] if estimate.config.batch_size > 1 else []
        )
        advice = " or ".join(steps) or "a smaller model, or more devices with FSDP"
        lines.append(("", f"More than the {gib(there)} of {here}: choose {advice}."))
    return lines


def _next_checkpointing(config: TransformerTraining) -> tuple[str, ...]:
    """The cheapest gradient checkpointing that keeps less than the configured one does; none: empty."""
    place = GRADIENT_CHECKPOINTING.index(config.gradient_checkpointing)
    return GRADIENT_CHECKPOINTING[place + 1 : place + 2]


def _parts_text(parts: dict[str, float]) -> str:
    return "  " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)


def _device_memory(config: TrainingConfig) -> tuple[str, int]:
    """Name and bytes of memory of the device that training would use now."""
    if training_device(config).type == "cuda":
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    name = "this computer" if config.device == "cpu" else "this computer, which has no graphics card"
    return name, psutil.virtual_memory().total


def _time_lines(estimate: TrainingEstimate, speed: Speed) -> list[tuple[str, str]]:
    work = estimate.flops + estimate.encoding_flops
    seconds = work / speed.block
    lines = [
        (
            "Speed",
            f"{speed.block / 1e12:.3g} TFLOP/s in one block forward and backward on {speed.device}: "
            f"{100 * speed.block / speed.product:.0f} % of a large matrix product's {speed.product / 1e12:.3g}",
        ),
        ("", f"  measured with {speed.shape}"),
        ("Time", f"{_long(seconds * estimate.config.steps)} for {estimate.config.steps:,} steps of {seconds:.3g} s"),
    ]
    if estimate.devices > 1:
        lines.append(("", f"  on {estimate.devices} such devices, if none waits for another (perfect scaling)"))
    days_here = seconds * estimate.config.steps / 86400
    if days_here > 2 and estimate.kind == "cuda" and training_device(estimate.config).type == "cpu":
        hours = _long(work / REFERENCE_RATE * estimate.config.steps)
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
