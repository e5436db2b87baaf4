"""What a face is asked for: tracks, blinks, head motion, expression; and what a model that cannot do it says."""

import numpy as np
import pytest
import torch

from letstalk_core.config import CONTROLS
from letstalk_core.errors import InputError
from letstalk_core.video.clips import ClipSampler, SamplingSettings
from letstalk_core.video.controls import AskedFor, blink_schedule, looks, smooth_noise

from .test_long_video import make_model

ALL = tuple(CONTROLS)


def test_everything_is_asked_for_by_default_as_people_do_it():
    asked = AskedFor().values(ALL, 3, 0, 1000, 25)
    assert asked.shape == (1000, len(ALL)) and asked.isfinite().all()
    assert torch.equal(asked[:, 0], blink_schedule(3, 0, 1000, 25))
    moving = dict(zip(ALL, (asked.std(0) > 0.05).tolist(), strict=True))
    assert not moving.pop("smile") and all(moving.values())


def test_what_is_left_to_the_model():
    asked = AskedFor(blinks=None, head_motion=None).values(ALL, 3, 0, 50, 25)
    assert asked.isnan().all(0).tolist() == [name != "smile" for name in ALL]
    still = AskedFor(blinks=0, head_motion=0).values(ALL, 3, 0, 1000, 25)
    assert not still.any()


def test_looks_rest_and_jump():
    gaze = looks(1, "gaze_x", 0, 5000, 25)
    steps = gaze.diff().abs()
    assert 0.3 < (gaze == 0).float().mean() < 0.7 and (steps == 0).float().mean() > 0.8
    assert gaze.abs().max() < 1.3 and steps.max() > 0.1


@pytest.mark.parametrize("start", [-4, 0, 13, 900])
def test_a_part_is_asked_for_what_the_whole_is(start):
    asked = AskedFor(head_motion=1.5, expression=0.3, tracks={"gaze_x": np.linspace(-1, 1, 2000)})
    whole = asked.values(ALL, 5, -10, 2020, 30)
    part = asked.values(ALL, 5, start, 40, 30)
    assert torch.equal(part.isnan(), whole[start + 10 : start + 50].isnan())
    torch.testing.assert_close(part, whole[start + 10 : start + 50], equal_nan=True)


@pytest.mark.parametrize(("per_minute", "least", "most"), [(8, 7, 9), (16, 14, 18), (25, 23, 27)])
def test_blinks_a_minute(per_minute, least, most):
    track = blink_schedule(5, 0, 25 * 300, 25, per_minute)
    assert least <= int(((track[1:] > 0.5) & (track[:-1] <= 0.5)).sum()) / 5 <= most


def test_head_motion_grows_and_stays_in_range():
    yaw = [AskedFor(head_motion=motion).values(("yaw",), 1, 0, 5000, 25)[:, 0] for motion in (0, 1, 2)]
    assert not yaw[0].any() and 2 < yaw[1].std() < 5 and 1.5 < yaw[2].std() / yaw[1].std() < 2
    assert yaw[2].abs().max() <= 25 and yaw[2].diff().abs().max() < 2  # degrees a frame: no head jerks


def test_smooth_noise_is_of_unit_size_and_each_seed_its_own():
    noise = smooth_noise(0, "yaw", 0, 20000, 20)
    assert noise.std() == pytest.approx(1, abs=0.15) and abs(noise.mean()) < 0.15
    assert not torch.allclose(noise, smooth_noise(1, "yaw", 0, 20000, 20))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"blinks": 61}, "number of blinks a minute is 61; choose one between 0 and 60"),
        ({"head_motion": -0.1}, "head motion is -0.1"),
        ({"expression": float("nan")}, "expression is nan; choose one between -1 and 1"),
        ({"tracks": {"ears": 1}}, "no control 'ears'; choose among eyelids, yaw"),
        ({"tracks": {"yaw": 26}}, "control yaw is 26; choose one between -25 and 25"),
        ({"tracks": {"yaw": [0.0, float("nan")]}}, "control yaw is nan"),
    ],
)
def test_what_nobody_can_do_is_refused(given, sentence):
    with pytest.raises(InputError, match=sentence):
        AskedFor(**given)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"tracks": {"eyelids": [0.0] * 7}}, "track of eyelids has 7 values, but the video has 9 frames"),
        ({"tracks": {"gaze_x": 0.5}}, "can't be asked for gaze_x; it knows eyelids, yaw"),
        ({"head_motion": 1.5}, "can't be asked for pitch, roll"),
        ({"expression": 0.5}, "can't be asked for smile"),
    ],
)
def test_what_the_model_or_the_recording_does_not_fit_is_refused(asked, sentence):
    model, portrait, features = make_model(controls=("eyelids", "yaw")), torch.zeros(1, 4, 4, 4), torch.zeros(9, 4, 80)
    with pytest.raises(InputError, match=sentence):
        ClipSampler(model, portrait, features, SamplingSettings(asked=AskedFor(**asked)))
    fitting = AskedFor(tracks={"eyelids": [0.0] * 9, "yaw": 3})
    ClipSampler(model, portrait, features, SamplingSettings(asked=fitting))


def test_what_is_asked_for_reaches_the_model():
    model, portrait, features = make_model(controls=("yaw",)), torch.zeros(1, 4, 4, 4), torch.zeros(8, 4, 80)

    def latents(track):
        settings = SamplingSettings(asked=AskedFor(tracks={"yaw": track}))
        return torch.cat([clip.latents for clip in ClipSampler(model, portrait, features, settings).clips()])

    same, later = latents([5.0] * 8), latents([5.0] * 7 + [-20.0])
    assert torch.equal(latents(5), same)
    assert torch.equal(same[:4], later[:4]) and not torch.allclose(same[4:], later[4:], atol=1e-4)
