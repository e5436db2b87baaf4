"""From windows of audio features to the audio tokens of a frame (paper, Section 3.3). Axis letters: config.py."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from einops import rearrange
from torch import Tensor, nn

from ..config import CONTROLS, LetsTalkConfig


def window_features(features: Tensor, window: int) -> Tensor:
    """The window of frames around each frame, clamped at the ends: [F,L,E] -> [F,W,L,E].

    Works for any axes after the first (eyelid closures [F] -> [F,W]). Raises ValueError if the window is even.
    """
    if window % 2 == 0:
        raise ValueError(f"the window of {window} frames has no centre: it must be odd")
    frames = torch.arange(features.shape[0], device=features.device)
    offsets = torch.arange(window, device=features.device) - window // 2
    return features[(frames[:, None] + offsets).clamp(0, features.shape[0] - 1)]


def whole_windows(values: Tensor, window: int) -> Tensor:
    """[F + W - 1,...] -> [F,W,...]: the windows around those frames whose whole window is there."""
    reach = window // 2
    return window_features(values, window)[reach : len(values) - reach]


class WindowLinears(nn.Module):
    """The paper's: Linear-ReLU-Linear-ReLU on a whole window at once."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        audio, hidden = config.audio, config.audio.hidden
        self.first = nn.Linear(audio.window * audio.blocks * audio.channels, hidden)
        self.second = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """[B,F,W,L,E] -> [B,F,hidden]."""
        hidden = functional.relu(self.first(rearrange(features, "b f w l e -> b f (w l e)")))
        return functional.relu(self.second(hidden))


