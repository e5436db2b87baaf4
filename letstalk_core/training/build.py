"""The model that a training begins with."""

from __future__ import annotations

import re
from pathlib import Path

from ..autoencoders import is_model
from ..errors import InputError
from ..files import check_file
from ..model.checkpoint import LetsTalkModel, load_checkpoint
from ..model.lora import add_lora
from ..picture.autoencoder import Autoencoder
from .initialise import initialise_from
from .training_config import TransformerTraining


def build_model(config: TransformerTraining, autoencoder: Autoencoder | None, accelerator) -> LetsTalkModel:
    """The model of the preset or of init_from, with random weights where nothing is taken from there.

    What does not learn has requires_grad False: with lora_rank everything but the adapters, else what `frozen` names.
    Raises InputError where settings, autoencoder and files do not fit each other.
    """
    if config.init_from:
        check_file(config.init_from, "model")
    if config.preset:
        model_config = config.model_config()
    else:
        if not is_model(config.init_from):
            raise InputError(f"{config.init_from} does not say what model it is; set preset, such as linear-B.")
        model_config = config.model_config(load_checkpoint(config.init_from).config)
    if autoencoder is not None:
        needed = model_config.transformer.latent_channels
        if autoencoder.latent_channels != needed:
            raise InputError(
                f"The autoencoder has {autoencoder.latent_channels} latent channels, but the model "
                f"{needed}; set model.latent_channels={autoencoder.latent_channels}, or choose another autoencoder."
            )
        model_config = model_config.with_changes(latent_scale=autoencoder.latent_scale)
    model = LetsTalkModel(model_config)
    if config.init_from:
        report = initialise_from(model, config.init_from)
        if accelerator.is_main_process:
            print(report.summary())
            Path(config.run).mkdir(parents=True, exist_ok=True)
            (Path(config.run) / "init_from.txt").write_text(report.text() + "\n")
    if config.lora_rank:
        add_lora(model, config.lora_rank, config.lora_alpha or config.lora_rank)
    else:
        freeze(model, config.frozen)
    return model


def freeze(model: LetsTalkModel, pattern: str) -> None:
    """Let everything learn but the parameters whose name the regular expression finds.

    InputError where it finds nothing, or nothing is left.
    """
    model.requires_grad_(True)
    if not pattern:
        return
    try:
        found = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
    except re.error as error:
        raise InputError(f"frozen is {pattern!r}, which is no regular expression ({error}).") from None
    if not found:
        raise InputError(f"frozen is {pattern!r}, but no parameter has such a name.")
    for parameter in found:
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"frozen is {pattern!r}: nothing is left to train.")
