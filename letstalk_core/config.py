"""The one configuration: everything that decides what a model is, checked where it is made.

Letters used for axes throughout the package: B batch, F frames of a clip, M memory frames, N tokens of a frame,
D width, C latent channels, h and w latent height and width, K audio tokens of a frame, A their width,
W audio window, L audio feature blocks, E their channels.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

FUSIONS = ("direct", "siamese", "symbiotic")
OBJECTIVES = ("noise", "v", "flow", "x0")


@dataclass(frozen=True)
class LetsTalkConfig:
    """A LetsTalk model, from the encoders it expects to the objective it was trained with.

    Defaults are those of the paper's linear model (arXiv 2411.16748). Raises ValueError, naming both values, where two
    fields contradict each other.
    """

    # transformer
    depth: int = 12
    width: int = 384
    heads: int = 6  # of softmax attention; linear attention has heads of linear_head_width channels
    linear_head_width: int = 32
    attention: str = "linear"  # "linear" (ReLU kernel, GLUMBConv) or "softmax" (GELU feed-forward)
    mlp_ratio: float = 4.0
    latent_channels: int = 32
    patch_size: int = 1
    clip_frames: int = 16
    memory_frames: int = 2
    portrait_fusion: str = "symbiotic"
    audio_fusion: str = "direct"
    portrait_each_frame: bool = True  # False: one set of portrait tokens for the whole clip (faster)
    add_portrait: bool = False  # also add the portrait's embedding to every frame's tokens (less drift)

    # audio tokens
    audio_tokens: int = 32
    audio_width: int = 768
    audio_hidden: int = 512
    audio_window: int = 5
    audio_blocks: int = 12
    audio_channels: int = 768
    audio_convolutions: bool = False  # over the columns of a mel window, instead of linear layers on all of it
    blink_condition: bool = False  # one more audio token that carries the eyelid closure of the window

    # diffusion
    objective: str = "noise"  # "noise", "v", "flow" (rectified flow) or "x0" (the same flow, the model answers x0)
    learn_variance: bool = True  # only with "noise": 2C output channels
    time_shift: float = 1.0  # of the times of "flow" and "x0" towards noise: at 6, t = 0.5 becomes 0.86
    relative_latents: bool = False  # the model works on (latents - portrait latents) * relative_scale
    relative_scale: float = 1.0

    # what goes in and comes out
    autoencoder: str = "dc-ae"  # "dc-ae" or "sd-vae"
    latent_scale: float = 0.41407
    image_size: int = 512
    audio_encoder: str = "wav2vec2"  # "wav2vec2" or "mel"
    fps: float = 25.0
    default_steps: int = 25
    default_sampler: str = "dpm++"
    default_guidance_scale: float = 1.0

    # sampling, where the bundled model departs from the paper
    noise_scale: float = 1.0  # of the noise that a clip starts from: below 1 less flickers
    memory_scale: float = 1.0  # of what the memory differs from the portrait: below 1 a clip's errors die out
    border_smoothing: float = 0.0  # b: a clip's frame f is moved by b^(f+1) of what its first frame jumps

    def __post_init__(self):
        def need(condition: bool, sentence: str):
            if not condition:
                raise ValueError(f"configuration: {sentence}")

        sizes = ("depth", "width", "heads", "linear_head_width", "latent_channels", "patch_size", "clip_frames")
        for name in (*sizes, "audio_tokens", "audio_width", "audio_hidden", "audio_blocks", "audio_channels"):
            need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, less than 1")
        need(self.attention in ("linear", "softmax"), f"attention is {self.attention!r}, not 'linear' or 'softmax'")
        need(self.objective in OBJECTIVES, f"objective is {self.objective!r}, not one of {OBJECTIVES}")
        need(self.autoencoder in ("dc-ae", "sd-vae"), f"autoencoder is {self.autoencoder!r}, not 'dc-ae' or 'sd-vae'")
        need(
            self.audio_encoder in ("wav2vec2", "mel"),
            f"audio_encoder {self.audio_encoder!r} is not 'wav2vec2' or 'mel'",
        )
        need(self.portrait_fusion in FUSIONS, f"portrait_fusion is {self.portrait_fusion!r}, not one of {FUSIONS}")
        need(self.audio_fusion in FUSIONS, f"audio_fusion is {self.audio_fusion!r}, not one of {FUSIONS}")
        need(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")
        need(self.width % 4 == 0, f"width {self.width} is not a multiple of 4, which the 2-D positions need")
        need(
            self.attention == "softmax" or self.width % self.linear_head_width == 0,
            f"width {self.width} is not a multiple of linear_head_width {self.linear_head_width}",
        )
        need(
            self.objective == "noise" or not self.learn_variance,
            f"learn_variance goes with objective 'noise', not with {self.objective!r}",
        )
        need(self.audio_window % 2 == 1, f"audio_window {self.audio_window} is even, so it has no centre")
        need(
            not self.audio_convolutions
            or (self.audio_encoder == "mel" and self.audio_blocks == 4 and self.audio_window >= 5),
            f"audio_convolutions needs mel features with 4 blocks in a window of 5 or more, not {self.audio_encoder} "
            f"with {self.audio_blocks} in {self.audio_window}",
        )
        need(self.time_shift > 0, f"time_shift {self.time_shift} is not above 0")
        need(0 < self.noise_scale <= 1, f"noise_scale {self.noise_scale} is not above 0 and at most 1")
        need(
            self.memory_scale == 1 or (self.relative_latents and 0 <= self.memory_scale < 1),
            f"memory_scale {self.memory_scale} is not in 0..1, or below 1 without relative_latents",
        )
        need(0 <= self.border_smoothing < 1, f"border_smoothing {self.border_smoothing} is not in 0..1")
        need(
            self.memory_frames > 0 or self.border_smoothing == 0,
            f"border_smoothing {self.border_smoothing} needs memory frames, and memory_frames is 0",
        )
        need(self.memory_frames >= 0, f"memory_frames is {self.memory_frames}, less than 0")

    @property
    def output_channels(self) -> int:
        """Channels of the model's output: 2C with a learned variance, else C."""
        return self.latent_channels * (2 if self.learn_variance else 1)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LetsTalkConfig:
        """The configuration written by to_json; an unknown key is an error."""
        values = json.loads(text)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"configuration: unknown keys {unknown}; the file may come from a newer version")
        return cls(**values)


def _variants(**common) -> dict[str, LetsTalkConfig]:
    shapes = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
    return {name: LetsTalkConfig(depth=d, width=w, heads=h, **common) for name, (d, w, h) in shapes.items()}


_SD_VAE = dict(attention="softmax", latent_channels=4, patch_size=2, autoencoder="sd-vae", latent_scale=0.18215)

# "tiny" is what tests and documentation use: every part of the model, a second on a laptop.
PRESETS: dict[str, LetsTalkConfig] = {
    "tiny": LetsTalkConfig(
        depth=2, width=64, heads=4, latent_channels=4, clip_frames=4, audio_tokens=4, audio_width=32, audio_hidden=32,
        audio_blocks=4, audio_channels=80, audio_encoder="mel", image_size=64,
    ),
    **{f"linear-{name}": config for name, config in _variants().items()},
    **{f"softmax-{name}": config for name, config in _variants(**_SD_VAE).items()},
}  # fmt: skip
