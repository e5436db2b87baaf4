"""Training of the bundled transformer on latents of talking drawings."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..audio_projection import AudioProjection, window_features
from ..autoencoder import Autoencoder
from ..checkpoint import LetsTalkModel
from ..config import LetsTalkConfig
from ..data.clips import CONTEXT, ClipStore, read_count, write_count
from ..data.motion import COLUMN
from ..diffusion import Diffusion
from ..memory_bank import to_model_space
from .autoencoder import to_images
from .loop import TrainingRun, mixed_precision

CLIP_LENGTH = 20  # frames rendered of each clip: memory, one training clip, and two to shift it
FIRST_CLIP_SHARE = 0.5  # of the clips that can be: trained as the first of a video, which remembers its portrait
AUDIO_DROPOUT = 0.1  # so that guidance has an unconditional branch
MEMORY_NOISE = 0.5  # most noise on the memory, in the units of the transformer's inputs
SHARED_NOISE = 0.8  # share of that noise's variance that is the same in all memory frames, as errors of sampling are
MEMORY_MASK = 0.25  # of the memory's positions are dropped, in half of the clips
MOUTH_WEIGHT, EYE_WEIGHT, BLINK_WEIGHT = 8.0, 3.0, 3.0
PEAK = 1e-3  # learning rate
FIRST_GUESS_SHARE = 0.35  # of the clips have t = 1, where nothing is seen and the audio alone decides on the mouth

BUNDLED = LetsTalkConfig(
    depth=5, width=192, heads=6, attention="linear", mlp_ratio=2.0, latent_channels=32, patch_size=2,
    clip_frames=16, memory_frames=2, portrait_each_frame=False, add_portrait=True,
    audio_tokens=4, audio_width=192, audio_hidden=256, audio_window=9, audio_blocks=4, audio_channels=80,
    audio_convolutions=True, blink_condition=True, objective="x0", learn_variance=False, time_shift=6.0,
    relative_latents=True,
    autoencoder="dc-ae", latent_scale=1.0, image_size=128, audio_encoder="mel", default_steps=4,
    default_sampler="euler", default_guidance_scale=2.0, noise_scale=0.5, memory_scale=0.4,
    border_smoothing=0.4,
)  # fmt: skip


def fingerprint(module: torch.nn.Module) -> str:
    """Short and the same for the same weights."""
    digest = hashlib.blake2b(digest_size=6)
    for value in module.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def encode_clips(store: ClipStore, autoencoder: Autoencoder) -> tuple[np.ndarray, np.ndarray]:
    """Latents float16 of all frames [n,T,C,h,w] and portraits [n,C,h,w], encoded once into the store's folder."""
    side = store.size // autoencoder.downscale
    shape = (store.count, store.length + 1, autoencoder.latent_channels, side, side)
    mark = fingerprint(autoencoder.model.encoder)  # latents of another encoder are never taken for this one's
    path, progress = store.folder / f"latents-{mark}.npy", store.folder / f"latents-{mark}.done"
    if not path.exists():
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    latents = np.load(path, mmap_mode="r+")
    done = read_count(progress)
    for i in tqdm(range(done, store.count), desc="encode", mininterval=10):
        frames = np.concatenate([store.portraits[i][None], store.frames[i]])
        with mixed_precision():
            encoded = autoencoder.encode(to_images(frames), len(frames))
        latents[i] = encoded.float().numpy().astype(np.float16)
        if (i + 1) % 50 == 0 or i + 1 == store.count:
            latents.flush()
            write_count(progress, i + 1)
    return latents[:, 1:], latents[:, 0]


def loss_weights(regions: np.ndarray, blinks: np.ndarray, grid: int) -> Tensor:
    """Weights [b,F,1,h,w] of mean about 1: more for the mouth and the eyes, and for the eyes while they blink."""
    at = torch.from_numpy(regions)
    pool = at.shape[-1] // grid
    mouth = F.avg_pool2d((at == 1).float()[:, None], pool)[:, :, None]  # [b,1,1,h,w]
    eyes = F.avg_pool2d((at == 2).float()[:, None], pool)[:, :, None]
    blinking = 1 + BLINK_WEIGHT * torch.from_numpy(blinks > 0.2).float()[:, :, None, None, None]
    weight = 1 + MOUTH_WEIGHT * mouth + EYE_WEIGHT * eyes * blinking
    return weight / weight.mean()


