"""The network that aligns a crop by the face in it."""

import cv2
import numpy as np
import pytest

from letstalk_core.data.drawn.avatars import Avatar
from letstalk_core.data.drawn.drawing import draw_frames
from letstalk_core.data.drawn.motion import rest_controls
from letstalk_core.picture import portrait
from letstalk_core.picture.framing import framing_net
from letstalk_core.picture.portrait import ALIGN_SHIFT, ALIGN_SIZE, align_square, crop_portrait

SIDE = 256


def drawn(seed: int) -> np.ndarray:
    """A person never trained on, float [256,256,3] in 0..1, framed as in training."""
    controls = rest_controls(np.random.default_rng(seed))
    return draw_frames(Avatar((3_000_000 + seed, 0), SIDE), controls)[0].astype(np.float32) / 255


def on_a_wall(picture: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    """The picture inside a larger one, its edges drawn out."""
    borders = (top, height - top - SIDE, left, width - left - SIDE)
    return cv2.copyMakeBorder(picture, *borders, cv2.BORDER_REPLICATE)


@pytest.fixture(scope="module")
def errors() -> np.ndarray:
    """Of 24 people: errors of side (a ratio), x and y (in sides) after aligning squares that are off."""
    rng, rows = np.random.default_rng(1), []
    for seed in range(24):
        image = on_a_wall(drawn(seed), 100, 60, 460, 400)
        x, y = 228 + rng.uniform(-30, 30), 188 + rng.uniform(-30, 30)
        found = align_square(image, x, y, SIDE * rng.uniform(0.8, 1.25))
        rows.append([found[2] / SIDE - 1, (found[0] - 228) / SIDE, (found[1] - 188) / SIDE])
    return np.array(rows)


def test_squares_that_are_off_come_to_the_framing_of_the_training(errors):
    # An eighth of a side off before; in pixels of the 128-pixel model 0.02 is 2.6.
    assert np.abs(errors[:, 1:]).mean() < 0.02
    assert np.abs(errors[:, 0]).mean() < 0.06


def test_a_face_that_the_detector_misses_is_aligned_too(monkeypatch):
    monkeypatch.setattr(portrait, "find_faces", lambda image, yunet=None: [])
    with pytest.warns(UserWarning, match="No face was found"):
        box = crop_portrait(on_a_wall(drawn(3), 40, 30, 330, 316), 128).box
    assert abs((box[0] + box[2]) / 2 - 168) < 14 and abs((box[1] + box[3]) / 2 - 158) < 14
    assert 0.85 < (box[2] - box[0]) / SIDE < 1.15


@pytest.mark.filterwarnings("ignore:No face was found")
def test_a_margin_widens_the_crop_where_no_face_is_found_too(monkeypatch):
    monkeypatch.setattr(portrait, "find_faces", lambda image, yunet=None: [])
    image = np.random.default_rng(0).random((200, 240, 3), np.float32)
    near, far = (crop_portrait(image, 64, margin=m).box for m in (portrait.FACE_MARGIN, 1.5 * portrait.FACE_MARGIN))
    assert far[2] - far[0] == pytest.approx(1.5 * (near[2] - near[0]), abs=1)
    assert far[0] + far[2] == pytest.approx(near[0] + near[2], abs=2)  # about the same middle


def test_a_margin_widens_the_aligned_crop(monkeypatch):
    image = on_a_wall(drawn(4), 100, 60, 460, 400)
    monkeypatch.setattr(portrait, "find_faces", lambda image, yunet=None: [(140, 100, 316, 276)])
    near, far = (crop_portrait(image, 64, margin=m).box for m in (portrait.FACE_MARGIN, 1.5 * portrait.FACE_MARGIN))
    assert (far[2] - far[0]) / (near[2] - near[0]) == pytest.approx(1.5, abs=0.02)
    assert (far[0] + far[2]) / 2 == pytest.approx((near[0] + near[2]) / 2, abs=1)


@pytest.mark.parametrize("kind", ["noise", "plain"])
def test_without_a_face_the_square_stays_near(kind):
    shape = (300, 500, 3)
    image = np.random.default_rng(0).random(shape, np.float32) if kind == "noise" else np.full(shape, 0.6, np.float32)
    x, y, side = align_square(image, 250, 150, 200)
    assert max(abs(x - 250), abs(y - 150)) <= ALIGN_SHIFT * 200
    assert ALIGN_SIZE[0] * 200 <= side <= ALIGN_SIZE[1] * 200


def test_the_network_is_loaded_once():
    assert framing_net() is framing_net()
