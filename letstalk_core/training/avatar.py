"""The bundled model from nothing: pictures, autoencoder, clips, transformer, decoder, one file. Stops and resumes."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint import save_checkpoint
from ..data.clips import ClipStore
from ..data.speech import available_engines
from ..errors import InputError
from .audio import train_audio_projection
from .autoencoder import autoencoder_quality, train_autoencoder, train_decoder
from .transformer import BUNDLED, CLIP_LENGTH, train_transformer

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
    speech_clips: int,
    audio_steps: int,
) -> Path:
    """Train all parts in `work` and write the model to `output`. Every part goes on from its last saved state."""
    if "espeak" not in available_engines():
        raise InputError("train-avatar needs espeak-ng for its speech; run apt-get install espeak-ng flite.")
    torch.set_flush_denormal(True)
    autoencoder = train_autoencoder(work, autoencoder_steps, people)
    print("autoencoder on held-out people:", autoencoder_quality(autoencoder, work))
    store = ClipStore(work / "clips", clips, CLIP_LENGTH)
    store.render()
    projection = train_audio_projection(work, BUNDLED, speech_clips, audio_steps)
    model = train_transformer(work, store, autoencoder, projection, transformer_steps)
    autoencoder = train_decoder(work, decoder_steps, autoencoder, people)
    print("with its decoder trained on:", autoencoder_quality(autoencoder, work))
    model.autoencoder_state = autoencoder.model.state_dict()
    model.autoencoder_config = {**autoencoder.config, "scaling_factor": autoencoder.latent_scale}
    save_checkpoint(output, model, dtype=torch.float16, notes=NOTES)
    return output
