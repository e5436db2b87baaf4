"""A head start for the audio projection: tokens from which the shape of the mouth can be read off by one Linear.

The transformer then has to learn how a mouth looks, not also what speech sounds like; without this it needs many times
the steps before its lips follow.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...audio.mel import MEL_BANDS, MEL_COLUMNS
from ...config import LetsTalkConfig
from ...data.drawn.motion import MOUTH_COLUMNS
from ...data.drawn.stills import HELD_OUT
from ...data.speech.pairs import FRAMES, SpokenPairs
from ...model.audio_projection import AudioProjection
from ..loop import Loss, TrainingRun, small_config

BATCH = 24  # clips of a step
PEAK = 2e-3  # largest learning rate
COLOUR = 0.15  # deviation of a microphone's colour, a band, in deviations of log-mel features


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


def train_audio_projection(
    work: Path, config: LetsTalkConfig, clips: int, steps: int, start: AudioProjection | None = None
) -> AudioProjection:
    """Train an audio projection in work/audio (resumed if begun) on `clips` clips, BATCH of them a step. The blink token
    stays as it is.

    start: a projection to go on from, so that its tokens go on meaning what a transformer has learnt of them.
    """
    pairs = SpokenPairs(work / "audio" / "pairs", clips, work / "audio" / "utterances").make(os.cpu_count() or 1)
    torch.manual_seed(0)
    reader = MouthReader(config)
    if start is not None:
        reader.projection.load_state_dict(start.state_dict())
    run = TrainingRun(work / "audio", reader, small_config(steps, PEAK))
    reach = config.audio.window // 2
    scale = torch.from_numpy(np.asarray(pairs.mouths[:2000, :, :MOUTH_COLUMNS], np.float32).std((0, 1)))

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((5, step))
        chosen = np.sort(rng.integers(0, clips, BATCH))
        features = torch.from_numpy(pairs.features[chosen]).float() + _other_colour(rng)
        mouths = torch.from_numpy(pairs.mouths[chosen, reach:-reach, :MOUTH_COLUMNS]).float()
        with run.accelerator.autocast():
            read = run.own.along(features).float()
        return Loss(F.mse_loss(read / scale, mouths / scale))

    run.fit(loss_of)
    reader = run.averaged()
    print("mouth read from held-out speech, r:", reading_accuracy(reader, work))
    return reader.projection


def _other_colour(rng: np.random.Generator) -> Tensor:
    """What other microphones and rooms add to log-mel features: [BATCH,1,1,80], and noise of a small strength."""
    colour = COLOUR * rng.standard_normal((BATCH, 1, 1, MEL_BANDS), dtype=np.float32)
    hiss = rng.uniform(0, 0.2, (BATCH, 1, 1, 1)) * rng.standard_normal((BATCH, FRAMES, MEL_COLUMNS, MEL_BANDS))
    return torch.from_numpy(colour + hiss.astype(np.float32))


@torch.no_grad()
def reading_accuracy(reader: MouthReader, work: Path, clips: int = 100) -> list[float]:
    """Correlation with the truth on held-out voices, languages and sentences, for each of the five controls."""
    utterances = work / "audio" / "utterances"
    pairs = SpokenPairs(work / "audio" / "heldout", clips, utterances, HELD_OUT, "heldout").make(os.cpu_count() or 1)
    reach = reader.projection.config.audio.window // 2
    read = reader.along(torch.from_numpy(pairs.features[:]).float()).numpy().reshape(-1, MOUTH_COLUMNS)
    truth = pairs.mouths[:, reach:-reach, :MOUTH_COLUMNS].reshape(-1, MOUTH_COLUMNS).astype(np.float32)
    return [round(float(np.corrcoef(read[:, i], truth[:, i])[0, 1]), 3) for i in range(MOUTH_COLUMNS)]
