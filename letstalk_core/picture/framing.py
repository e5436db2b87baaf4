"""A small network that puts a drawn face where the bundled model expects it: eyes and mouth at fixed heights.

Face detectors disagree by a tenth of the face from one drawing to the next, and miss some. Opening a mouth changes the
latents of two people alike only where both mouths lie at the same place, so a crop is aligned before it is encoded.
Trained on drawings (training/bundled/train_framing.py); on photographs its steps are limited (portrait.py).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..pixels import pictures_to_images
from ..weights import read_network

SIZE = 64  # pixels, the side of a crop
WEIGHTS = Path(__file__).parent / "framing.safetensors"


class FramingNet(nn.Module):
    """Crops [n,3,64,64] in -1..1 -> [n,3]: logarithm of the wanted square's side, and its centre's offset x, y.

    Lengths are in sides of the crop.
    """

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, 96)
        self.layers = nn.Sequential()
        for low, high in zip(widths[:-1], widths[1:], strict=True):
            self.layers.append(nn.Conv2d(low, high, 3, stride=2, padding=1))
            self.layers.append(nn.GroupNorm(8, high))
            self.layers.append(nn.SiLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images))

    @torch.inference_mode()
    def read(self, crop: np.ndarray) -> tuple[float, float, float]:
        """Crop float [64,64,3] in 0..1 -> (side, x, y): the wanted square's side and centre offset, in crop sides."""
        image = pictures_to_images(crop)[None]
        log_side, x, y = self(image)[0].tolist()
        return float(np.exp(log_side)), x, y


@functools.cache
def framing_net() -> FramingNet:
    """The framing network with the weights of this repository, loaded once, in evaluation mode."""
    return read_network(WEIGHTS, FramingNet())
