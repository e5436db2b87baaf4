"""Pasting the frames of a face back into the picture that it was cropped from, where they changed it."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..pixels import images_to_pictures, pictures_to_pixels, pixels_to_pictures
from .portrait import Portrait
from .ramp import smoothstep
from .similarity import apply, corners, size_of

FEATHER = 0.12  # share of the crop's side over which its edge fades into the picture
COLOUR_SCALE = 8  # colours are matched on a map of this many cells along a side: light and tone, not detail
CELLS = 32  # along a side of the map of where frames changed
CHANGED = 0.015, 0.06  # mean difference to the portrait in -1..1: the picture stays up to one, and is gone at the other


class Place:
    """Where a crop lies in its picture: rows and columns, and for these pixels the places [1,h,w,2] in the crop, -1..1
    from edge to edge, and the weight [h,w] of what is pasted: 1 inside, 0 at the crop's edge and outside, and less
    where the crops of others are nearer: all weights together are never more than 1."""

    def __init__(self, portrait: Portrait, others: Sequence[Portrait] = ()):
        size, (width, height) = portrait.image.shape[-1], portrait.original_size
        around = corners(portrait.square, size)
        left, top = np.clip(np.floor(around.min(0)).astype(int), 0, (width, height))
        right, bottom = np.clip(np.ceil(around.max(0)).astype(int), 0, (width, height))
        self.rows, self.columns = slice(top, bottom), slice(left, right)
        self.side = size / size_of(portrait.square)  # in pixels of the picture
        x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        pixels = np.stack([x, y], -1).reshape(-1, 2)
        places = _inside(portrait, pixels)
        self.places = torch.from_numpy(places).float().view(1, *x.shape, 2)
        self.weight = feathered(self.places[0])
        for other in others:
            nearer = np.hypot(*_inside(other, pixels).T) - np.hypot(*places.T)
            self.weight *= smoothstep(torch.from_numpy(nearer).float().view(x.shape) / (2 * FEATHER) + 0.5)


def _inside(portrait: Portrait, pixels: np.ndarray) -> np.ndarray:
    """Where pixels [n,2] of the picture lie in a crop, -1..1 from edge to edge."""
    return apply(portrait.square, pixels) / portrait.image.shape[-1] * 2 - 1


def feathered(places: Tensor) -> Tensor:
    """The weight [...] of places [...,2] in a crop, -1..1 from edge to edge: a smooth ramp of FEATHER at its edges."""
    return smoothstep((1 - places.abs()) / (2 * FEATHER)).prod(-1)


def portrait_mask(portrait: Portrait) -> Tensor:
    """Weight [H, W] float32 in 0..1 of the frames in the original picture: 0 where it stays as it is."""
    width, height = portrait.original_size
    place, mask = Place(portrait), torch.zeros(height, width)
    mask[place.rows, place.columns] = place.weight
    return mask


class PasteBack:
    """Pastes frames [n,3,H,W] in -1..1 into the picture around them.

    Only what differs from the portrait is pasted: where nothing moves, the picture keeps its own pixels, which are
    finer than a model's. Of an untouched portrait the whole picture stays.

    Args:
        picture: the original, float [H,W,3] in 0..1; never modified. [H,W,4] with the person cut out, where the frames
            have that fourth channel, too.
        portrait: the crop of it that was animated. InputError where it is of a picture of another size.
        reconstruction: the portrait through the autoencoder, [3,size,size] in -1..1. What it changed in colour and
            light is taken back from every frame alike, so that the edge fits and nothing flickers. None leaves the
            frames as they are.
        others: portraits of the same picture whose frames are pasted into it as well: each has its own part of it.
    """

    def __init__(
        self, picture: Tensor, portrait: Portrait, reconstruction: Tensor | None = None,
        others: Sequence[Portrait] = (),
    ):  # fmt: skip
        if tuple(picture.shape[1::-1]) != portrait.original_size:
            raise InputError(
                f"The picture is {picture.shape[1]}x{picture.shape[0]}, but the portrait was cropped from one of "
                f"{portrait.original_size[0]}x{portrait.original_size[1]}; connect the picture that it was made of."
            )
        self.picture, self.portrait, self.others = picture, portrait, tuple(others)
        self.place = Place(portrait, others)
        still = portrait.at(portrait.image.shape[-1])
        self.still, self.correction = still[None], None
        if reconstruction is not None:
            self.still = torch.stack([still, reconstruction.to(still)])
            change = F.adaptive_avg_pool2d(self.still[:1] - self.still[1:], COLOUR_SCALE)
            change[:, 3:] = 0  # a matte has no light
            self.correction = F.interpolate(change, portrait.image.shape[-2:], mode="bicubic")

    @functools.cached_property
    def digest(self) -> str:
        """The digest of everything that decides where and into what frames are pasted: SHA-256 in hexadecimal."""
        squares = [portrait.square.tolist() for portrait in (self.portrait, *self.others)]
        of = f"{squares} {self.portrait.original_size} {self.correction is None}"
        digest = hashlib.sha256(of.encode())
        digest.update(self.picture.float().contiguous().numpy())
        return digest.hexdigest()

    def shows(self, picture: Tensor) -> bool:
        """Whether frames are pasted into this picture."""
        return self.picture is picture or torch.equal(self.picture, picture)

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames [n,3,H,W] in -1..1 -> pictures [n,H,W,3] in 0..1, of the original's size."""
        pictures = self.picture.to(frames).expand(len(frames), -1, -1, -1).clone()
        pictures[:, self.place.rows, self.place.columns] = self._around(frames)
        return pictures

    def pixels(self, frames: Tensor, onto: Tensor | None = None) -> Tensor:
        """The same as uint8 [n,H,W,3] on the CPU, in a fraction of the time where the face is small.

        onto: pixels of the picture with other faces' frames in it, which are changed in place; None begins anew.
        """
        if onto is None:
            pixels, there = self._pixels.expand(len(frames), -1, -1, -1).clone(), None
        else:
            pixels, there = onto, pixels_to_pictures(onto[:, self.place.rows, self.place.columns]).to(frames)
        pixels[:, self.place.rows, self.place.columns] = pictures_to_pixels(self._around(frames, there))
        return pixels

    @functools.cached_property
    def _pixels(self) -> Tensor:
        return pictures_to_pixels(self.picture)

    def _around(self, frames: Tensor, there: Tensor | None = None) -> Tensor:
        """The part of the picture [n,rows,columns,3] that the crop lies in, with frames pasted in; there: this part, if
        it is no longer the picture's own."""
        changed = self._read(self.changes(frames), "bilinear")[:, 0, ..., None]
        if self.correction is not None:
            frames = frames + _resized(self.correction, frames.shape[-1]).to(frames)
        frames = _resized(frames, min(frames.shape[-1], math.ceil(self.place.side)))  # antialiased where it shrinks
        faces = images_to_pictures(self._read(frames, "bicubic"))
        if there is None:
            there = self.picture[self.place.rows, self.place.columns].to(faces)
        return there + self.place.weight[..., None].to(faces) * changed * (faces - there)

    def changes(self, frames: Tensor) -> Tensor:
        """Where frames [n,3,H,W] differ from the still portrait, [n,1,CELLS,CELLS]: how much of the picture goes."""
        frames = _resized(frames, self.still.shape[-1])
        differences = [F.adaptive_avg_pool2d((frames - still.to(frames)).abs(), CELLS).mean(1) for still in self.still]
        difference = torch.stack(differences).amin(0)[:, None]
        low, high = CHANGED
        return F.max_pool2d(((difference - low) / (high - low)).clamp(0, 1), 3, 1, 1)

    def _read(self, values: Tensor, mode: str) -> Tensor:
        """Values [n,c,h,w] of crops at the picture's pixels, [n,c,rows,columns]."""
        places = self.place.places.to(values).expand(len(values), -1, -1, -1)
        return F.grid_sample(values, places, mode, padding_mode="border", align_corners=False)


def _resized(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=side < images.shape[-1])
