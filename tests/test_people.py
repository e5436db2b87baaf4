"""Puppets of photographs: what stays, what moves, and that the same seed gives the same people."""

import dataclasses

import numpy as np
import pytest
import torch

from letstalk_core.cli import main
from letstalk_core.data.people import looks
from letstalk_core.data.people.cast import random_puppet
from letstalk_core.data.people.fields import Box, ThinPlate, invert
from letstalk_core.data.people.geometry import IRISES, LOWER_LIP, MARGIN, NOSE, PICTURE, SIZE, UPPER_LIP, lower_partners
from letstalk_core.data.people.gestures import LIMITS, control_track, random_controls, rest_controls
from letstalk_core.data.people.mixing import mixed
from letstalk_core.data.people.pictures import POSES, PuppetPictures
from letstalk_core.data.people.portraits import load_person, people
from letstalk_core.data.people.puppet import COLUMN, CONTROLS, Puppet
from letstalk_core.picture.autoencoder import build_autoencoder
from letstalk_core.training.bundled import train_portrait_autoencoder as bundled
from letstalk_core.video.reader import probe, read_video_frames

from .tiny import GUIDED_AUTOENCODER

SMILING, SERIOUS, NOT_CUT_OUT = 101, 65, 143


def controls(**values):
    """[1,21]: all zero but these."""
    row = np.zeros((1, len(CONTROLS)), np.float32)
    for name, value in values.items():
        row[0, COLUMN[name]] = value
    return row


@pytest.fixture(scope="module")
def puppets():
    return {number: Puppet(load_person(number), np.random.default_rng(0)) for number in (SMILING, SERIOUS, NOT_CUT_OUT)}


def photograph(number):
    """The frame [3,256,256] in 0..1 that the puppet's photograph is."""
    inside = slice(MARGIN, MARGIN + SIZE)
    return torch.from_numpy(load_person(number).picture[inside, inside].copy()).permute(2, 0, 1) / 255


def psnr(a, b):
    return -10 * float((a - b).square().mean().log10())


def around(frames, place, half):
    """A square of frames [n,3,256,256] around a place (x, y)."""
    x, y = (int(round(float(value))) for value in place)
    return frames[..., y - half : y + half, x - half : x + half]


# Fields ---------------------------------------------------------------------------------------------------------------


def test_a_thin_plate_takes_the_values_that_it_is_given():
    generator = torch.Generator().manual_seed(0)
    points, values = 256 * torch.rand(40, 2, generator=generator), torch.randn(40, 3, generator=generator)
    box = Box(0, 0, 129, 129, 2.0)
    read = box.read(ThinPlate(points, values).on(box)[None], points[None, None])[0, :, 0].T
    assert (read - values).abs().mean() < 0.05  # of values about 1; a grid of 2 px lies between


def test_a_displacement_is_undone():
    box = Box(0, 0, 65, 65, 4.0)
    x, y = box.points().unbind(-1)
    displacement = torch.stack([8 * (y / 40).sin(), 6 * (x / 50).cos()])[None]
    origin = 40 + 150 * torch.rand(1, 20, 20, 2, generator=torch.Generator().manual_seed(1))
    moved = origin + box.read(displacement, origin).movedim(1, -1)
    assert (invert(displacement, box, moved) - origin).abs().max() < 0.1


# Puppets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [SMILING, SERIOUS, NOT_CUT_OUT])
def test_a_puppet_at_rest_is_its_photograph(puppets, number):
    frame, photo = puppets[number].render(controls(), natural=True)[0], photograph(number)
    assert psnr(frame, photo) > 30  # around the head a little background is made up
    assert psnr(frame[:, 80:220, 70:186], photo[:, 80:220, 70:186]) > 45


@pytest.mark.parametrize("number", [SMILING, SERIOUS])
def test_lips_meet_and_part(puppets, number):
    """The gap between the lips, as far as pixels unlike lips reach, grows with `open` and is gone at 0."""
    puppet = puppets[number]
    wide, closed = puppet.render(np.concatenate([controls(open=1), controls()]))
    lips = puppet.points[[UPPER_LIP, LOWER_LIP]].mean(0)
    dark = [
        float((around(frame, lips + torch.tensor([0.0, 4.0]), 7).mean(0) < 0.3).float().mean())
        for frame in (wide, closed)
    ]
    assert dark[0] > 0.25 and dark[1] < 0.05


def test_a_smile_closes(puppets):
    natural = puppets[SMILING].render(controls(), natural=True)
    closed = puppets[SMILING].render(controls())
    lips = puppets[SMILING].points[[UPPER_LIP, LOWER_LIP]].mean(0)
    white = lambda frames: float((around(frames, lips, 8).amin(1) > 0.55).float().mean())  # noqa: E731 (teeth)
    assert white(closed) < 0.3 * white(natural)


