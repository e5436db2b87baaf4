"""Frames put back into the picture, and stretches of a video that fit together."""

import dataclasses

import numpy as np
import pytest
import torch

from letstalk_core.errors import InputError
from letstalk_core.picture.paste_back import PasteBack, feather_mask, portrait_mask
from letstalk_core.picture.portrait import Portrait, crop_portrait, without_alpha
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.video.clips import ClipSampler, SamplingSettings

from .tiny import write_tiny_checkpoint

_CELLS = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
PICTURE = torch.nn.functional.interpolate(_CELLS, (90, 120), mode="bilinear")[0].permute(1, 2, 0).contiguous()


def portrait_at(box, size=32):
    x0, y0, x1, y1 = box
    rows, columns = torch.arange(y0, y1).clamp(0, 89), torch.arange(x0, x1).clamp(0, 119)
    crop = PICTURE[rows][:, columns].permute(2, 0, 1)[None]
    image = torch.nn.functional.interpolate(crop, (size, size), mode="bilinear")[0] * 2 - 1
    return Portrait(image, box, (120, 90))


@pytest.mark.parametrize("box", [(30, 20, 94, 84), (-20, -30, 60, 50), (80, 50, 140, 110), (-10, -40, 150, 120)])
def test_only_the_crop_changes_and_its_middle_is_the_frame(box):
    portrait, before = portrait_at(box), PICTURE.clone()
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(3, 3, 32, 32)
    pictures = PasteBack(PICTURE, portrait)(red)
    assert pictures.shape == (3, 90, 120, 3) and torch.equal(PICTURE, before)
    mask = portrait_mask(portrait)
    assert torch.equal(pictures[:, mask == 0], PICTURE[mask == 0].expand(3, -1, -1))
    assert torch.allclose(pictures[:, mask == 1], torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)
    assert (mask == 1).any() and mask.shape == (90, 120)


def test_the_edge_is_a_smooth_ramp():
    mask = feather_mask(100)
    assert mask[50, 50] == 1 and mask[0].max() < 0.01 and mask[50].diff().abs().max() < 0.15
    assert torch.equal(mask, mask.flip(0)) and torch.equal(mask, mask.T)


def test_a_still_portrait_pasted_back_is_the_picture():
    portrait = portrait_at((20, 10, 84, 74), size=64)  # as large as its box: nothing is resampled
    pasted = PasteBack(PICTURE, portrait)(portrait.image[None])[0]
    torch.testing.assert_close(pasted, PICTURE, atol=1e-5, rtol=0)


def test_colours_that_the_autoencoder_shifts_are_put_right():
    portrait = portrait_at((20, 10, 84, 74), size=64)
    shifted = portrait.image * 0.9 + torch.tensor([0.05, -0.1, 0.02])[:, None, None]
    far = (PasteBack(PICTURE, portrait)(shifted[None])[0] - PICTURE).abs().mean()
    near = (PasteBack(PICTURE, portrait, shifted)(shifted[None])[0] - PICTURE).abs().mean()
    assert near < 0.4 * far


def test_another_picture_is_refused():
    with pytest.raises(InputError, match="40x50, but the portrait was cropped from one of 120x90"):
        PasteBack(torch.zeros(50, 40, 3), portrait_at((20, 10, 84, 74)))


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
