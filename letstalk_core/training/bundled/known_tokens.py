"""What the tokens of an audio projection are for a mouth, so that another ear can say what a transformer knows."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ...audio.load_encoder import load_audio_encoder
from ...audio.recording import SAMPLE_RATE
from ...data.drawn.motion import MOUTH_COLUMNS
from ...data.speech.pairs import SECONDS
from ...data.speech.spoken_clips import speech_clip
from ...model.audio_projection import AudioProjection, whole_windows, window_features

CLIPS, STEPS, BATCH = 500, 3000, 512  # spoken clips; steps of so many of their frames
SMALLEST = 0.03  # deviation; what hardly changes with speech need not be met more closely


class KnownTokens(nn.Module):
    """The tokens that a projection makes of clear speech, on average, by the mouths that spoke around a frame."""

    def __init__(self, projection: AudioProjection):
        super().__init__()
        audio = projection.config.audio
        self.window, self.shape = audio.window, (audio.tokens, audio.width)
        self.register_buffer("deviation", torch.ones(self.shape))  # [K,A] of the tokens, in which errors are measured
        self.layers = nn.Sequential(
            nn.Linear(audio.window * MOUTH_COLUMNS, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(),
            nn.Linear(256, audio.tokens * audio.width),
        )  # fmt: skip

    def forward(self, mouths: Tensor) -> Tensor:
        """Mouths [...,W,5] of the frames of a window -> tokens [...,K,A]."""
        return self.layers(mouths.flatten(-2)).unflatten(-1, self.shape)

    def error(self, tokens: Tensor, mouths: Tensor) -> Tensor:
        """Mean squared error [] of tokens [...,K,A] for mouths [...,W,5], in the tokens' own deviations."""
        return F.mse_loss(tokens / self.deviation, self(mouths) / self.deviation)

    def windows(self, mouths: Tensor) -> Tensor:
        """Mouths [n,T,5] -> [n,T-W+1,W,5]: the windows of the frames whose whole window is there."""
        return rearrange(whole_windows(mouths.transpose(0, 1), self.window), "t w n c -> n t w c")


def learn_tokens(projection: AudioProjection, clips: int = CLIPS, steps: int = STEPS) -> KnownTokens:
    """Fit KnownTokens to what `projection` makes of undisturbed speech of espeak-ng and flite, the voices it knows."""
    encoder, window = load_audio_encoder(projection.config.audio.encoder), projection.config.audio.window
    tokens, mouths = [], []
    with torch.no_grad():
        for number in range(clips):
            waveform, mouth = speech_clip(np.random.default_rng((number, 31)), "train", SECONDS, augmented=False)
            features = encoder.encode(torch.from_numpy(waveform), SAMPLE_RATE)
            made = projection.tokens(projection.window(window_features(features, window)[None]))[0]
            tokens.append(made.half())
            mouths.append(window_features(torch.from_numpy(mouth[:, :MOUTH_COLUMNS]), window))
    tokens, mouths = torch.cat(tokens), torch.cat(mouths)
    torch.manual_seed(0)
    known = KnownTokens(projection)
    known.deviation = tokens.float().std(0).clamp_min(SMALLEST)
    optimizer = torch.optim.AdamW(known.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.from_numpy(np.random.default_rng((step, 32)).integers(0, len(tokens), BATCH))
        loss = known.error(tokens[chosen].float(), mouths[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"tokens by the mouth: {1 - loss.item():.2f} of their variance")
    return known.eval().requires_grad_(False)
