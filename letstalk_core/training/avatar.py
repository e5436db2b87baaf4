"""The bundled model from nothing: pictures, autoencoder, clips, transformer, decoder, one file. Stops and resumes."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint import save_checkpoint
from ..data.clips import ClipStore
from .autoencoder import autoencoder_quality, train_autoencoder
from .transformer import CLIP_LENGTH, train_transformer

NOTES = {
    "title": "LetsTalk avatar 128",
    "licence": "Apache-2.0",
    "trained_on": "drawn portraits and synthetic speech of this repository (train-avatar)",
}


def train_avatar(
    work: Path,
    output: Path,
    *,
    autoencoder_steps: int,
    decoder_steps: int,
    transformer_steps: int,
    people: int,
    clips: int,
) -> Path:
    """Train all parts in `work` and write the model to `output`. Every part goes on where it was stopped."""
    torch.set_flush_denormal(True)
    autoencoder = train_autoencoder(work, autoencoder_steps, people)
    print("autoencoder on held-out people:", autoencoder_quality(autoencoder, work))
    store = ClipStore(work / "clips", clips, CLIP_LENGTH)
    store.render()
    model = train_transformer(work, store, autoencoder, transformer_steps)
    scale = autoencoder.latent_scale
    if decoder_steps:
        autoencoder = train_autoencoder(work, decoder_steps, people, decoder_only=True)
        print("with its decoder trained on:", autoencoder_quality(autoencoder, work))
    if abs(autoencoder.latent_scale / scale - 1) > 1e-3:
        raise RuntimeError("the latents' scale changed while only the decoder was trained")
    model.autoencoder_state = autoencoder.model.state_dict()
    model.autoencoder_config = {**autoencoder.config, "scaling_factor": scale}
    save_checkpoint(output, model, dtype=torch.float16, notes=NOTES)
    return output
