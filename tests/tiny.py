"""A whole model in a file that runs in milliseconds: untrained, for tests of everything around the model."""

from pathlib import Path

import torch

from letstalk_core.model.checkpoint import BundledAutoencoder, LetsTalkModel, save_checkpoint
from letstalk_core.picture.autoencoder import SMALL_DC_AE, build_autoencoder
from letstalk_core.picture.portrait_autoencoder import SMALL_PORTRAIT_AE
from letstalk_core.presets import PRESETS

CONFIG = PRESETS["tiny"].with_changes(
    objective="x0",
    learn_variance=False,
    default_sampler="euler",
    default_steps=2,
    controls=("eyelids",),
    relative_latents=True,
    latent_scale=1.0,
)
AUTOENCODER = {
    **SMALL_DC_AE,
    "latent_channels": 4,
    "encoder_block_out_channels": [4, 8, 8, 8, 8],
    "decoder_block_out_channels": [4, 8, 8, 8, 8],
    "decoder_layers_per_block": [0, 1, 1, 1, 1],
}

GUIDED_AUTOENCODER = {
    **SMALL_PORTRAIT_AE,
    "latent_channels": 4,
    "block_out_channels": [8, 8, 8],
    "encoder_layers_per_block": [0, 1, 1],
    "decoder_layers_per_block": [1, 1, 1],
}


def write_tiny_checkpoint(path: Path, bundle: bool = True, autoencoder_config: dict = AUTOENCODER, **changes) -> Path:
    """A checkpoint of the tiny preset; bundle: with an autoencoder of its own, of this configuration."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(autoencoder_config)
    model = LetsTalkModel(CONFIG.with_changes(**changes))
    torch.manual_seed(1)  # whatever was drawn before
    for parameter in model.parameters():  # a fresh model's gates are closed: open them, so that inputs matter
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    bundled = BundledAutoencoder(autoencoder.config, autoencoder.model.state_dict())
    save_checkpoint(path, model, bundled if bundle else None)
    return path
