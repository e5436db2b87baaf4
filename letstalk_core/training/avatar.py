"""The bundled model from nothing: pictures, autoencoder, clips, speech, transformer, one file. Stops and resumes."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint import save_checkpoint
from ..data.clips import ClipStore
from ..data.speech import available_engines
from ..errors import InputError
from ..pipeline import LetsTalkPipeline
from .audio import train_audio_projection
from .autoencoder import autoencoder_quality, train_autoencoder
from .transformer import (
    BUNDLED,
    CLIP_LENGTH,
    PEAK,
    encode_clips,
    new_model,
    relative_scale,
    train_transformer,
)

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
    transformer_steps: int,
    people: int,
    clips: int,
    speech_clips: int,
    audio_steps: int,
    start: Path | None = None,
) -> Path:
    """Train all parts in `work` and write the model to `output`. Every part goes on from its last saved state.

    start: a model that bundles its autoencoder; that one and the audio projection are taken from it, and its
    transformer learns on, instead of all beginning at random.
    """
    if "espeak" not in available_engines():
        raise InputError("train-avatar needs espeak-ng for its speech; run apt-get install espeak-ng flite.")
    torch.set_flush_denormal(True)
    if start is None:
        autoencoder = train_autoencoder(work, autoencoder_steps, people)
        print("autoencoder on held-out people:", autoencoder_quality(autoencoder, work))
        projection = train_audio_projection(work, BUNDLED, speech_clips, audio_steps)
    else:
        pipeline = LetsTalkPipeline.load(start, "cpu")
        autoencoder = pipeline.autoencoder
    store = ClipStore(work / "clips", clips, CLIP_LENGTH)
    store.render()
    encoded = encode_clips(store, autoencoder)
    if start is None:
        model, peak = new_model(autoencoder, projection, relative_scale(*encoded)), PEAK
    else:
        model, peak = pipeline.model, PEAK / 2
    model = train_transformer(work, store, encoded, model, transformer_steps, peak=peak)
    model.autoencoder_state = autoencoder.model.state_dict()
    model.autoencoder_config = {**autoencoder.config, "scaling_factor": autoencoder.latent_scale}
    save_checkpoint(output, model, dtype=torch.float16, notes=NOTES)
    return output