def test_lids_cover_the_irises(puppets):
    open_eyes, shut = puppets[SERIOUS].render(np.concatenate([controls(), controls(blink=1)]))
    for iris in IRISES:
        place = load_person(SERIOUS).landmarks[iris[0], :2]
        eye, lid = (around(frame, place - np.array([0, 2]), 3).mean() for frame in (open_eyes, shut))
        assert lid > 1.3 * eye


def test_irises_follow_the_gaze(puppets):
    left, right = puppets[SERIOUS].render(np.concatenate([controls(gaze_x=-1), controls(gaze_x=1)]))
    for iris in IRISES:
        place = load_person(SERIOUS).landmarks[iris[0], :2]

        def centre(frame, place=place):
            darkness = (0.5 - around(frame, place, 11).mean(0)[8:14]).clamp(min=0)
            return float((darkness.sum(0) * torch.arange(22)).sum() / darkness.sum())

        assert centre(right) > centre(left) + 1


@pytest.mark.parametrize("sign", [-1, 1])
def test_poses_are_undone_and_go_where_they_should(puppets, sign):
    head = puppets[SERIOUS].head
    extreme = {name: torch.tensor([0.9 * sign * limit]) for name, limit in LIMITS.items()}
    places = 80 + 96 * torch.rand(1, 16, 16, 2, generator=torch.Generator().manual_seed(2))
    assert (head.unpose(head.pose(places, extreme), extreme) - places).abs().mean() < 1.0
    nose = puppets[SERIOUS].points[NOSE].view(1, 1, 1, 2)
    still = {name: torch.zeros(1) for name in LIMITS}
    yaw, pitch = (
        (head.pose(nose, still | {name: torch.tensor([0.4 * sign])}) - nose)[0, 0, 0] for name in ("yaw", "pitch")
    )
    assert yaw[0] * sign > 15 and pitch[1] * sign < -5  # to the right, and up


def test_the_background_stays_where_the_head_moves(puppets):
    still, moved = puppets[SERIOUS].render(np.concatenate([controls(), controls(shift_x=0.3, yaw=0.3)]))
    assert torch.equal(still[:, :60, :12], moved[:, :60, :12])
    assert not torch.allclose(around(still, (128, 140), 20), around(moved, (128, 140), 20), atol=0.1)


def test_a_picture_that_is_not_cut_out_keeps_its_edges(puppets):
    pose = {name: torch.tensor([0.2 if name == "shift_x" else 0.0]) for name in LIMITS}
    places = torch.tensor([[[[128.0, 128.0], [-30.0, 128.0], [286.0, 128.0], [128.0, -30.0]]]])
    moved = (puppets[NOT_CUT_OUT].head.pose(places, pose) - places)[0, 0, :, 0]
    assert moved[0] > 9.9 and moved[1:].max() < 1


def test_frames_do_not_depend_on_their_batch(puppets):
    poses = random_controls(np.random.default_rng(5), 5)
    poses[:, COLUMN["size"]] = 0  # the largest one sets the size of windows
    together, alone = puppets[SERIOUS].render(poses), torch.cat([puppets[SERIOUS].render(pose[None]) for pose in poses])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)


def test_every_control_does_something(puppets):
    still = puppets[SERIOUS].render(controls(open=0.3))
    for name in CONTROLS:
        changed = puppets[SERIOUS].render(controls(**({"open": 0.3} | {name: 0.8})))
        assert (changed - still).abs().max() > 0.04, name


def test_glasses_do_not_bend():
    person = load_person(66)
    assert person.glasses
    rims = slice(85, 100), slice(60, 196)
    changes = []
    for glasses in (True, False):
        puppet = Puppet(dataclasses.replace(person, glasses=glasses), np.random.default_rng(0))
        raised, still = puppet.render(np.concatenate([controls(brow=1), controls()]))
        changes.append(float((raised - still)[(slice(None), *rims)].abs().mean()))
    assert changes[0] < 0.4 * changes[1]


# People ---------------------------------------------------------------------------------------------------------------


def test_nobody_is_trained_on_who_is_held_out():
    training, held_out = people(), people(held_out=True)
    assert held_out == list(range(5, 200, 10)) and sorted(training + held_out) == list(range(200))
    assert {random_puppet(seed, held_out=True)[0].picture.shape for seed in range(2)} == {(1, 4, 320, 320)}


def test_a_seed_is_a_person():
    (first, rng), (again, same) = random_puppet(3), random_puppet(3)
    assert torch.equal(first.picture, again.picture) and rng.random() == same.random()
    assert not torch.equal(first.picture, random_puppet(4)[0].picture)


