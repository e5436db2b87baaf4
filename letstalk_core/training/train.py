"""One training from its configuration to a model file, as `python -m letstalk_core train` runs it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..autoencoders import find_autoencoder
from ..data.source import Source
from ..model.checkpoint import LetsTalkModel
from ..picture.autoencoder import Autoencoder
from .build import build_model
from .examples import BatchOrder, held_apart, load_batches
from .export import ModelExporter
from .fitting import autocast, fit_source
from .loop import Loss, TrainingRun, make_accelerator
from .sources import open_source
from .train_autoencoder import train_autoencoder
from .training_config import AutoencoderTraining, TrainingConfig, TransformerTraining
from .transformer_loss import Denoiser, TransformerLoss

HELD_OUT_EXAMPLES = 16  # examples of the held-out loss, rounded up to whole batches


def train(config: TrainingConfig) -> Path | None:
    """Train as configured; returns the model's file, or None where it was asked to stop before the end."""
    if isinstance(config, AutoencoderTraining):
        return train_autoencoder(config)
    accelerator = make_accelerator(config, Path(config.run))
    torch.manual_seed(config.seed)
    autoencoder = find_autoencoder(config.autoencoder, config.init_from)
    if autoencoder is not None:
        autoencoder.to(accelerator.device)
    model = build_model(config, autoencoder, accelerator)
    source = open_source(config, model.config, autoencoder, accelerator)
    return train_transformer(config, model, autoencoder, source, accelerator)


def train_transformer(
    config: TransformerTraining, model: LetsTalkModel, autoencoder: Autoencoder | None, source: Source, accelerator=None
) -> Path | None:
    """Train those parameters of a model that require a gradient, on a source, in config.run; returns as train."""
    folder = Path(config.run)
    accelerator = accelerator or make_accelerator(config, folder)
    exporter = ModelExporter(config, model, autoencoder, accelerator)
    model.train()
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    if config.compile:
        for block in model.transformer.blocks:
            block.compile()
    given = {"model": model.config.flat(), "stretches": len(source)}
    given["autoencoder"] = autoencoder.encoder_digest if autoencoder else None
    run = TrainingRun(folder, Denoiser(model), config, config.batch_size, accelerator, given)
    if autoencoder is not None:
        half = accelerator.mixed_precision == "bf16" and run.device.type == "cuda"
        autoencoder.to(run.device, torch.bfloat16 if half else torch.float32)
    stretches, held_out = held_apart(len(source), config.held_out_share, config.seed)
    if config.held_out_share and not len(held_out):
        warnings.warn(f"held_out_share of {len(source)} stretches is none: nothing is held out.", stacklevel=1)
    loss_of = autocast(run, TransformerLoss(config, model.config, autoencoder, run.device))

    def after_save(step: int, average: dict[str, Tensor]) -> None:
        exporter(step, average)
        if len(held_out):
            run.record({"held_out_loss": held_out_loss(loss_of, source, held_out, config)})

    return fit_source(run, config, source, stretches, loss_of, after_save, exporter.path)


@torch.no_grad()
def held_out_loss(
    loss_of: Callable[[dict], Loss], source: Source, stretches: np.ndarray, config: TransformerTraining
) -> float:
    """Mean loss of a few examples that are never trained on: the same ones, with the same noise, each time."""
    count = math.ceil(min(len(stretches), HELD_OUT_EXAMPLES) / config.batch_size)
    batches = load_batches(source, BatchOrder(stretches, config.seed + 1, config.batch_size), workers=0)
    return float(torch.cat([loss_of(batch).per_example for batch in itertools.islice(batches, count)]).mean())
