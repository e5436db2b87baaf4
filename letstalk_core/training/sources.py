"""The sources of a training's examples: shards, a folder of videos, or drawn people. Made and encoded by the main
process alone, once, while the others wait."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..audio.load_encoder import BUILT_IN
from ..config import LetsTalkConfig
from ..data.drawn.talking_clips import ClipStore, read_count, write_count
from ..data.source import Source, Window
from ..data.stored_clips import StoredClipSource
from ..errors import InputError
from ..picture.autoencoder import Autoencoder
from ..pixels import pixels_to_images
from .training_config import TransformerTraining

HELD_SHARE = 0.1  # of a GPU's free memory that latents and features of all shards may take: the rest is the training's
DRAWN_FRAMES = 20  # frames of a drawn clip, at least: two of memory, sixteen of a clip, and two to shift the window


def open_source(
    config: TransformerTraining, model: LetsTalkConfig, autoencoder: Autoencoder | None, accelerator
) -> Source:
    """The source that a configuration names. Raises InputError where it has no data that fits the model."""
    window = Window.of(model, config.first_clip_share, config.memory_pixel_noise)
    if config.data == "avatar":
        with accelerator.main_process_first():
            return _drawn(config, model, autoencoder, window)
    return _recorded(config, model, autoencoder, window, accelerator)


def _drawn(
    config: TransformerTraining, model: LetsTalkConfig, autoencoder: Autoencoder | None, window: Window
) -> Source:
    if model.audio.encoder not in BUILT_IN:
        raise InputError(
            f"Drawn clips have the features that come with the pack, but the model takes {model.audio.encoder}; choose "
            f"{' or '.join(BUILT_IN)}."
        )
    if autoencoder is None:
        raise InputError(
            "Drawn clips need an autoencoder; set autoencoder, to weights/letstalk-portraits-256.safetensors."
        )
    length = max(DRAWN_FRAMES, window.memory_frames + window.clip_frames)
    store = ClipStore(Path(config.data_path), config.avatar_clips, length, model.image_size, model.audio.encoder)
    store.render()
    return StoredClipSource(store, window, encode_clips(store, autoencoder))


def _recorded(
    config: TransformerTraining, model: LetsTalkConfig, autoencoder: Autoencoder | None, window: Window, accelerator
) -> Source:
    from ..data.footage.shards import ShardSource

    digest, shards = autoencoder.encoder_digest if autoencoder else None, Path(config.data_path)
    if config.data == "videos":
        from accelerate.utils import broadcast_object_list

        found = [_prepared(config, model, autoencoder is not None) if accelerator.is_main_process else None]
        shards = broadcast_object_list(found)[0]
    source = ShardSource(
        shards, window, latents_digest=digest, features_shape=(model.audio.blocks, model.audio.channels)
    )
    for what, found, needed in (
        ("features of", source.audio_encoder, model.audio.encoder),
        ("frames a second:", source.fps, model.fps),
        ("pictures of [height, width]", list(source.size), [model.image_size, model.image_size]),
    ):
        if found != needed:
            raise InputError(f"{config.data_path} has {what} {found}, but the model takes {needed}; prepare it again.")
    if autoencoder is None and not source.uses_latents:
        raise InputError(f"{config.data_path} has frames without latents, which need an autoencoder; set autoencoder.")
    if accelerator.device.type == "cuda":
        source.hold(accelerator.device, HELD_SHARE * torch.cuda.mem_get_info(accelerator.device)[0])
    return source


def _prepared(config: TransformerTraining, model: LetsTalkConfig, latents: bool) -> list[Path]:
    """The shards of videos, prepared now in the run's folder unless they are there: as `prepare` makes them, but no
    identity is set aside, and lips are not compared, which would lose a part of few videos that somebody chose."""
    from ..data.preparation.preparation_settings import PreparationSettings
    from ..data.preparation.preparing import kept_shards, prepare

    features = model.audio.encoder
    if features not in BUILT_IN and not config.audio_encoder:
        raise InputError("The model takes wav2vec2 features; set audio_encoder to its folder or file.")
    settings = PreparationSettings(
        size=model.image_size, fps=model.fps, features=features if features in BUILT_IN else config.audio_encoder,
        autoencoder=(config.autoencoder or config.init_from) if latents else "", lips=False, eval_share=0.0,
    )  # fmt: skip
    prepared = Path(config.run) / "prepared"
    print(prepare([config.data_path], prepared, settings))
    return kept_shards(prepared)


@torch.no_grad()
def encode_clips(store: ClipStore, autoencoder: Autoencoder) -> tuple[np.ndarray, np.ndarray]:
    """Latents float16 of all frames [n,T,C,h,w] and of portraits [n,C,h,w], encoded once into the store's folder."""
    side = store.size // autoencoder.downscale
    shape = (store.count, store.length + 1, autoencoder.latent_channels, side, side)
    # Latents of another encoder are never taken for this one's.
    path = store.folder / f"latents-{autoencoder.encoder_digest}.npy"
    progress = path.with_suffix(".done")
    if not path.exists():
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    latents = np.load(path, mmap_mode="r+")
    done = read_count(progress)
    for i in tqdm(range(done, store.count), desc="encode", mininterval=10, disable=done == store.count):
        frames = torch.from_numpy(np.concatenate([store.portraits[i][None], store.frames[i]]))
        images = pixels_to_images(frames)
        latents[i] = (
            autoencoder.encode(images.to(next(autoencoder.parameters()).device), len(images))
            .cpu()
            .numpy()
            .astype(np.float16)
        )
        if (i + 1) % 50 == 0 or i + 1 == store.count:
            latents.flush()
            write_count(progress, i + 1)
    return latents[:, 1:], latents[:, 0]
