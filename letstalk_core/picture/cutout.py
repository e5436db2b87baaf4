"""What lies behind a person who is cut out of a picture: a colour, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import ImageColor
from torch import Tensor

from ..errors import InputError
from ..pixels import pixels_to_pictures
from .matte import cut_out, find_matte, with_own_matte
from .picture_file import BACKDROP

KEEP, TRANSPARENT = "keep", "transparent"


@dataclass(frozen=True)
class Background:
    """colour: red, green and blue, 0..255; None is transparent. No Background at all keeps the picture's own."""

    colour: tuple[int, int, int] | None

    @classmethod
    def parse(cls, text: str) -> Background | None:
        """ "keep" gives None; else "transparent", or a colour as CSS writes it: "#00b140", "white".

        InputError for anything else.
        """
        if text == KEEP:
            return None
        if text == TRANSPARENT:
            return cls(None)
        try:
            return cls(ImageColor.getrgb(text)[:3])
        except ValueError:
            raise InputError(
                f"The background is {text!r}; choose keep, transparent, or a colour such as #00b140 or white."
            ) from None

    @property
    def transparent(self) -> bool:
        return self.colour is None

    def behind(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 [n,H,W,4] as they go into the file: [n,H,W,3] over the colour, or as they are."""
        return pixels if self.colour is None else _over(pixels, self.colour)


def opaque(pixels: Tensor) -> Tensor:
    """Pixels uint8 [...,3 or 4] to be looked at, [...,3]: over grey where they are transparent."""
    return pixels if pixels.shape[-1] == 3 else _over(pixels, (round(255 * BACKDROP),) * 3)


def _over(pixels: Tensor, colour: tuple[int, int, int]) -> Tensor:
    alpha = pixels_to_pictures(pixels[..., 3:])
    behind = torch.tensor(colour, dtype=torch.float32)
    return torch.lerp(behind.expand(*pixels.shape[:-1], 3), pixels[..., :3].float(), alpha).round().byte()


def person_of(picture: np.ndarray, matte: np.ndarray | None = None) -> np.ndarray:
    """A picture [H,W,3 or 4] in 0..1 with the person cut out, float32 [H,W,4].

    matte [H,W]: None takes the picture's own transparency, if it has some, or else finds it (InputError of find_matte).
    """
    if matte is not None:
        return cut_out(picture[..., :3], matte)
    if picture.shape[-1] == 4 and (picture[..., 3] < 1).any():
        return with_own_matte(picture)
    return cut_out(picture[..., :3], find_matte(picture[..., :3]))
