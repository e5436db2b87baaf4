"""Drawn portraits: the same seed, the same picture; controls do what their names say."""

import numpy as np
import pytest

from letstalk_core.data.drawn.avatars import Avatar
from letstalk_core.data.drawn.drawing import draw_frames
from letstalk_core.data.drawn.motion import COLUMN, CONTROLS, blink_track, control_track, rest_controls
from letstalk_core.data.drawn.stills import random_controls, render_pictures


def controls(**values) -> np.ndarray:
    frame = np.zeros(len(CONTROLS), np.float32)
    for name, value in values.items():
        frame[COLUMN[name]] = value
    return frame


def test_the_same_seed_gives_the_same_person_and_another_seed_another():
    first, again, other = (draw_frames(Avatar(seed, 64), controls())[0] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_frames_do_not_depend_on_the_frames_before():
    avatar = Avatar(3, 64)
    track = control_track(np.random.default_rng(0), np.random.default_rng(1).random((5, 5)).astype(np.float32))
    assert np.array_equal(draw_frames(avatar, track)[3], draw_frames(avatar, track[3])[0])


@pytest.mark.parametrize("seed", range(8))
def test_speaking_changes_the_mouth_and_blinking_the_eyes(seed):
    avatar = Avatar((seed, 0), 128)
    rest, spoken, blink = (
        draw_frames(avatar, controls(**values))[0].astype(int)
        for values in ({}, {"open": 0.3, "width": 0.5}, {"blink": 1})
    )
    for changed, name in ((spoken, "mouth"), (blink, "eyes")):
        difference, region = np.abs(changed - rest).sum(-1), avatar.region(name)
        assert difference[region].mean() > 5 * difference[~region].mean()  # the jaw moves the chin a little too


def test_opening_the_mouth_changes_different_people_alike():
    changes = []
    for seed in range(20):
        rest, spoken = draw_frames(Avatar((seed, 0), 64), np.stack([controls(), controls(open=0.6)])).astype(float)
        changes.append((spoken - rest).ravel() / np.linalg.norm(spoken - rest))
    cosines = np.array(changes) @ np.array(changes).T
    assert cosines[~np.eye(20, dtype=bool)].mean() > 0.3


def test_a_wider_opening_shows_more_of_the_mouth():
    avatar = Avatar((1, 0), 128)
    rest = draw_frames(avatar, controls())[0].astype(int)
    sizes = [np.abs(draw_frames(avatar, controls(open=o))[0] - rest).sum() for o in (0.2, 0.5, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] > 0


def test_heads_are_fully_inside_the_frame_range():
    for seed in range(12):
        frame = draw_frames(Avatar((seed, 0), 64), rest_controls(np.random.default_rng(seed)))[0]
        assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
        assert frame.std() > 8  # somebody is there


def test_blinks_come_at_the_rate_asked_for():
    track = blink_track(np.random.default_rng(0), 25 * 60 * 20, per_minute=20)
    blinks = ((track[1:] > 0.5) & (track[:-1] <= 0.5)).sum() / 20
    assert 16 < blinks < 24


def test_pictures_are_rendered_once_and_read_back(tmp_path):
    pictures, regions = render_pictures(tmp_path, 2, 3, 32)
    stamp = (tmp_path / "pictures.npy").stat().st_mtime_ns
    again, _ = render_pictures(tmp_path, 2, 3, 32)
    assert (tmp_path / "pictures.npy").stat().st_mtime_ns == stamp
    assert np.array_equal(pictures, again) and pictures.shape == (6, 32, 32, 3)
    assert set(np.unique(regions)) == {0, 1, 2}
    expected = draw_frames(Avatar((1, 0), 32), random_controls(np.random.default_rng((1, 1)), 3))
    assert np.array_equal(pictures[3:], expected)
