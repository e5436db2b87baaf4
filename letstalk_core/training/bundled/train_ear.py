"""A head start for the audio projection: tokens from which the shape of the mouth can be read off by one Linear.

The transformer then has to learn how a mouth looks, not also what speech sounds like; without this it needs many times
the steps before its lips follow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...config import LetsTalkConfig
from ...data.drawn.motion import MOUTH_COLUMNS
from ...data.ridge import ridge
from ...data.speech.pairs import PackedPairs, SpokenPairs
from ...data.speech.visemes import MOUTH
from ...model.audio_projection import AudioProjection
from ...precision import native_autocast
from .timed import TimedRun

BATCH = 32  # clips of a step
READ_CLIPS, READ_RIDGE = 300, 0.003  # clips that a trained projection's first reading is fitted to, and its penalty
HELD_OUT_CLIPS = 100  # the last ones, at most a tenth of all
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

    @torch.no_grad()
    def go_on_from(self, known: AudioProjection, pairs: SpokenPairs | PackedPairs) -> None:
        """Take a trained projection, and read its tokens at once as well as a linear map can (ridge regression)."""
        self.projection.load_state_dict(known.state_dict())
        reach, features = known.config.audio.window // 2, torch.from_numpy(pairs.features[:READ_CLIPS]).float()
        x = torch.cat([self._tokens(clip[None]) for clip in features]).flatten(0, 1).double().numpy()
        y = pairs.mouths[:READ_CLIPS, reach:-reach, :MOUTH_COLUMNS].reshape(-1, MOUTH_COLUMNS).astype(np.float64)
        weights, level = ridge(x, y, READ_RIDGE)
        self.read.weight.copy_(torch.from_numpy(weights.T))
        self.read.bias.copy_(torch.from_numpy(level))

    def along(self, features: Tensor) -> Tensor:
        """Features [n,T,L,E] of recordings -> mouth controls [n,T-W+1,5] of the frames whose whole window is there."""
        return self.read(self._tokens(features))

    def _tokens(self, features: Tensor) -> Tensor:
        """[n,T,L,E] -> [n,T-W+1,K*A], a frame's tokens after each other."""
        return self.projection.tokens(self.projection.window.along(features)).flatten(2)


def train_ear(
    folder: Path,
    pairs: SpokenPairs | PackedPairs,
    config: LetsTalkConfig,
    minutes: float,
    device: torch.device,
    known: AudioProjection | None = None,
) -> AudioProjection:
    """Train an audio projection in a folder (resumed if begun) for `minutes`, from nothing or from a known one; prints
    how well mouths are read from the last clips, which it does not learn from."""
    torch.manual_seed(0)
    reader = MouthReader(config)
    if known:
        reader.go_on_from(known, pairs)
    reader.to(device).train()
    reach, learnt = config.audio.window // 2, pairs.count - min(HELD_OUT_CLIPS, pairs.count // 10)
    scale = torch.from_numpy(np.asarray(pairs.mouths[:2000, :, :MOUTH_COLUMNS], np.float32).std((0, 1))).to(device)
    run = TimedRun(folder, reader, minutes, PEAK, device, WEIGHT_DECAY)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((5, step))
        chosen = np.sort(rng.integers(0, learnt, BATCH))
        features = _disturbed(torch.from_numpy(pairs.features[chosen]).float(), step)
        mouths = torch.from_numpy(pairs.mouths[chosen, reach:-reach]).float().to(device)
        with native_autocast(device.type):
            read = reader.along(features.to(device)).float()
        errors = ((read - mouths[..., :MOUTH_COLUMNS]) / scale).square().mean(-1)
        return (errors * (1 + (CLOSED_WEIGHT - 1) * mouths[..., CLOSED])).mean(), {}  # closed lips are noticed first

    run.fit(loss_of)
    run.averaged()
    print("mouth read from held-out clips, r:", reading_accuracy(reader.cpu(), pairs, learnt))
    return reader.projection


def _disturbed(features: Tensor, seed: int) -> Tensor:
    """Features [n,T,L,E] with noise, and with a part of them missing."""
    generator = torch.Generator().manual_seed(seed)
    noise = NOISE * torch.randn(features.shape, generator=generator)
    return (features + noise) * (torch.rand(features.shape, generator=generator) >= DROPOUT) / (1 - DROPOUT)


@torch.no_grad()
def reading_accuracy(reader: MouthReader, pairs: SpokenPairs | PackedPairs, first: int) -> list[float]:
    """Correlation with the truth on the clips from `first` on, for each of the five controls."""
    reach = reader.projection.config.audio.window // 2
    read = reader.along(torch.from_numpy(pairs.features[first:]).float()).numpy().reshape(-1, MOUTH_COLUMNS)
    truth = pairs.mouths[first:, reach:-reach, :MOUTH_COLUMNS].reshape(-1, MOUTH_COLUMNS).astype(np.float32)
    return [round(float(np.corrcoef(read[:, i], truth[:, i])[0, 1]), 3) for i in range(MOUTH_COLUMNS)]
