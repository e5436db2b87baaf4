"""How far a mouth is open, by its sound alone: read from the bundled model's audio tokens by a linear map.

The map is fitted to synthetic speech, whose mouths are known, and lies beside this file. It holds for the model that it
was fitted to; `python -m letstalk_core.data.preparation.ear_opening` fits it again (needs espeak-ng).
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from ...audio.encoder import AudioEncoder, FeatureStream
from ...audio.load_encoder import load_audio_encoder
from ...audio.recording import SAMPLE_RATE, Recording
from ...errors import InputError
from ...model.audio_projection import window_features
from ...model.checkpoint import load_checkpoint
from ...weights import add_to_digest, write_weights
from ..ridge import ridge
from ..speech.spoken_clips import speech_clip

MODEL = Path(__file__).resolve().parents[3] / "weights" / "letstalk-portraits-256.safetensors"
READ_OUT = Path(__file__).with_suffix(".safetensors")
CLIPS, SECONDS = 60, 4.0  # of synthetic speech that the map is fitted to
RIDGE = 0.01  # of the variance of a token's channel


class Ear(nn.Module):
    """The bundled model's audio encoder and audio projection, with the map on top."""

    def __init__(self, encoder: AudioEncoder, projection: nn.Module, window: int, fps: float, weights: Tensor):
        super().__init__()
        self.encoder, self.projection, self.window, self.fps = encoder, projection, window, fps
        self.register_buffer("weights", weights)  # [K*A + 1]: the last one is the level

    def features(self, recording: Recording) -> FeatureStream:
        """What `opening` takes, of a recording, at the model's frame rate."""
        return FeatureStream(self.encoder, recording, self.fps)

    @torch.inference_mode()
    def tokens(self, features: Tensor) -> Tensor:
        """All audio tokens of each frame in a row, [F,K*A], of features [F,L,E]."""
        return self.projection(window_features(features, self.window)[None])[0].flatten(1).float()

    def opening(self, features: Tensor) -> np.ndarray:
        """How far the mouth is open, [F], in puppets' units, of features [F,L,E]."""
        return (self.tokens(features) @ self.weights[:-1] + self.weights[-1]).numpy()


@functools.cache
def load_ear() -> Ear:
    """The ear, loaded once in a process. InputError where this copy has no bundled model, or where the map was fitted
    to another one."""
    encoder, projection, window, fps = _hearing()
    stored = load_file(READ_OUT)
    if bytes(stored["model"].numpy()).hex() != _digest(projection):
        raise InputError(
            f"{READ_OUT} belongs to another model than {MODEL}; fit it again with "
            "python -m letstalk_core.data.preparation.ear_opening, or leave the check of lips out (--no-lips)."
        )
    return Ear(encoder, projection, window, fps, stored["weights"])


def _hearing() -> tuple[AudioEncoder, nn.Module, int, float]:
    if not MODEL.exists():
        raise InputError(
            f"This copy has no bundled model, {MODEL}, whose ear compares the sound with the mouth; take the whole "
            "repository, or leave that check out (--no-lips)."
        )
    model = load_checkpoint(MODEL)
    audio = model.config.audio
    return load_audio_encoder(audio.encoder), model.audio_projection.eval(), audio.window, model.config.fps


def _digest(projection: nn.Module) -> str:
    digest = hashlib.sha256()
    add_to_digest(digest, dict(sorted(projection.state_dict().items())))
    return digest.hexdigest()


def fit_read_out(clips: int = CLIPS) -> None:
    """Fit the map to voices of the training and write it (ridge regression)."""
    encoder, projection, window, fps = _hearing()
    ear = Ear(encoder, projection, window, fps, torch.zeros(1))
    tokens, openings = [], []
    for number in tqdm(range(clips), desc="read-out", disable=None):
        waveform, mouth = speech_clip(np.random.default_rng((number, 12)), "train", SECONDS)
        tokens.append(ear.tokens(encoder.encode(torch.from_numpy(waveform), SAMPLE_RATE, fps)).double())
        openings.append(torch.from_numpy(mouth[: len(tokens[-1]), 0]).double())
    weights, level = ridge(torch.cat(tokens).numpy(), torch.cat(openings).numpy(), RIDGE)
    stored = torch.from_numpy(np.append(weights, level)).float()
    digest = torch.tensor(list(bytes.fromhex(_digest(projection))), dtype=torch.uint8)
    write_weights(READ_OUT, {"weights": stored, "model": digest}, {})


if __name__ == "__main__":
    fit_read_out()
