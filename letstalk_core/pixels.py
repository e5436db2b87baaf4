"""The four forms in which pictures travel, and the only place that converts between them.

- *pixels*: uint8 [...,H,W,3] in 0..255, as files, OpenCV and Pillow have them;
- *pictures*: float [...,H,W,3] in 0..1, as ComfyUI has them;
- *images*: float [...,3,H,W] in -1..1, as networks have them;
- *planes*: uint8 [...,3,H,W], as training examples have them until they are `normalise`d.

It lies below picture/ and video/ because both need it.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor


def normalise(values: Tensor) -> Tensor:
    """uint8 of any layout in 0..255 -> float32 in -1..1."""
    return values.float().div(127.5).sub(1)


def pixels_to_planes(pixels: np.ndarray) -> Tensor:
    """uint8 [...,H,W,3] -> a copy uint8 [...,3,H,W]."""
    return torch.from_numpy(rearrange(pixels, "... h w c -> ... c h w").copy())


def pixels_to_images(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 [...,H,W,3] -> float32 [...,3,H,W] in -1..1, channels last in memory; an array is copied."""
    tensor = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
    return normalise(rearrange(tensor, "... h w c -> ... c h w"))


def images_to_pictures(images: Tensor) -> Tensor:
    """Float [...,3,H,W] in -1..1, values outside clipped -> float [...,H,W,3] in 0..1."""
    return rearrange(images.add(1).div_(2).clamp_(0, 1), "... c h w -> ... h w c")


def pictures_to_images(pictures: np.ndarray | Tensor) -> Tensor:
    """Float [...,H,W,3] in 0..1, values outside clipped -> float [...,3,H,W] in -1..1; an array is copied."""
    tensor = torch.from_numpy(np.array(pictures, np.float32)) if isinstance(pictures, np.ndarray) else pictures
    return rearrange(tensor.clamp(0, 1) * 2 - 1, "... h w c -> ... c h w")


def pictures_to_pixels(pictures: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Float [...,H,W,3] in 0..1, values outside clipped -> uint8 of the same kind."""
    if isinstance(pictures, np.ndarray):
        return (pictures * 255).round().clip(0, 255).astype(np.uint8)
    return pictures.mul(255).round_().clamp_(0, 255).byte()


def pixels_to_pictures(pixels: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """uint8 [...,H,W,C] -> float32 of the same kind in 0..1."""
    return pixels.float().div(255) if isinstance(pixels, Tensor) else np.asarray(pixels, dtype=np.float32) / 255


def images_to_pixels(images: Tensor) -> Tensor:
    """Float [...,3,H,W] in -1..1, values outside clipped -> uint8 [...,H,W,3]."""
    parts = images.split(1) if images.device.type == "cpu" and images.ndim > 3 else (images,)  # fit a processor's cache
    return torch.cat([pictures_to_pixels(images_to_pictures(part)) for part in parts])
