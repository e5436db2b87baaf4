"""A head start for the audio projection: tokens from which the shape of the mouth can be read off by one Linear.

The transformer then has to learn how a mouth looks, not also what speech sounds like; without this it needs many times
the steps before its lips follow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ...audio.mel import mel_features
from ...config import LetsTalkConfig
from ...data.drawn.motion import MOUTH_COLUMNS
from ...data.drawn.stills import HELD_OUT
from ...data.speech.spoken_clips import speech_clip
from ...model.audio_projection import AudioProjection
from ..loop import Loss, TrainingRun, small_config

SECONDS = 4.0  # length of a spoken clip
FRAMES = round(SECONDS * 25)


class MouthReader(nn.Module):
    """Reads mouth controls (open, width, round, teeth, tongue) off the audio tokens of features."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.projection = AudioProjection(config)
        self.read = nn.Linear(config.audio.tokens * config.audio.width, MOUTH_COLUMNS)

    def along(self, features: Tensor) -> Tensor:
        """Features [n,T,L,E] of recordings -> mouth controls [n,T-W+1,5] of the frames whose whole window is there."""
        tokens = self.projection.tokens(self.projection.window.along(features))  # [n,T-W+1,K,A]
        return self.read(tokens.flatten(2))


def speech_pairs(path: Path, count: int, first: int = 0, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Features float16 [count,F,4,80] and mouths float32 [count,F,5] of spoken clips; made once and kept in `path`."""
    if path.exists():
        kept = np.load(path)
        return kept["features"], kept["mouths"]
    features = np.zeros((count, FRAMES, 4, 80), np.float16)
    mouths = np.zeros((count, FRAMES, MOUTH_COLUMNS), np.float32)
    for i in tqdm(range(count), desc="speech", mininterval=10):
        waveform, mouth = speech_clip(np.random.default_rng((first + i, 4)), split, SECONDS)
        features[i] = mel_features(torch.from_numpy(waveform), FRAMES).numpy()
        mouths[i] = mouth[:, :MOUTH_COLUMNS]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "wb") as file:
        np.savez(file, features=features, mouths=mouths)
    path.with_suffix(".part").replace(path)
    return features, mouths


def train_audio_projection(
    work: Path, config: LetsTalkConfig, clips: int, steps: int, batch: int = 8
) -> AudioProjection:
    """Train an audio projection in work/audio (resumed if begun), `batch` whole clips a step. The blink token stays
    untrained."""
    features, mouths = speech_pairs(work / "audio" / "speech.npz", clips)
    torch.manual_seed(0)
    run = TrainingRun(work / "audio", MouthReader(config), small_config(steps, 2e-3))
    reach = config.audio.window // 2
    scale = torch.from_numpy(mouths.reshape(-1, MOUTH_COLUMNS).std(0))

    def loss_of(step: int) -> Loss:
        chosen = np.random.default_rng((5, step)).integers(0, clips, batch)
        with run.accelerator.autocast():
            read = run.own.along(torch.from_numpy(features[chosen]).float()).float()
        return Loss(F.mse_loss(read / scale, torch.from_numpy(mouths[chosen, reach:-reach]) / scale))

    run.fit(loss_of)
    reader = run.averaged()
    print("mouth read from held-out speech, r:", reading_accuracy(reader, work))
    return reader.projection


@torch.no_grad()
def reading_accuracy(reader: MouthReader, work: Path, clips: int = 60) -> list[float]:
    """Correlation with the truth on held-out voices, languages and sentences, for each of the five controls."""
    features, mouths = speech_pairs(work / "audio" / "heldout.npz", clips, HELD_OUT, "heldout")
    reach = reader.projection.config.audio.window // 2
    read = reader.along(torch.from_numpy(features).float()).numpy().reshape(-1, MOUTH_COLUMNS)
    truth = mouths[:, reach:-reach].reshape(-1, MOUTH_COLUMNS)
    return [round(float(np.corrcoef(read[:, i], truth[:, i])[0, 1]), 3) for i in range(MOUTH_COLUMNS)]