def test_mixing_goes_from_one_to_the_other():
    one, other = load_person(SERIOUS), load_person(SMILING)
    same = mixed(one, other, 0.0, 0.0)
    np.testing.assert_allclose(same.landmarks, one.landmarks)
    assert psnr(torch.from_numpy(same.picture / 255.0), torch.from_numpy(one.picture / 255.0)) > 40
    whole = mixed(one, other, 1.0, 1.0)
    upper = lower_partners() == np.arange(468)
    np.testing.assert_allclose(whole.landmarks[:468][upper], other.landmarks[:468][upper], atol=1e-3)
    gap = lambda person: person.landmarks[LOWER_LIP, 1] - person.landmarks[UPPER_LIP, 1]  # noqa: E731
    assert abs(gap(whole) - gap(one)) < 1e-3  # though the other smiles
    half = mixed(one, other, 0.5, 0.0).landmarks
    np.testing.assert_allclose(half, (one.landmarks + whole.landmarks) / 2, atol=1e-3)


@pytest.mark.parametrize("make", [looks.random_look, looks.exposed, looks.painting, looks.comic])
def test_looks_are_pictures_and_repeat(make):
    picture = load_person(SERIOUS).picture
    made = [make(picture, np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4)]
    assert all(look.dtype == np.uint8 and look.shape == picture.shape for look in made)
    assert np.array_equal(made[0], made[1]) and len({look.tobytes() for look in made}) > 2
    assert picture.tobytes() == load_person(SERIOUS).picture.tobytes()


# What they do ---------------------------------------------------------------------------------------------------------


def test_motion_keeps_within_its_limits_and_speaks():
    mouth = np.random.default_rng(0).random((400, 7)).astype(np.float32)
    track = control_track(np.random.default_rng(1), mouth, head=9.0)
    assert track.shape == (400, len(CONTROLS)) and track.dtype == np.float32
    assert np.array_equal(track[:, :5], mouth[:, :5]) and np.array_equal(track[:, COLUMN["tuck"]], mouth[:, 6])
    for name, limit in LIMITS.items():
        assert 0.2 * limit < np.abs(track[:, COLUMN[name]]).max() <= limit
    assert len(rest_controls(np.random.default_rng(2))) == len(CONTROLS)


def test_pictures_are_made_once_and_read_with_their_portraits(tmp_path):
    store = PuppetPictures(tmp_path, 2, block=1)
    store.make_block(0)
    made = store.pictures[0].copy()
    store.pictures[0] = 0
    store.make()  # only the second one is missing
    assert not store.pictures[0].any() and store.pictures[1].any()
    store.pictures[0] = made
    seen = set()
    for seed in range(120):
        example = PuppetPictures(tmp_path, 2).read(0, np.random.default_rng(seed))
        assert {name: tuple(value.shape) for name, value in example.items()} == {
            "image": (3, SIZE, SIZE), "portrait": (3, SIZE, SIZE), "regions": (SIZE, SIZE),
            "controls": (2, len(CONTROLS)),
        }  # fmt: skip
        assert set(example["regions"].unique().tolist()) >= {0, 1}
        seen.add(example["image"].numpy().tobytes())
    assert len(seen) == 2 * POSES  # each of them, and in a mirror


def test_regions_lie_where_the_face_went(puppets):
    poses = np.concatenate([controls(), controls(shift_x=0.5, shift_y=0.2)])
    still, moved = puppets[SERIOUS].places(poses)
    assert (moved - still)[:, 0].min() > 20 and (moved - still)[:, 1].min() > 5
    lips = puppets[SERIOUS].points[[UPPER_LIP, LOWER_LIP]].mean(0)
    assert (still[0] - lips).abs().max() < 12 and still[1, 0] < still[0, 0] < still[2, 0]
    assert PICTURE.middle == (SIZE / 2, SIZE / 2)


def test_in_the_blackest_of_looks_a_mouth_still_has_colours():
    person = load_person(SERIOUS)
    black = dataclasses.replace(person, picture=np.zeros_like(person.picture))
    frame = Puppet(black, np.random.default_rng(0)).render(controls(open=1.0))
    assert torch.isfinite(frame).all() and frame.max() > 0.05


def test_a_puppet_speaks_on_the_command_line(tmp_path, capsys):
    bundled.save(build_autoencoder(GUIDED_AUTOENCODER), tmp_path / "guided.safetensors", {})
    for more, width in (["--person", "65"], SIZE), (["--autoencoder", str(tmp_path / "guided.safetensors")], 3 * SIZE):
        output = tmp_path / f"{width}.mp4"
        assert main(["puppet", "Papa.", *more, "--output", str(output)]) == 0
        video = read_video_frames(output)
        assert video.shape[1:] == (SIZE, width, 3) and 10 < len(video) < 60
        assert abs(probe(output).audio_samples / 16000 - len(video) / 25) < 0.08
    assert np.abs(video[:, :, :SIZE].astype(int) - video[0, :, :SIZE]).max() < 40  # the portrait stays


@pytest.mark.parametrize("arguments, sentence", [(["--person", "200"], "no person 200"), ([" "], "no text")])
def test_what_the_command_refuses(tmp_path, capsys, arguments, sentence):
    assert main(["puppet", *arguments, "--output", str(tmp_path / "out.mp4")]) == 1
    assert sentence in capsys.readouterr().err and not list(tmp_path.iterdir())
