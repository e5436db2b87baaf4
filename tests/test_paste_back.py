"""Frames put back into the picture, and stretches of a video that fit together."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from letstalk_core.errors import InputError
from letstalk_core.picture.paste_back import PasteBack, portrait_mask
from letstalk_core.picture.picture_file import without_alpha
from letstalk_core.picture.portrait import Portrait, crop_portrait
from letstalk_core.picture.similarity import cut, rotation, square_at
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.pixels import pictures_to_images
from letstalk_core.video.clips import ClipSampler, SamplingSettings

from .tiny import write_tiny_checkpoint

_CELLS = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
PICTURE = torch.nn.functional.interpolate(_CELLS, (90, 120), mode="bilinear")[0].permute(1, 2, 0).contiguous()


def portrait_at(left, top, side, tilt=0.0, size=32):
    middle = np.array([left + side / 2, top + side / 2])
    square = rotation(size / side, tilt, middle, np.full(2, size / 2))
    return Portrait(pictures_to_images(cut(PICTURE.numpy(), square, size)), square, (120, 90))


PLACES = [(30, 20, 64), (-20, -30, 80), (80, 50, 60), (-10, -40, 160), (30, 20, 50, 0.6), (-15, 40, 70, -0.8)]


@pytest.mark.parametrize("place", PLACES)
def test_only_the_crop_changes_and_its_middle_is_the_frame(place):
    portrait, before = portrait_at(*place), PICTURE.clone()
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(3, 3, 32, 32)
    pictures = PasteBack(PICTURE, portrait)(red)
    assert pictures.shape == (3, 90, 120, 3) and torch.equal(PICTURE, before)
    mask = portrait_mask(portrait)
    assert torch.equal(pictures[:, mask == 0], PICTURE[mask == 0].expand(3, -1, -1))
    assert torch.allclose(pictures[:, mask == 1], torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)
    assert (mask == 1).any() and mask.shape == (90, 120)


def test_the_edge_is_a_smooth_ramp():
    mask = portrait_mask(Portrait(torch.zeros(3, 100, 100), np.eye(2, 3), (100, 100)))
    assert mask[50, 50] == 1 and mask[0].max() < 0.01 and mask[50].diff().abs().max() < 0.15
    assert torch.equal(mask, mask.flip(0)) and torch.equal(mask, mask.T)


def test_the_edge_is_as_tilted_as_the_crop():
    portrait = portrait_at(30, 20, 50, tilt=math.pi / 4)
    mask = portrait_mask(portrait)
    assert mask[45, 55] == 1 and mask[45, 55 + 33] > 0 and mask[20, 30] == 0  # the middle, a corner, and beside one


# A crop as it was, and one through an autoencoder that changed its colours: nothing was asked of the picture.
@pytest.mark.parametrize("tilt", [0.0, 0.5, -0.8])
@pytest.mark.parametrize("size", [16, 64, 200])
def test_an_untouched_crop_leaves_the_picture_as_it_was(tilt, size):
    noise = torch.rand(90, 120, 3, generator=torch.Generator().manual_seed(2))  # finer than any crop can be
    square = portrait_at(20, 10, 64, tilt, size).square
    portrait = Portrait(pictures_to_images(cut(noise.numpy(), square, size)), square, (120, 90))
    shifted = portrait.image * 0.9 + torch.tensor([0.05, -0.1, 0.02])[:, None, None]
    assert torch.equal(PasteBack(noise, portrait)(portrait.image[None])[0], noise)
    both = PasteBack(noise, portrait, shifted)(torch.stack([portrait.image, shifted]))
    assert torch.equal(both, noise.expand(2, -1, -1, -1))


def test_an_untouched_crop_that_was_enlarged_leaves_the_picture_as_it_was():
    portrait = portrait_at(20, 10, 64, 0.3, 64)
    larger = torch.nn.functional.interpolate(portrait.image[None], scale_factor=2, mode="bicubic")
    assert torch.equal(PasteBack(PICTURE, portrait)(larger)[0], PICTURE)


@pytest.mark.parametrize("tilt", [0.0, 0.5])
def test_what_changed_is_pasted_where_it_was(tilt):
    """A face that rises by three pixels, pasted back: the picture as if all of it had."""
    portrait = portrait_at(30, 20, 50, tilt, 128)
    moved = portrait.square.copy()
    moved[:, 2] += portrait.square[:, :2] @ (0, -3)
    frame = pictures_to_images(cut(PICTURE.numpy(), moved, 128))
    pasted = PasteBack(PICTURE, portrait)(frame[None])[0]
    wanted = PICTURE.roll(-3, 0)
    inside = portrait_mask(portrait) == 1
    changed = (wanted - PICTURE)[inside].abs().mean()
    assert (pasted - wanted)[inside].abs().mean() < 0.1 * changed


def test_detail_of_the_picture_stays_beside_a_mouth_that_moves():
    noise = torch.rand(400, 400, 3, generator=torch.Generator().manual_seed(2))
    square = square_at(50, 50, 300, 64)  # the model's crop is nearly five times as coarse
    portrait = Portrait(pictures_to_images(cut(noise.numpy(), square, 64)), square, (400, 400))
    frame = portrait.image.clone()
    frame[:, 40:50, 24:40] = -1
    pasted = PasteBack(noise, portrait)(frame[None])[0]
    mouth = slice(50 + 42 * 300 // 64, 50 + 48 * 300 // 64), slice(50 + 26 * 300 // 64, 50 + 38 * 300 // 64)
    assert pasted[mouth].max() < 0.1
    assert torch.equal(pasted[50:200], noise[50:200])


def test_colours_that_the_autoencoder_shifts_are_put_right():
    """Of frames that move, too."""
    portrait = portrait_at(20, 10, 64, size=64)
    moved = portrait.image.roll(6, 1)
    shifted, reconstruction = (
        image * 0.9 + torch.tensor([0.05, -0.1, 0.02])[:, None, None] for image in (moved, portrait.image)
    )
    wanted = PasteBack(PICTURE, portrait)(moved[None])[0]
    far = (PasteBack(PICTURE, portrait)(shifted[None])[0] - wanted).abs().mean()
    near = (PasteBack(PICTURE, portrait, reconstruction)(shifted[None])[0] - wanted).abs().mean()
    assert near < 0.4 * far


def test_another_picture_is_refused():
    with pytest.raises(InputError, match="40x50, but the portrait was cropped from one of 120x90"):
        PasteBack(torch.zeros(50, 40, 3), portrait_at(20, 10, 64))


def test_transparent_pixels_lie_over_grey():
    picture = torch.cat([torch.ones(20, 30, 3), torch.zeros(20, 30, 1)], dim=2)
    with pytest.raises(InputError, match="fully transparent"):
        without_alpha(picture)
    picture[0, 0, 3] = 1
    laid = without_alpha(picture)
    assert torch.equal(laid[1:], torch.full((19, 30, 3), 0.5)) and torch.equal(laid[0, 0], torch.ones(3))
    assert without_alpha(PICTURE) is PICTURE
    assert crop_portrait(laid.numpy(), 16, "none").image.shape == (3, 16, 16)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return LetsTalkPipeline.load(write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors"), "cpu")


@pytest.fixture(scope="module")
def inputs(pipeline):
    generator = torch.Generator().manual_seed(1)
    portrait = pipeline.crop(np.random.default_rng(0).random((64, 64, 3), np.float32), "none")
    return portrait, torch.randn(23, 4, 80, generator=generator)


def render(pipeline, inputs, *stretch):
    portrait, features = inputs
    sampler = ClipSampler(pipeline.model, pipeline.encode_portrait(portrait), features, SamplingSettings(seed=5))
    parts = list(sampler.chunks(pipeline.decoder(portrait), *stretch))
    made = stretch[0] if stretch else 0
    for part in parts:  # whoever stops after any of them goes on from the last border of clips
        made += len(part.frames)
        assert part.memory.frames == made - made % 4
    return torch.cat([part.frames for part in parts]), parts[-1].memory


@pytest.mark.parametrize("at_a_time", [256, 3])  # frames that are decoded at once; clips have 4
@pytest.mark.parametrize("cut", [4, 8, 1, 7, 22])
def test_two_stretches_equal_one(pipeline, inputs, cut, at_a_time, monkeypatch):
    monkeypatch.setattr("letstalk_core.video.clips.DECODED_PIXELS", at_a_time * 64**2)
    whole, _ = render(pipeline, inputs)
    first, memory = render(pipeline, inputs, 0, cut)
    second, _ = render(pipeline, inputs, cut, None, memory)
    assert len(whole) == 23 and len(first) == cut
    assert torch.equal(torch.cat([first, second]), whole)


def test_a_later_start_without_a_memory_begins_at_the_portrait(pipeline, inputs):
    frames, memory = render(pipeline, inputs, 9, 13)
    assert len(frames) == 4 and memory.frames == 12


@pytest.mark.parametrize(("stretch", "sentence"), [((0, 24), "the recording has 23"), ((5, 5), "5 to 5")])
def test_stretches_outside_the_recording_are_refused(pipeline, inputs, stretch, sentence):
    with pytest.raises(InputError, match=sentence):
        render(pipeline, inputs, *stretch)


def test_a_memory_of_another_place_is_refused(pipeline, inputs):
    _, memory = render(pipeline, inputs, 0, 4)
    with pytest.raises(InputError, match="ends at frame 4, but frame 12"):
        render(pipeline, inputs, 12, None, memory)
    moved = dataclasses.replace(memory, frames=12)
    assert len(render(pipeline, inputs, 12, None, moved)[0]) == 11
