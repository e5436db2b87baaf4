"""Faces and their points: the geometry around two networks, and what these find on people held out."""

import math

import cv2
import numpy as np
import pytest
import torch

from letstalk_core.data.drawn.avatars import EYE_ROW, MOUTH_ROW, Avatar
from letstalk_core.data.drawn.drawn_points import drawn_points
from letstalk_core.data.drawn.motion import CONTROLS
from letstalk_core.data.people.geometry import MARGIN
from letstalk_core.data.people.portraits import load_person, people
from letstalk_core.data.people.puppet import COLUMN, Puppet
from letstalk_core.picture import face
from letstalk_core.picture.face import (
    ALIGNED,
    CROP,
    CROP_EYES,
    MIRRORED,
    POINTS,
    Face,
    apply,
    crop_matrix,
    cut,
    rotation,
    similarity,
)
from letstalk_core.picture.portrait import HIDDEN
from letstalk_core.training.bundled import face_examples, train_faces
from letstalk_core.training.bundled.face_examples import LANDMARKS


def turned(degrees, factor=1.0, shift=(0.0, 0.0)):
    return rotation(factor, math.radians(degrees), np.zeros(2), np.array(shift))


def true_points(number):
    return load_person(number).landmarks[list(LANDMARKS), :2] + MARGIN


# Geometry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees, factor, shift", [(0, 1, (0, 0)), (30, 2.5, (7, -3)), (-170, 0.1, (400, 9))])
def test_a_similarity_is_recovered(degrees, factor, shift):
    points = np.random.default_rng(0).uniform(0, 100, (3, 2))
    matrix = turned(degrees, factor, shift)
    np.testing.assert_allclose(similarity(points, apply(matrix, points)), matrix, atol=1e-9)


def test_cutting_takes_the_pixels_that_it_should():
    picture = np.random.default_rng(0).random((40, 60, 3)).astype(np.float32)
    np.testing.assert_allclose(cut(picture, turned(0, 1, (-10, -5)), 20), picture[5:25, 10:30], atol=1e-5)
    halved = cut(picture, turned(0, 0.5), 16)
    np.testing.assert_allclose(halved, cv2.resize(picture[:32, :32], (16, 16), interpolation=cv2.INTER_AREA), atol=1e-2)


def test_reduced_pictures_are_averaged():
    checks = np.indices((256, 256)).sum(0)[..., None].repeat(3, 2) % 2
    assert np.abs(cut(checks.astype(np.float32), turned(0, 1 / 16), 12) - 0.5).max() < 0.01


@pytest.mark.parametrize("shift", [(-300.0, 40.0), (5.0, -2.0), (90.0, 90.0)])
def test_a_part_of_a_large_picture_is_cut_like_the_whole(shift):
    picture = cv2.GaussianBlur(np.random.default_rng(0).random((900, 1200, 3)).astype(np.float32), (0, 0), 6)
    whole = cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    expected = cut(whole, turned(30, 1.0, shift), 40)  # also where the square lies outside the picture
    np.testing.assert_allclose(cut(picture, turned(30, 0.25, shift), 40), expected, atol=0.02)


@pytest.mark.parametrize("tilt", [-40, 0, 25])
def test_a_crop_shows_the_face_upright_in_its_middle(tilt):
    matrix = turned(tilt, 0.3, (50, 70))
    eyes_and_mouth = apply(matrix, ALIGNED)
    centre = (eyes_and_mouth[:2].mean(0) + eyes_and_mouth[2]) / 2
    inside = apply(crop_matrix(centre, 0.3 * 64, math.radians(tilt)), eyes_and_mouth)
    assert abs(inside[1, 1] - inside[0, 1]) < 1e-6 and abs(inside[1, 0] - inside[0, 0] - CROP_EYES) < 1e-6
    np.testing.assert_allclose(inside, face.crop_anchors(), atol=1e-6)
    np.testing.assert_allclose((inside[:2].mean(0) + inside[2]) / 2, (CROP / 2, CROP / 2), atol=1e-6)


def test_the_aligned_square_has_eyes_and_mouth_at_their_places():
    found = Face(true_points(65), 1.0)
    there = apply(found.to_aligned(), found.anchors)
    assert np.abs(there - ALIGNED).max() < 6  # people differ; their middle is exact
    np.testing.assert_allclose(there.mean(0), ALIGNED.mean(0), atol=1e-6)


# Examples -------------------------------------------------------------------------------------------------------------


def test_a_mirror_trades_left_and_right():
    for point, partner in enumerate(MIRRORED):
        assert MIRRORED[partner] == point
        swapped = POINTS[point].replace("left", "*").replace("right", "left")
        assert POINTS[partner] == swapped.replace("*", "right")


def test_points_of_drawings_lie_where_drawings_have_them():
    for number in range(5):
        points = drawn_points(Avatar((number, 0), 256), np.zeros(len(CONTROLS)))
        assert points.shape == (17, 2) and np.isfinite(points).all()
        found = Face(points, 1.0)
        left, right, mouth = found.anchors
        assert abs(left[1] / 256 - EYE_ROW) < 0.03 and abs(mouth[1] / 256 - MOUTH_ROW) < 0.03
        assert left[0] < 128 < right[0] and abs(left[0] + right[0] - 256) < 12


