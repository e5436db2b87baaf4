"""What a stretch is made of: the features around its frames, and the latents of these."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...audio.encoder import FeatureStream
from ...picture.autoencoder import Autoencoder
from ...pixels import pixels_to_images
from .shard_writer import Stretch

CONTEXT = 8  # frames of features on either side of a stretch: for audio windows of up to 17 frames
CHUNK = 16  # frames that are encoded to latents at a time


def features_around(features: FeatureStream, first: int, last: int, context: int) -> Tensor:
    """Features [n, L, E] of frames first - context .. last + context - 1.

    Frames beyond the recording repeat its first and last frame.
    """
    low, high = max(first - context, 0), min(last + context, len(features))
    return features[low:high][torch.arange(first - context, last + context).clamp(low, high - 1) - low]


def with_latents(stretch: Stretch, autoencoder: Autoencoder, digest: str, keep_frames: bool) -> Stretch:
    """The stretch with latents of its frames, and without the frames where they are not to be kept. digest: the
    autoencoder's encoder_digest, which takes long to make."""
    device, parts = next(autoencoder.parameters()).device, []
    for begin in range(0, len(stretch.frames), CHUNK):
        pixels = torch.from_numpy(stretch.frames[begin : begin + CHUNK]).to(device)
        with torch.no_grad():
            parts.append(autoencoder.encode(pixels_to_images(pixels)).cpu())
    frames = stretch.frames if keep_frames else None
    size = tuple(stretch.frames.shape[1:3])
    latents = torch.cat(parts)
    return replace(stretch, frames=frames, size=size, latents=latents, autoencoder=digest)
