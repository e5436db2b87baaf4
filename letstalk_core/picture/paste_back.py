"""Pasting the frames of a face back into the picture that it was cropped from."""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..pixels import images_to_pictures
from .portrait import Portrait

FEATHER = 0.12  # share of the crop's side over which its edge fades into the picture
COLOUR_SCALE = 8  # colours are matched on a map of this many cells along a side: light and tone, not detail


def feather_mask(size: int) -> Tensor:
    """Weight [size, size] float32 of a pasted crop: 1 inside, 0 at the edges, with a smooth ramp of FEATHER between."""
    distance = torch.minimum(torch.arange(size) + 0.5, size - torch.arange(size) - 0.5) / (FEATHER * size)
    ramp = distance.clamp(0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return ramp[:, None] * ramp[None, :]


def portrait_mask(portrait: Portrait) -> Tensor:
    """Weight [H, W] float32 in 0..1 of the frames in the original picture: 0 where it stays as it is."""
    width, height = portrait.original_size
    mask = torch.zeros(height, width)
    rows, columns, crop_rows, crop_columns = _overlap(portrait)
    mask[rows, columns] = feather_mask(portrait.box[2] - portrait.box[0])[crop_rows, crop_columns]
    return mask


class PasteBack:
    """Pastes frames [n,3,H,W] in -1..1 into the picture around them.

    Args:
        picture: the original, float [H,W,3] in 0..1; never modified.
        portrait: the crop of it that was animated. InputError where it is of a picture of another size.
        reconstruction: the portrait through the autoencoder, [3,size,size] in -1..1. What it changed in colour and
            light is taken back from every frame alike, so that the edge fits and nothing flickers. None leaves the
            frames as they are.
    """

    def __init__(self, picture: Tensor, portrait: Portrait, reconstruction: Tensor | None = None):
        if tuple(picture.shape[1::-1]) != portrait.original_size:
            raise InputError(
                f"The picture is {picture.shape[1]}x{picture.shape[0]}, but the portrait was cropped from one of "
                f"{portrait.original_size[0]}x{portrait.original_size[1]}; connect the picture that it was made of."
            )
        self.picture, self.portrait = picture, portrait
        self.side = portrait.box[2] - portrait.box[0]
        self.mask = feather_mask(self.side)[..., None]
        self.correction = None
        if reconstruction is not None:
            change = F.adaptive_avg_pool2d((portrait.image - reconstruction.to(portrait.image))[None], COLOUR_SCALE)
            self.correction = F.interpolate(change, reconstruction.shape[-2:], mode="bicubic")

    @functools.cached_property
    def digest(self) -> str:
        """The digest of everything that decides where and into what frames are pasted: SHA-256 in hexadecimal."""
        digest = hashlib.sha256(f"{self.portrait.box} {self.correction is None}".encode())
        digest.update(self.picture.float().contiguous().numpy())
        return digest.hexdigest()

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames [n,3,H,W] in -1..1 -> pictures [n,H,W,3] in 0..1, of the original's size."""
        if self.correction is not None:
            correction = self.correction
            if correction.shape[-2:] != frames.shape[-2:]:
                correction = F.interpolate(correction, frames.shape[-2:], mode="bilinear")
            frames = frames + correction.to(frames)
        smaller = self.side < frames.shape[-1]
        faces = F.interpolate(frames, (self.side, self.side), mode="bicubic", antialias=smaller)
        faces = images_to_pictures(faces)
        pictures = self.picture.to(faces).expand(len(faces), -1, -1, -1).clone()
        rows, columns, crop_rows, crop_columns = _overlap(self.portrait)
        mask = self.mask[crop_rows, crop_columns].to(faces)
        there = pictures[:, rows, columns]
        pictures[:, rows, columns] = there + mask * (faces[:, crop_rows, crop_columns] - there)
        return pictures


def _overlap(portrait: Portrait) -> tuple[slice, slice, slice, slice]:
    """The part of the box inside the picture: its rows and columns in the picture, and those in the crop."""
    width, height = portrait.original_size
    x0, y0, x1, y1 = portrait.box
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return slice(top, bottom), slice(left, right), slice(top - y0, bottom - y0), slice(left - x0, right - x0)