# What the networks find -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 20, -45, 45])
def test_people_held_out_are_found_however_they_are_tilted(degrees):
    errors = []
    for number in people(held_out=True)[::2]:
        picture = load_person(number).picture / np.float32(255)
        matrix = cv2.getRotationMatrix2D((160, 160), degrees, 0.8)
        faces = face.find_faces(cv2.warpAffine(picture, matrix, (320, 320), borderMode=cv2.BORDER_REPLICATE))
        truth = apply(matrix, true_points(number))
        if faces:
            errors.append(np.hypot(*(faces[0].points - truth).T).mean() / Face(truth, 1.0).eyes)
    assert len(errors) >= 9 and np.median(errors) < 0.04


def test_how_far_heads_are_turned():
    """By what is known of the people's depths, and by how far puppets of them are turned."""
    truth, found = [], []
    for number in people(held_out=True):
        landmarks = load_person(number).landmarks
        across = landmarks[263] - landmarks[33]  # from corner to corner of the eyes
        truth.append(math.degrees(math.atan2(across[2], across[0])))
        found.append(Face(true_points(number), 1.0).yaw)
    assert np.corrcoef(truth, found)[0, 1] > 0.95 and np.abs(np.subtract(truth, found)).mean() < 4
    controls = np.zeros((3, 21), np.float32)
    controls[:, COLUMN["yaw"]] = np.radians([-20, 0, 20])
    puppet = Puppet(load_person(people(held_out=True)[0]), np.random.default_rng(0))
    frames = puppet.render(controls).movedim(1, -1).numpy()
    left, ahead, right = (face.find_faces(frame)[0].yaw for frame in frames)
    assert 10 < ahead - left < 30 and 10 < right - ahead < 30


def test_hidden_mouths_are_seen():
    examples = face_examples.whole_pictures(None, held_out=True)
    images, truth = face_examples.hidden_batch(examples, np.random.default_rng(0), 200)
    with torch.no_grad():
        hidden = face.networks()[1](images)[2].sigmoid().numpy() > HIDDEN
    truth = truth.numpy() == 1
    assert hidden[truth].mean() > 0.7 and hidden[~truth].mean() < 0.03


def test_a_mirror_image_has_the_same_face_mirrored():
    person = load_person(15)
    picture, points = person.picture / np.float32(255), true_points(15)
    (left, right, mouth), width = Face(points, 1.0).anchors, person.picture.shape[1]
    centre, eyes = ((left + right) / 2 + mouth) / 2, float(np.hypot(*(right - left)))
    one = face.read_points(picture, centre, eyes, 0.1)
    other = face.read_points(picture[:, ::-1], np.array([width - centre[0], centre[1]]), eyes, -0.1)
    assert np.allclose(other.points[MIRRORED] * (-1, 1) + (width, 0), one.points, atol=0.02 * eyes)
    assert np.hypot(*(one.points - points).T).mean() < 0.05 * eyes


def test_two_people_in_a_large_picture_are_found_at_their_sizes():
    canvas = np.full((1500, 2200, 3), 0.6, np.float32)
    for number, side, (x, y) in ((5, 900, (100, 200)), (65, 200, (1500, 900))):
        canvas[y : y + side, x : x + side] = cv2.resize(load_person(number).picture / np.float32(255), (side, side))
    first, second = face.find_faces(canvas)
    assert abs(first.eyes / (64 * 900 / 320) - 1) < 0.15 and abs(second.eyes / (64 * 200 / 320) - 1) < 0.15
    assert first.points[10][0] < 1000 < second.points[10][0]


def test_nobody_is_found_where_nobody_is():
    rng = np.random.default_rng(0)
    pictures = [face_examples.clutter(256, rng) / np.float32(255) for _ in range(12)]
    pictures += [np.zeros((64, 64, 3), np.float32), np.ones((17, 900, 3), np.float32)]
    assert sum(bool(face.find_faces(picture)) for picture in pictures) <= 1


def test_training_writes_networks_that_learnt_something(tmp_path, monkeypatch):
    for name in ("FINDER_WEIGHTS", "POINTS_WEIGHTS"):
        monkeypatch.setattr(face, name, tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(train_faces, "BATCH", 8)
    train_faces.train(tmp_path, 6 / 60, None, puppets=1, drawn=2)
    finder, points = face.networks()
    face.networks.cache_clear()
    examples = face_examples.whole_pictures(None, held_out=True)
    images, targets, there = face_examples.points_batch(examples, np.random.default_rng(0), 32)
    with torch.no_grad():
        trained = train_faces.points_loss(*points(images)[:2], targets, there)
        untrained = train_faces.points_loss(*face.PointsNet().eval()(images)[:2], targets, there)
    assert trained < untrained
