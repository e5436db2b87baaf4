"""Trainings of the tiny preset on shards of random latents: seconds, without speech or footage."""

import json
from pathlib import Path

import numpy as np

from letstalk_core.autoencoders import bundled_autoencoder
from letstalk_core.data.footage.shard_writer import Stretch, write_shard
from letstalk_core.training.config_file import load_config
from letstalk_core.training.training_config import TransformerTraining

from .tiny import write_tiny_checkpoint

FRAMES, CONTEXT, SIDE = 12, 2, 4


def write_latents(folder: Path, stretches: int = 6) -> Path:
    """A shard of random latents and features, and the autoencoder whose they could be (in model.safetensors)."""
    folder.mkdir(parents=True, exist_ok=True)
    model = write_tiny_checkpoint(folder / "model.safetensors")
    digest = bundled_autoencoder(model).encoder_digest

    def stretch(number: int) -> Stretch:
        rng = np.random.default_rng(number)
        latents = rng.standard_normal((FRAMES, 4, SIDE, SIDE)).astype(np.float16)
        features = rng.standard_normal((FRAMES + 2 * CONTEXT, 4, 80)).astype(np.float16)
        return Stretch(
            name=f"stretch {number}", fps=25, features=features, context=CONTEXT, audio_encoder="mel",
            latents=latents, autoencoder=digest, size=(64, 64),
        )  # fmt: skip

    write_shard(folder / "data.tar", (stretch(number) for number in range(stretches)))
    return folder


def changes(run: Path, path: Path, **more) -> list[str]:
    """The key=value pairs of a short training on the shards in `path`, or on what `more` says it is."""
    values = dict(
        run=str(run), preset="tiny", data="shards", data_path=str(path), steps=6, batch_size=2, workers=0, save_every=2,
        log_every=1, device="cpu", precision="fp32", learning_rate=1e-3, memory_pixel_noise=False, gradient_clip=1.0,
        gradient_clip_start=0, autoencoder=str(path / "model.safetensors"),
    )  # fmt: skip
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in {**values, **more}.items()
    ]


def configured(run: Path, path: Path, **more) -> TransformerTraining:
    return load_config(None, changes(run, path, **more))


def losses(run: Path) -> list[float]:
    """Of every step in the log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
