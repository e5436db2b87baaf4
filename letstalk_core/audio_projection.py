"""From windows of audio features to the audio tokens of a frame (paper, Section 3.3). Axis letters: config.py."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .config import LetsTalkConfig


def window_features(features: Tensor, window: int) -> Tensor:
    """The window of frames around each frame, clamped at the ends: [F,L,E] -> [F,W,L,E].

    Works for any axes after the first (eyelid closures [F] -> [F,W]). Raises ValueError if the window is even.
    """
    if window % 2 == 0:
        raise ValueError(f"the window of {window} frames has no centre: it must be odd")
    frames = torch.arange(features.shape[0], device=features.device)
    offsets = torch.arange(window, device=features.device) - window // 2
    return features[(frames[:, None] + offsets).clamp(0, features.shape[0] - 1)]


class AudioProjection(nn.Module):
    """Linear-ReLU-Linear-ReLU-Linear from a window of features to K tokens of A, then LayerNorm.

    With config.blink_condition one more token carries the eyelid closure of the window, so that one can ask for blinks.
    """

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config
        hidden = config.audio_hidden
        self.first = nn.Linear(config.audio_window * config.audio_blocks * config.audio_channels, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, config.audio_tokens * config.audio_width)
        self.norm = nn.LayerNorm(config.audio_width)
        self.blink = None
        if config.blink_condition:
            self.blink = nn.Sequential(
                nn.Linear(config.audio_window, hidden),
                nn.ReLU(),
                nn.Linear(hidden, config.audio_width),
                nn.LayerNorm(config.audio_width),
            )

    def forward(self, features: Tensor, blinks: Tensor | None = None) -> Tensor:
        """Tokens [B,F,K,A], or [B,F,K+1,A] with blink_condition, of features [B,F,W,L,E].

        blinks [B,F,W]: eyelid closure, 0 open to 1 closed; None means open. Raises ValueError, naming both values,
        where the features' shape is not the configuration's or blinks go to a model that has no blink condition.
        """
        config = self.config
        expected = (config.audio_window, config.audio_blocks, config.audio_channels)
        if features.ndim != 5 or tuple(features.shape[2:]) != expected:
            raise ValueError(
                f"audio features are {tuple(features.shape)}, not (B, F, W, L, E) with (W, L, E) = {expected}"
            )
        if blinks is not None and self.blink is None:
            raise ValueError("blinks were given, but this model was made without blink_condition")
        hidden = functional.relu(self.first(features.to(self.first.weight.dtype).flatten(2)))  # [B,F,hidden]
        hidden = functional.relu(self.second(hidden))
        tokens = self.norm(self.third(hidden).unflatten(-1, (config.audio_tokens, config.audio_width)))  # [B,F,K,A]
        if self.blink is None:
            return tokens
        if blinks is None:
            blinks = features.new_zeros(features.shape[:3])
        return torch.cat([tokens, self.blink(blinks.to(tokens.dtype))[:, :, None]], dim=2)  # [B,F,K+1,A]
