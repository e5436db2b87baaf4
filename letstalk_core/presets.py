"""Configurations by name: the paper's eight, what ships, and a tiny one."""

from __future__ import annotations

from typing import Any

from .config import (
    CONTROLS,
    AudioConfig,
    Departures,
    DiffusionConfig,
    LetsTalkConfig,
    SamplingDefaults,
    TransformerConfig,
)


def _variants(**changes: Any) -> dict[str, LetsTalkConfig]:
    """The paper's S, B, L and XL."""
    shapes = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
    return {
        name: LetsTalkConfig().with_changes(depth=depth, width=width, heads=heads, **changes)
        for name, (depth, width, heads) in shapes.items()
    }


PAPER: dict[str, LetsTalkConfig] = {
    **{f"linear-{name}": config for name, config in _variants().items()},
    **{
        f"softmax-{name}": config
        for name, config in _variants(
            attention="softmax", latent_channels=4, patch_size=2, autoencoder="sd-vae", latent_scale=0.18215
        ).items()
    },
}
PRESETS: dict[str, LetsTalkConfig] = {
    # What tests and documentation use: every part of the model, a second on a laptop.
    "tiny": LetsTalkConfig(
        TransformerConfig(depth=2, width=64, heads=4, latent_channels=4, clip_frames=4),
        AudioConfig(encoder="mel", tokens=4, width=32, hidden=32, blocks=4, channels=80),
        image_size=64,
    ),
    # What ships. It is told the whole motion, so that it has nothing to remember, and one step is enough. Its
    # autoencoder's latent_scale and relative_scale are measured when it is trained.
    "bundled": LetsTalkConfig(
        TransformerConfig(depth=6, width=192, heads=6, mlp_ratio=2.0, patch_size=2, memory_frames=0),
        AudioConfig(encoder="whisper", tokens=4, width=192, hidden=256, window=9, blocks=2, channels=768),
        DiffusionConfig(objective="x0", learn_variance=False),
        SamplingDefaults(steps=1, sampler="euler", guidance_scale=1.0),
        Departures(
            portrait_each_frame=False, add_portrait=True, audio_convolutions=True, controls=tuple(CONTROLS),
            relative_latents=True, time_shift=6.0, noise_scale=0.5, border_smoothing=0.6,
        ),
        autoencoder="portrait",
        latent_scale=1.0,
        image_size=256,
    ),
    **PAPER,
}  # fmt: skip
