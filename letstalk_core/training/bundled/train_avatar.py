"""The bundled model from nothing: pictures, autoencoder, clips, speech, transformer, one file. Stops and resumes."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import torch

from ...config import PRESETS
from ...data.drawn.talking_clips import ClipStore
from ...data.source import Window
from ...data.speech.synthesis import NEURAL, NEURAL_INSTALL_HINT, available_engines
from ...data.stored_clips import StoredClipSource
from ...errors import InputError
from ...model.audio_projection import AudioProjection
from ...model.checkpoint import (
    BundledAutoencoder,
    LetsTalkModel,
    load_bundled_autoencoder,
    load_checkpoint,
    save_checkpoint,
)
from ...picture.autoencoder import Autoencoder
from ...pipeline import LetsTalkPipeline
from ..build import freeze
from ..sources import DRAWN_FRAMES, encode_clips
from ..train import train_transformer
from ..training_config import TransformerTraining
from .train_projection import train_audio_projection
from .train_small_autoencoder import autoencoder_quality, train_bundled_autoencoder

NOTES = {
    "title": "LetsTalk avatar 128",
    "licence": "Apache-2.0",
    "trained_on": "drawn portraits and synthetic speech of this repository (train-avatar)",
}
PEAK = 1e-3  # largest learning rate


def transformer_config(work: Path, steps: int, clips: int, peak: float) -> TransformerTraining:
    """The settings of the bundled transformer's training; peak: the largest learning rate."""
    return TransformerTraining(
        run=str(work / "transformer"), preset="bundled", data="avatar", data_path=str(work / "clips"),
        avatar_clips=clips, steps=steps, batch_size=12, learning_rate=peak, schedule="cosine",
        warmup_steps=min(100, steps // 2),
        beta2=0.98, gradient_clip=1.0, gradient_clip_start=0, ema_decay=0.998, device="cpu", workers=0, save_every=200,
        keep_checkpoints=1,
        frozen=r"^audio_projection\.window\.",  # it heard far more speech than the clips hold
        memory_pixel_noise=False, memory_noise_steps=0, memory_shared_noise=0.5, memory_mask_share=0.5,
        mouth_weight=8.0, eye_weight=3.0, blink_weight=3.0,
        first_guess_share=0.35,  # where nothing is seen and the audio alone decides on the mouth
    )  # fmt: skip


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
) -> Path | None:
    """Train all parts in `work` and write the model to `output`, which is returned.

    Every part goes on from its last saved state. Returns None where it was asked to stop before the end. InputError
    where espeak-ng is missing.

    start: a model that bundles its autoencoder, which is taken from it; its transformer learns on, instead of all
    beginning at random. With audio_steps its audio projection is replaced by a new one of the present features, whose
    tokens mean the same to it; with 0 it stays. With 0 transformer_steps that is all.
    """
    if "espeak" not in available_engines():
        raise InputError("train-avatar needs espeak-ng for its speech; run apt-get install espeak-ng flite.")
    missing = [engine for engine in NEURAL if engine not in available_engines()]
    if missing and audio_steps:
        warnings.warn(
            f"Without {' and '.join(missing)} the audio projection learns from fewer natural voices; run "
            f"{NEURAL_INSTALL_HINT}.",
            stacklevel=2,
        )
    torch.set_flush_denormal(True)
    if start is None:
        autoencoder = train_bundled_autoencoder(work, autoencoder_steps, people)
        print("autoencoder on held-out people:", autoencoder_quality(autoencoder, work))
        projection = train_audio_projection(work, PRESETS["bundled"], speech_clips, audio_steps)
    else:
        pipeline = LetsTalkPipeline.load(start, "cpu")
        autoencoder, model, peak = pipeline.autoencoder, pipeline.model, PEAK / 2
        if audio_steps:
            model = with_new_ear(model, work, speech_clips, audio_steps)
        if not transformer_steps:
            return _write(output, model, load_bundled_autoencoder(start))
    encoder = (PRESETS["bundled"] if start is None else model.config).audio.encoder
    store = ClipStore(work / "clips", clips, DRAWN_FRAMES, encoder=encoder)
    store.render()
    encoded = encode_clips(store, autoencoder)
    if start is None:
        model, peak = new_model(autoencoder, projection, relative_scale(*encoded)), PEAK
    config = transformer_config(work, transformer_steps, clips, peak)
    freeze(model, config.frozen)
    window = Window.of(model.config)
    trained = train_transformer(config, model, autoencoder, StoredClipSource(store, window, encoded))
    if trained is None:
        return None
    return _write(output, load_checkpoint(trained), load_bundled_autoencoder(trained))


def _write(output: Path, model: LetsTalkModel, autoencoder: BundledAutoencoder | None) -> Path:
    save_checkpoint(output, model, autoencoder, dtype=torch.float16, notes=NOTES)
    return output


def with_new_ear(model: LetsTalkModel, work: Path, clips: int, steps: int) -> LetsTalkModel:
    """The model with an audio projection of the bundled model's features, trained in `work` (train_projection.py)."""
    audio = {f"audio_{name}": value for name, value in dataclasses.asdict(PRESETS["bundled"].audio).items()}
    changed = LetsTalkModel(model.config.with_changes(**audio))
    changed.transformer = model.transformer
    projection = train_audio_projection(work, changed.config, clips, steps, model.audio_projection)
    changed.audio_projection.load_state_dict(projection.state_dict())
    return changed


def relative_scale(latents: np.ndarray, portraits: np.ndarray) -> float:
    """1 / the deviation of frames' latents [n,T,C,h,w] from their portraits' [n,C,h,w]: relative_scale of the model."""
    some = slice(None, None, max(1, len(latents) // 200))
    difference = latents[some].astype(np.float32) - portraits[some, None].astype(np.float32)
    return float(1 / difference.std())


def new_model(autoencoder: Autoencoder, projection: AudioProjection, scale: float) -> LetsTalkModel:
    """An untrained model with a projection that knows mouths (train_projection.py); scale: its relative_scale."""
    config = PRESETS["bundled"].with_changes(latent_scale=autoencoder.latent_scale, relative_scale=scale)
    torch.manual_seed(0)
    model = LetsTalkModel(config)
    model.audio_projection.load_state_dict(projection.state_dict())
    return model