def training_batch(
    store: ClipStore, latents, portraits, config: LetsTalkConfig, rng: np.random.Generator, size: int
) -> dict:
    """Random clips: x0, memory [b,..,C,h,w] in the model's space, portrait, audio features, blinks, weights."""
    first, length = config.memory_frames, config.clip_frames
    index = rng.integers(0, len(latents), size)
    shift = rng.integers(0, store.length - first - length + 1, size)
    opening = store.starts[index] & (rng.random(size) < FIRST_CLIP_SHARE)
    begin = np.where(opening, 0, shift + first)  # where the trained frames begin in the stored clip
    portrait = torch.from_numpy(portraits[index].astype(np.float32))
    frames = np.stack([latents[i, b : b + length] for i, b in zip(index, begin, strict=True)]).astype(np.float32)
    before = np.stack(
        [
            np.repeat(portraits[i][None], first, 0) if o else latents[i, b - first : b]
            for i, b, o in zip(index, begin, opening, strict=True)
        ]
    ).astype(np.float32)
    reach = config.audio_window // 2
    around = [slice(CONTEXT + b - reach, CONTEXT + b + length + reach) for b in begin]
    features = np.stack([store.features[i, a] for i, a in zip(index, around, strict=True)]).astype(np.float32)
    blinks = np.stack([store.controls[i, a, COLUMN["blink"]] for i, a in zip(index, around, strict=True)])

    def windows(values: np.ndarray) -> Tensor:
        return torch.stack([window_features(v, config.audio_window)[reach:-reach] for v in torch.from_numpy(values)])

    return {
        "x0": to_model_space(torch.from_numpy(frames), portrait, config),
        "memory": to_model_space(torch.from_numpy(before), portrait, config),
        "portrait": portrait,
        "features": windows(features),
        "blinks": windows(blinks),
        "weight": loss_weights(store.regions[index], blinks[:, reach:-reach], frames.shape[-1]),
    }


def regularise_memory(memory: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise of random size and dropped positions, as sampling's own errors will be (paper, Section 3.4).

    A departure: most of the noise is the same in all memory frames. Noise that differs between them can be averaged
    away, so it does not teach the model to take faces from the portrait rather than from a memory that has drifted.
    """
    b, m, c, h, w = memory.shape
    sigma = torch.from_numpy(rng.uniform(0, MEMORY_NOISE, (b, 1, 1, 1, 1)).astype(np.float32))
    shared, own = (torch.from_numpy(rng.standard_normal((b, n, c, h, w), np.float32)) for n in (1, m))
    noise = SHARED_NOISE**0.5 * shared + (1 - SHARED_NOISE) ** 0.5 * own
    masked = (rng.random((b, 1, 1, 1, 1)) < 0.5) & (rng.random((b, m, 1, h, w)) < MEMORY_MASK)
    return (memory + sigma * noise).masked_fill(torch.from_numpy(masked), 0.0)


def relative_scale(latents, portraits) -> float:
    """1 / the deviation of frames' latents from their portraits'."""
    some = slice(None, None, max(1, len(latents) // 200))
    difference = latents[some].astype(np.float32) - portraits[some, None].astype(np.float32)
    return float(1 / difference.std())


def new_model(autoencoder: Autoencoder, projection: AudioProjection, scale: float) -> LetsTalkModel:
    """An untrained transformer with a projection that knows mouths (training/audio.py)."""
    config = dataclasses.replace(BUNDLED, latent_scale=autoencoder.latent_scale, relative_scale=scale)
    torch.manual_seed(0)
    model = LetsTalkModel(config)
    model.audio_projection.load_state_dict(projection.state_dict())
    return model


def train_transformer(
    work: Path,
    store: ClipStore,
    encoded: tuple[np.ndarray, np.ndarray],
    model: LetsTalkModel,
    steps: int,
    batch: int = 12,
    peak: float = PEAK,
) -> LetsTalkModel:
    """Train a model in work/transformer (resumed if begun) on clips and their latents, as encode_clips gives them.

    Returns the model with averaged weights.
    """
    (latents, portraits), config = encoded, model.config
    model.train().requires_grad_(True)
    model.audio_projection.window.requires_grad_(False)  # it heard far more speech than the clips hold
    run = TrainingRun(work / "transformer", model, steps, peak, average=0.998)
    diffusion = Diffusion.from_config(config)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((2, step))
        data = training_batch(store, latents, portraits, config, rng, batch)
        x0 = data["x0"]
        times = diffusion.draw_times(batch, torch.Generator().manual_seed(step))
        times = times.masked_fill(torch.from_numpy(rng.random(batch) < FIRST_GUESS_SHARE), 1.0)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32))
        noisy = diffusion.add_noise(x0, noise, times)
        kept = torch.from_numpy((rng.random((batch, 1, 1, 1)) > AUDIO_DROPOUT).astype(np.float32))
        with mixed_precision():
            tokens = model.audio_projection(data["features"], data["blinks"]) * kept
            output = model.transformer(
                diffusion.model_input(noisy, times),
                diffusion.model_timesteps(times),
                portrait=data["portrait"],
                audio_tokens=tokens,
                memory=regularise_memory(data["memory"], rng),
            )
        loss = diffusion.losses(output, x0, noisy, noise, times, data["weight"])["total"].mean()
        error = (diffusion.predictions(output.detach(), noisy, times)[0] - x0).square()
        return loss, {"loss": loss.item(), "x0_error": error.mean().item()}

    run.fit(loss_of)
    return run.averaged.eval()