class ResidualConvolution(nn.Module):
    """A residual layer over time without padding: [n,hidden,T] -> [n,hidden,T - 2 * dilation]."""

    def __init__(self, hidden: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.near = nn.Conv1d(hidden, hidden, 3, dilation=dilation)
        self.mix = nn.Conv1d(hidden, hidden, 1)
        nn.init.zeros_(self.mix.weight)

    def forward(self, values: Tensor) -> Tensor:
        return values[..., self.dilation : -self.dilation] + self.mix(functional.gelu(self.near(values)))


class Convolutions(nn.Module):
    """Window layers that are convolutions over time: a window gives what its recording gives at that place."""

    def along(self, features: Tensor) -> Tensor:
        """Recordings [n,T,L,E] -> [n,T-W+1,hidden]: one vector for each frame whose whole window is there."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        """[B,F,W,L,E] -> [B,F,hidden]."""
        windows = self.along(rearrange(features, "b f w l e -> (b f) w l e"))  # [BF,1,hidden]: each is one whole window
        return rearrange(windows, "(b f) 1 d -> b f d", b=len(features))


class WindowConvolutions(Convolutions):
    """Convolutions over the mel columns of a window, none padded: W frames of 4 columns become one vector.

    A departure from the paper, for features that are columns in time: sounds are recognised alike wherever they lie in
    the window, and training sees whole recordings at once (`along`). config.Departures.audio_convolutions chooses it.
    """

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        hidden, columns = config.audio.hidden, config.audio.blocks
        self.first = nn.Conv1d(config.audio.channels, hidden, 3)
        # With `first` these use up 16 columns, which are 4 frames; the layers after `to_frames` use up the rest.
        self.columns = nn.ModuleList(ResidualConvolution(hidden, dilation) for dilation in (1, 2, 4))
        self.to_frames = nn.Conv1d(hidden, hidden, columns, stride=columns)
        self.frames = nn.ModuleList(ResidualConvolution(hidden, 1) for _ in range((config.audio.window - 5) // 2))

    def along(self, features: Tensor) -> Tensor:
        values = functional.gelu(self.first(rearrange(features, "n t l e -> n e (t l)")))  # [n,hidden,T*L-2]
        for layer in self.columns:
            values = layer(values)
        values = functional.gelu(self.to_frames(values))  # [n,hidden,T-4]
        for layer in self.frames:
            values = layer(values)
        return rearrange(values, "n d t -> n t d")


class FrameConvolutions(Convolutions):
    """Convolutions over whole frames, none padded: W frames become one vector. For features that know what is spoken.

    A departure from the paper for whisper features; config.Departures.audio_convolutions chooses it.
    """

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        audio, hidden = config.audio, config.audio.hidden
        self.first = nn.Linear(audio.blocks * audio.channels, hidden)
        self.frames = nn.ModuleList(ResidualConvolution(hidden, dilation) for dilation in _dilations(audio.window // 2))

    def along(self, features: Tensor) -> Tensor:
        values = rearrange(functional.gelu(self.first(features.flatten(2))), "n t d -> n d t")
        for layer in self.frames:
            values = layer(values)
        return rearrange(values, "n d t -> n t d")


def _dilations(reach: int) -> list[int]:
    """Dilations 1, 1, 2, 2, ... of layers that together reach `reach` frames to either side."""
    dilations: list[int] = []
    while (rest := reach - sum(dilations)) > 0:
        dilations.append(min(1 + len(dilations) // 2, rest))
    return dilations


def _window_layers(config: LetsTalkConfig) -> nn.Module:
    if not config.departures.audio_convolutions:
        return WindowLinears(config)
    return WindowConvolutions(config) if config.audio.encoder == "mel" else FrameConvolutions(config)


class AudioProjection(nn.Module):
    """From a window of features to K tokens of A: two layers, a Linear, and LayerNorm.

    With controls (config.Departures) one more token carries what is asked for in the window, and what is not.
    """

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config
        audio, hidden = config.audio, config.audio.hidden
        self.window = _window_layers(config)
        self.third = nn.Linear(hidden, audio.tokens * audio.width)
        self.norm = nn.LayerNorm(audio.width)
        self.control = None
        if names := config.departures.controls:
            self.control = nn.Sequential(
                nn.Linear(2 * len(names) * audio.window, hidden), nn.ReLU(), nn.Linear(hidden, audio.width),
                nn.LayerNorm(audio.width),
            )  # fmt: skip

    def forward(self, features: Tensor, controls: Tensor | None = None) -> Tensor:
        """Tokens [B,F,K,A], or [B,F,K+1,A] of a model with controls, of features [B,F,W,L,E].

        controls [B,F,W,n]: what is asked for, as config.Departures.controls names it and in the units of
        config.CONTROLS; NaN leaves it to the model, and so does None. Raises ValueError, naming both values, where the
        features' shape is not the configuration's or controls go to a model that has none.
        """
        expected = (self.config.audio.window, self.config.audio.blocks, self.config.audio.channels)
        if features.ndim != 5 or tuple(features.shape[2:]) != expected:
            raise ValueError(
                f"audio features are {tuple(features.shape)}, not (B, F, W, L, E) with (W, L, E) = {expected}"
            )
        if controls is not None and self.control is None:
            raise ValueError("controls were given, but this model was made without any")
        tokens = self.tokens(self.window(features.to(self.third.weight.dtype)))  # [B,F,K,A]
        if self.control is None:
            return tokens
        names = self.config.departures.controls
        if controls is None:
            controls = features.new_full((*features.shape[:3], len(names)), float("nan"))
        most = controls.new_tensor([CONTROLS[name][1] for name in names])
        asked = torch.stack([(controls / most).nan_to_num(0.0), controls.isfinite().to(controls)], -1).flatten(2)
        return torch.cat([tokens, self.control(asked.to(tokens.dtype))[:, :, None]], dim=2)  # [B,F,K+1,A]

    def tokens(self, hidden: Tensor) -> Tensor:
        """[B,F,hidden] -> [B,F,K,A]."""
        return self.norm(rearrange(self.third(hidden), "b f (k a) -> b f k a", k=self.config.audio.tokens))
