"""python -m letstalk_core train: one run from its configuration to a model file, stopped and resumed at will."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..autoencoder import Autoencoder, load_autoencoder
from ..checkpoint import CONFIG_KEY, LetsTalkModel, load_checkpoint, save_checkpoint
from ..data.source import Source
from ..errors import InputError
from ..pipeline import LetsTalkPipeline, bundled_autoencoder
from .config import TrainingConfig
from .examples import Plan, held_apart, load_batches
from .loop import Loss, TrainingRun, make_accelerator
from .sources import open_source
from .transformer import Denoiser, TransformerLoss

BUNDLED_PARAMETERS = 50e6  # autoencoders up to this size go into the model's file
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def train(config: TrainingConfig) -> Path | None:
    """Train as configured; returns the model's file, or None where it was asked to stop before the end."""
    accelerator = make_accelerator(config, Path(config.run))
    torch.manual_seed(config.seed)
    autoencoder = find_autoencoder(config)
    model = build_model(config, autoencoder, accelerator)
    source = open_source(config, model.config, autoencoder, accelerator)
    return train_transformer(config, model, autoencoder, source, accelerator)


def train_transformer(
    config: TrainingConfig, model: LetsTalkModel, autoencoder: Autoencoder | None, source: Source, accelerator=None
) -> Path | None:
    """Train a model's transformer and audio projection on a source, in config.run; see train."""
    folder = Path(config.run)
    accelerator = accelerator or make_accelerator(config, folder)
    model.train()
    freeze(model, config.frozen)
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    if config.compile:
        for block in model.transformer.blocks:
            block.compile()
    run = TrainingRun(folder, Denoiser(model), config, config.batch_size, accelerator)
    if autoencoder is not None:
        half = accelerator.mixed_precision == "bf16" and run.device.type == "cuda"
        autoencoder.to(run.device, torch.bfloat16 if half else torch.float32)
    loss_of_batch = TransformerLoss(config, model, autoencoder, run.device)
    stretches, _ = held_apart(len(source), config.held_out_share, config.seed)
    plan = Plan(
        stretches, config.seed, config.batch_size, accelerator.process_index, accelerator.num_processes,
        run.batches_done,
    )  # fmt: skip
    exporter = Exporter(config, model, autoencoder, accelerator)

    def loss_of(batch: dict) -> Loss:
        with accelerator.autocast():
            return loss_of_batch(run.module, batch)

    finished = run.fit(loss_of, load_batches(source, plan, config.workers, run.device.type == "cuda"), exporter)
    accelerator.end_training()
    return exporter.path if finished else None


def freeze(model: LetsTalkModel, pattern: str) -> None:
    """Let everything learn but the parameters whose name the regular expression finds. InputError where nothing is
    left, or the pattern finds nothing."""
    if not pattern:
        return
    try:
        found = [p for name, p in model.named_parameters() if re.search(pattern, name)]
    except re.error as error:
        raise InputError(f"frozen is {pattern!r}, which is no regular expression ({error}).") from None
    if not found:
        raise InputError(f"frozen is {pattern!r}, but no parameter has such a name.")
    for parameter in found:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"frozen is {pattern!r}: nothing is left to train.")


class Exporter:
    """After each checkpoint: `model.safetensors` with the averaged weights, and now and then a sample video."""

    def __init__(self, config: TrainingConfig, model: LetsTalkModel, autoencoder: Autoencoder | None, accelerator):
        self.config, self.accelerator, self.path = config, accelerator, Path(config.run) / "model.safetensors"
        self.model = LetsTalkModel(model.config)
        if autoencoder is not None and sum(p.numel() for p in autoencoder.parameters()) <= BUNDLED_PARAMETERS:
            self.model.autoencoder_state = {k: v.cpu().clone() for k, v in autoencoder.model.state_dict().items()}
            self.model.autoencoder_config = {**autoencoder.config, "scaling_factor": autoencoder.latent_scale}

    def __call__(self, step: int, average: dict[str, Tensor]) -> None:
        if self.accelerator.is_main_process:
            self.model.load_state_dict({name.removeprefix("model."): value for name, value in average.items()})
            save_checkpoint(self.path, self.model, notes={"trained_steps": str(step)})
            if self.config.sample_every and step % self.config.sample_every == 0:
                self._sample(step)
        self.accelerator.wait_for_everyone()

    def _sample(self, step: int) -> None:
        """A video of held-out speech. What goes wrong here must not end a training: it is said."""
        from ..long_video import SamplingSettings

        config, folder = self.config, Path(self.config.run) / "samples"
        folder.mkdir(exist_ok=True)
        try:
            pipeline = LetsTalkPipeline.load(
                self.path,
                "cpu" if config.device == "cpu" else "auto",
                autoencoder=None if self.model.autoencoder_state else config.autoencoder or None,
                audio_encoder=config.audio_encoder or None,
            )
            pipeline.write_video(
                config.sample_portrait or EXAMPLES / "portrait.png",
                config.sample_audio or EXAMPLES / "speech.wav",
                folder / f"step-{step:08d}.mp4",
                SamplingSettings(steps=config.sample_steps or None),
                max_seconds=config.sample_seconds,
                resume=False,
            )
        except (InputError, RuntimeError, OSError) as error:
            warnings.warn(f"no sample video of step {step}: {error}", stacklevel=1)


def find_autoencoder(config: TrainingConfig) -> Autoencoder | None:
    """From config.autoencoder (a file or folder of its own, or a model that bundles one), else from init_from."""
    for path in (config.autoencoder, config.init_from):
        if path and _is_model(path):
            found = bundled_autoencoder(load_checkpoint(path), path)
            if found is not None:
                return found
        elif path == config.autoencoder and path:
            return load_autoencoder(path)
    return None


def _is_model(path: str) -> bool:
    """Whether a file is a checkpoint of ours."""
    try:
        with safe_open(path, "pt") as file:
            return CONFIG_KEY in (file.metadata() or {})
    except Exception:  # not there, a folder, or no safetensors file: others say so
        return False


def build_model(config: TrainingConfig, autoencoder: Autoencoder | None, accelerator) -> LetsTalkModel:
    """A model from the preset or from init_from, with random weights where nothing is taken from there."""
    if config.preset:
        model_config = config.model_config()
    else:
        model_config = config.model_config(load_checkpoint(config.init_from).config)
    if autoencoder is not None:
        if autoencoder.latent_channels != model_config.latent_channels:
            raise InputError(
                f"The autoencoder has {autoencoder.latent_channels} latent channels, but the model "
                f"{model_config.latent_channels}; set model.latent_channels={autoencoder.latent_channels}, or choose "
                "another autoencoder."
            )
        model_config = dataclasses.replace(model_config, latent_scale=autoencoder.latent_scale)
    model = LetsTalkModel(model_config)
    if config.init_from:
        from .initialise import initialise_from

        report = initialise_from(model, config.init_from)
        if accelerator.is_main_process:
            print(report.summary())
            Path(config.run).mkdir(parents=True, exist_ok=True)
            (Path(config.run) / "init_from.txt").write_text(report.text() + "\n")
    return model
