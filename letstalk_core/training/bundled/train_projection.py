"""A head start for the audio projection: tokens from which the shape of the mouth can be read off by one Linear.

The transformer then has to learn how a mouth looks, not also what speech sounds like; without this it needs many times
the steps before its lips follow.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...config import LetsTalkConfig
from ...data.drawn.motion import MOUTH_COLUMNS
from ...data.drawn.stills import HELD_OUT
from ...data.speech.pairs import SpokenPairs
from ...data.speech.visemes import MOUTH
from ...model.audio_projection import AudioProjection
from ..loop import Loss, TrainingRun, small_config
from .known_tokens import learn_tokens

BATCH = 32  # clips of a step
HELD_OUT_CLIPS = 100
PEAK = 1e-3  # largest learning rate
CLOSED = MOUTH.index("closed")
CLOSED_WEIGHT = 3  # of the frames of an m, b or p
NOISE, DROPOUT, WEIGHT_DECAY = 0.1, 0.3, 0.05  # of the features, in their deviations; and of the weights


class MouthReader(nn.Module):
    """Reads mouth controls (open, width, round, teeth, tongue) off the audio tokens of features."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.projection = AudioProjection(config)
        self.read = nn.Linear(config.audio.tokens * config.audio.width, MOUTH_COLUMNS)

    def tokens_along(self, features: Tensor) -> Tensor:
        """Features [n,T,L,E] of recordings -> tokens [n,T-W+1,K,A] of the frames whose whole window is there."""
        return self.projection.tokens(self.projection.window.along(features))

    def along(self, features: Tensor) -> Tensor:
        """Features [n,T,L,E] of recordings -> mouth controls [n,T-W+1,5] of the same frames."""
        return self.read(self.tokens_along(features).flatten(2))


def train_audio_projection(
    work: Path, config: LetsTalkConfig, clips: int, steps: int, known: AudioProjection | None = None
) -> AudioProjection:
    """Train an audio projection in work/audio (resumed if begun) on `clips` clips, BATCH of them a step.

    known: another one, of any audio encoder, whose tokens a transformer has learnt: the new one's tokens come near to
    what that one makes of such mouths, and its control token is taken as it is. Without, that stays untrained.
    KeyboardInterrupt where it was asked to stop.
    """
    utterances = work / "audio" / "utterances"
    pairs = SpokenPairs(work / "audio" / "pairs", clips, config.audio.encoder, utterances).make(os.cpu_count() or 1)
    torch.manual_seed(0)
    reader, known_tokens = MouthReader(config), None if known is None else learn_tokens(known)
    if known is not None:
        _begin_like(reader.projection, known)
    run = TrainingRun(work / "audio", reader, dataclasses.replace(small_config(steps, PEAK), weight_decay=WEIGHT_DECAY))
    reach = config.audio.window // 2
    scale = torch.from_numpy(np.asarray(pairs.mouths[:2000, :, :MOUTH_COLUMNS], np.float32).std((0, 1)))

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((5, step))
        chosen = np.sort(rng.integers(0, clips, BATCH))
        features = _disturbed(torch.from_numpy(pairs.features[chosen]).float(), step)
        mouths = torch.from_numpy(pairs.mouths[chosen, :, :MOUTH_COLUMNS]).float()
        with run.accelerator.autocast():
            tokens = run.own.tokens_along(features)
            read = run.own.read(tokens.flatten(2)).float()
        errors = ((read - mouths[:, reach:-reach]) / scale).square().mean(-1)
        closed = torch.from_numpy(pairs.mouths[chosen, reach:-reach, CLOSED]).float()  # what is noticed first
        reading = (errors * (1 + (CLOSED_WEIGHT - 1) * closed)).mean()
        if known_tokens is None:
            return Loss(reading)
        far = known_tokens.error(tokens.float(), known_tokens.windows(mouths))
        return Loss(reading + far, {"reading": reading, "tokens": far})

    if not run.fit(loss_of):
        raise KeyboardInterrupt
    reader = run.averaged()
    print("mouth read from held-out speech, r:", reading_accuracy(reader, work, min(HELD_OUT_CLIPS, clips)))
    return reader.projection


def _begin_like(projection: AudioProjection, known: AudioProjection) -> None:
    """Take over what does not depend on the audio features: the control token, and where tokens lie on average."""
    projection.norm.load_state_dict(known.norm.state_dict())
    with torch.no_grad():
        projection.third.bias.copy_(known.third.bias)
    if known.control is not None:
        projection.control.load_state_dict(known.control.state_dict())


def _disturbed(features: Tensor, seed: int) -> Tensor:
    """Features [n,T,L,E] with noise, and with a part of them missing."""
    generator = torch.Generator().manual_seed(seed)
    noise = NOISE * torch.randn(features.shape, generator=generator)
    return (features + noise) * (torch.rand(features.shape, generator=generator) >= DROPOUT) / (1 - DROPOUT)


@torch.no_grad()
def reading_accuracy(reader: MouthReader, work: Path, clips: int) -> list[float]:
    """Correlation with the truth on held-out voices, languages and sentences, for each of the five controls."""
    utterances = work / "audio" / "utterances"
    audio = reader.projection.config.audio
    pairs = SpokenPairs(work / "audio" / "heldout", clips, audio.encoder, utterances, HELD_OUT, "heldout")
    pairs.make(os.cpu_count() or 1)
    reach = audio.window // 2
    read = reader.along(torch.from_numpy(pairs.features[:]).float()).numpy().reshape(-1, MOUTH_COLUMNS)
    truth = pairs.mouths[:, reach:-reach, :MOUTH_COLUMNS].reshape(-1, MOUTH_COLUMNS).astype(np.float32)
    return [round(float(np.corrcoef(read[:, i], truth[:, i])[0, 1]), 3) for i in range(MOUTH_COLUMNS)]
