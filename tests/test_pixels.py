"""Pixels, pictures, images and planes: every value survives, whatever the layout, and what lies outside is clipped."""

import numpy as np
import pytest
import torch

from letstalk_core.pixels import (
    images_to_pictures,
    images_to_pixels,
    normalise,
    pictures_to_images,
    pictures_to_pixels,
    pixels_to_images,
    pixels_to_pictures,
    pixels_to_planes,
)

PIXELS = np.arange(256, dtype=np.uint8).repeat(3).reshape(2, 8, 16, 3)  # [n,H,W,3], every value there is
PIXELS = np.concatenate([PIXELS, PIXELS[::-1, ::-1]], axis=0)


def test_every_value_comes_back_from_every_form():
    images, pictures = pixels_to_images(PIXELS), pixels_to_pictures(PIXELS)
    assert images.shape == (4, 3, 8, 16) and images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1) and (pictures.min(), pictures.max()) == (0, 1)
    assert np.array_equal(images_to_pixels(images).numpy(), PIXELS)
    assert np.array_equal(pictures_to_pixels(pictures), PIXELS)
    assert np.array_equal(pictures_to_pixels(torch.from_numpy(pictures)).numpy(), PIXELS)
    assert np.array_equal(images_to_pixels(pictures_to_images(pictures)).numpy(), PIXELS)
    torch.testing.assert_close(images_to_pictures(images), torch.from_numpy(pictures))
    assert torch.equal(normalise(pixels_to_planes(PIXELS)), images)
    assert torch.equal(pixels_to_images(torch.from_numpy(PIXELS)), images)


def test_one_picture_is_converted_like_many():
    assert torch.equal(pixels_to_images(PIXELS[0]), pixels_to_images(PIXELS)[0])
    assert torch.equal(pixels_to_planes(PIXELS[0]), pixels_to_planes(PIXELS)[0])
    assert torch.equal(images_to_pixels(pixels_to_images(PIXELS[0])), torch.from_numpy(PIXELS[0]))


@pytest.mark.parametrize(("value", "pixel"), [(-3.0, 0), (-1.0, 0), (0.0, 128), (1.0, 255), (7.0, 255)])
def test_what_lies_outside_is_clipped(value, pixel):
    image = torch.full((3, 2, 2), value)
    assert (images_to_pixels(image) == pixel).all()
    picture = np.full((2, 2, 3), value / 2 + 0.5, np.float32)
    assert (pictures_to_pixels(picture) == pixel).all() and (
        pictures_to_pixels(torch.from_numpy(picture)) == pixel
    ).all()
    assert pictures_to_images(picture).abs().max() <= 1


def test_nothing_is_shared_with_an_array_that_was_given():
    given = PIXELS.copy()
    images, planes = pixels_to_images(given), pixels_to_planes(given)
    given[:] = 7
    assert np.array_equal(images_to_pixels(images).numpy(), PIXELS)
    assert np.array_equal(planes.numpy(), PIXELS.transpose(0, 3, 1, 2))
