"""People who speak, what a teacher tells of them, and the transformer that learns it."""

import itertools
import json
import operator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from letstalk_core.config import CONTROLS
from letstalk_core.data.people.actors import ASKED, DrawnActor, Performance, PuppetActor, asked, perform
from letstalk_core.data.people.geometry import SIZE
from letstalk_core.data.people.pictures import POSES
from letstalk_core.data.people.puppet import COLUMN, SIDEWAYS
from letstalk_core.data.people.puppet import CONTROLS as OWN
from letstalk_core.data.people.talking import SpeakingPictures
from letstalk_core.data.source import Window
from letstalk_core.picture.autoencoder import build_autoencoder
from letstalk_core.presets import PRESETS
from letstalk_core.training.bundled import timed
from letstalk_core.training.bundled.read_ahead import ReadAhead
from letstalk_core.training.bundled.teacher import Teacher
from letstalk_core.training.bundled.told_clips import (
    MOST_CONTROL,
    MOUTH_EMPHASIS,
    PRESSED,
    SMILE_EMPHASIS,
    STRETCH,
    ToldClips,
    emphasised,
)
from letstalk_core.training.bundled.train_portrait_autoencoder import Taught
from letstalk_core.training.bundled.train_portraits import new_model, train_transformer

from .tiny import CONFIG, GUIDED_AUTOENCODER

WINDOW = Window(5, 0, 5, controls=("yaw", "eyelids"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pairs():
    """Speech whose features are the number of its frame, and which opens the mouth in turn."""
    frames = np.arange(3 * 100).reshape(3, 100)
    features = np.broadcast_to((frames % 100)[..., None, None], (3, 100, 2, 6)).astype(np.float16)
    mouths = np.zeros((3, 100, 7), np.float16)
    mouths[..., 0] = frames % 5 / 5
    return SimpleNamespace(count=3, features=features, mouths=mouths)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    return SpeakingPictures(tmp_path_factory.mktemp("speaking"), 2, block=1).make()


def teacher(seed=0):
    """One that tells something."""
    torch.manual_seed(seed)
    made = Teacher(4, SIZE // 16, 0.3 * torch.randn(9, len(OWN)), width=8)
    torch.nn.init.normal_(made.to_latents.weight, std=0.2)
    for weight in made.inner_weights():
        torch.nn.init.normal_(weight, std=0.1)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clips(pairs, speaking):
    torch.manual_seed(0)
    autoencoder = build_autoencoder(GUIDED_AUTOENCODER)
    autoencoder.latent_scale = 0.5
    return ToldClips([(speaking, 3)], pairs, autoencoder, teacher(), WINDOW, CPU)


def test_people_who_speak_are_aligned_and_some_are_drawings(speaking):
    drawing = DrawnActor(500_000)
    assert np.abs(speaking.places[0] - drawing.places(speaking.controls[0])).max() < 1e-3
    assert speaking.pictures.shape == (2, POSES + 1, 3, SIZE, SIZE) and speaking.name(1) == "speaking person 1"
    for name in ("shift_x", "shift_y", "size", "jaw", "cheeks"):  # as the portrait has it
        assert (speaking.controls[:, 1:, COLUMN[name]] == speaking.controls[:, :1, COLUMN[name]]).all()
    for name in ("open", "blink"):
        assert np.ptp(speaking.controls[:, 1:, COLUMN[name]], axis=1).min() > 0.2


def test_a_mirrored_picture_has_mirrored_controls(speaking):
    seen = set()
    for seed in range(12):
        example = speaking.read(1, np.random.default_rng(seed))
        picture, controls = example["image"].numpy(), example["controls"].numpy()
        pose = int(np.abs(np.abs(speaking.controls[1]) - np.abs(controls[0])).sum(1).argmin())
        mirrored = not np.array_equal(picture, speaking.pictures[1, pose])
        assert np.array_equal(picture[..., ::-1] if mirrored else picture, speaking.pictures[1, pose])
        expected = speaking.controls[1, pose].copy()
        expected[SIDEWAYS] *= -1 if mirrored else 1
        assert np.array_equal(controls[0], expected) and expected[SIDEWAYS].any()
        seen.add(mirrored)
    assert seen == {True, False}


def test_a_teacher_tells_nothing_at_first_and_is_kept(tmp_path):
    start, controls = torch.randn(3, 4, 16, 16), torch.randn(3, 2, len(OWN))
    assert not Teacher(4, 16).forward(start, controls).any()
    told = teacher()(start, controls)
    assert told.shape == start.shape and told.std() > 0.1
    teacher().save(tmp_path / "teacher.safetensors")
    kept = Teacher.load(tmp_path / "teacher.safetensors")(start, controls)
    assert torch.equal(kept, teacher().half().float()(start, controls))
    torch.testing.assert_close(kept, told, atol=0.02, rtol=0.02)


def test_what_is_told_is_decoded_where_it_should_be():
    torch.manual_seed(0)
    model, generator = build_autoencoder(GUIDED_AUTOENCODER).model, torch.Generator().manual_seed(0)
    both = Taught(model, teacher())
    images, portraits = torch.rand(2, 2, 3, SIZE, SIZE, generator=generator) * 2 - 1
    controls, silent = torch.randn(2, 2, len(OWN), generator=generator), torch.zeros(2, 4, SIZE // 16, SIZE // 16)
    output, latents, start, told = both(
        images, portraits, controls, torch.tensor([True, False]), silent, torch.zeros_like(silent)
    )
    assert torch.allclose(start, model.encode(portraits), atol=1e-5)
    assert torch.allclose(told, start + teacher()(start, controls), atol=1e-5)
    seen = model.look_at(portraits)
    assert torch.allclose(output[0], model.decode(told, seen)[0], atol=1e-5)
    assert torch.allclose(output[1], model.decode(latents, seen)[1], atol=1e-5)


def test_clips_are_told_of_their_speech_and_what_is_asked(clips, pairs, speaking):
    plans = clips.plans(8)
    batch = clips.batch(plans(3))
    assert {name: tuple(value.shape) for name, value in batch.items() if name not in ("seed", "name")} == {
        "clip": (8, 5, 4, 16, 16), "portrait": (8, 4, 16, 16), "memory": (8, 0, 4, 16, 16),
        "features": (8, 5, 5, 2, 6), "controls": (8, 5, 5, 2), "regions": (8, 64, 64),
    }  # fmt: skip
    again, other = clips.batch(plans(3)), clips.batch(plans(4))
    assert all(torch.equal(batch[name], again[name]) for name in ("clip", "features", "controls"))
    assert not torch.equal(batch["clip"], other["clip"]) and len(set(batch["seed"])) == 8
    frames = batch["features"][:, :, :, 0, 0]  # [clip,frame,window]
    assert torch.equal(frames[:, 1:, :-1], frames[:, :-1, 1:]) and (frames.diff(dim=1) <= 1).all()
    assert len(clips.portraits) == 6 and torch.isfinite(batch["clip"]).all()
    assert set(batch["regions"].unique().tolist()) == {0, 1, 2}


def test_a_clip_is_what_the_teacher_makes_of_its_motion(clips, pairs, monkeypatch):
    rng = np.random.default_rng(5)
    rest = clips.controls[4]
    motion, told, features = clips.plans(1)._clip(rng, rest)
    assert motion.shape == (5, len(OWN)) and told.shape == (9, 2) and features.shape == (9, 2, 6)
    spoken = features[2:7, 0, 0].astype(int)
    opened = emphasised(np.eye(1, 7) * (spoken % 5 / 5)[:, None])[:, 0]
    assert np.allclose(motion[:, 0], opened, atol=1e-3)  # the mouth of these frames
    assert np.allclose(told[2:7], asked(rest, motion)[:, [1, 0]], atol=1e-5)
    monkeypatch.setattr("letstalk_core.training.bundled.told_clips.SMILE_EMPHASIS", 1.0)
    plain, smile = clips.plans(1)._clip(np.random.default_rng(5), rest)[0], OWN.index("smile")
    assert abs(plain[:, smile] - rest[smile]).max() > 1e-3 and not np.delete(plain - motion, smile, 1).any()
    assert np.allclose(motion[:, smile] - rest[smile], SMILE_EMPHASIS * (plain[:, smile] - rest[smile]), atol=1e-5)
    portrait, clip = clips._told(np.array([4]), motion[None])
    assert torch.equal(portrait, clips.portraits[4:5].float())
    for frame, moved in zip(clip[0], motion, strict=True):
        both = torch.from_numpy(np.stack([moved, rest]))[None]
        expected = portrait[0] + 0.5 * clips.teacher(portrait / 0.5, both)[0]
        assert (frame - expected).std() < 0.03 * expected.std() and expected.std() > 0.1


def test_mouths_move_more_than_speech_has_them_and_closed_lips_are_pressed():
    mouths = np.zeros((5, 7))
    mouths[:, 0], mouths[:, 1], mouths[:, 2] = (0, 0.02, 0.3, 0.6, 1), (-1, -0.5, 0, 0.5, 1), (0, 0.25, 0.5, 0.75, 1)
    moved = emphasised(mouths)
    assert moved[0, 0] == pytest.approx(-PRESSED) and (np.diff(moved[:, 0]) > 0).all()
    assert np.allclose(moved[2:4, 0], MOUTH_EMPHASIS[0] * mouths[2:4, 0], atol=1e-3)
    assert np.allclose(moved[1:4, 1], MOUTH_EMPHASIS[1] * mouths[1:4, 1])
    assert np.abs(moved).max() == pytest.approx(MOST_CONTROL) and not moved[:, 3:].any()


def test_mouths_are_read_from_what_the_teacher_tells(clips):
    """By a linear map, from clips that it was not fitted to."""
    reader, plan = clips.mouth_reader(), clips.plans(20)(3)
    batch = clips.batch(plan)
    read = (batch["clip"] - batch["portrait"][:, None]).flatten(2) @ reader
    assert read.shape == (20, 5, 3)
    assert np.corrcoef(read[..., 0].flatten(), plan.motion[..., 0].flatten())[0, 1] > 0.5


def test_motion_begins_at_rest_and_can_be_asked_for():
    assert tuple(ASKED) == tuple(CONTROLS)
    for seed in range(5):
        performance = perform(None, np.random.default_rng(seed), np.zeros((STRETCH, 7), np.float32), photograph=False)
        first = dict(zip(ASKED, performance.asked[0], strict=True))
        assert abs(first["yaw"]) < 1e-4 and abs(first["roll"]) < 1e-4
        for name, (least, most) in CONTROLS.items():  # a portrait may look one way and the clip the other
            values = performance.asked[:, list(ASKED).index(name)]
            assert values.min() >= least - most - 0.01 and values.max() <= 2 * most + 0.01


def test_a_transformer_is_trained_for_a_given_time(clips, tmp_path, monkeypatch):
    """The window of its ear stays as it was."""
    clock = itertools.count(0, 0.1)  # as many steps on any machine
    monkeypatch.setattr(timed, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    own = dict(audio_blocks=2, audio_channels=6, audio_window=5, clip_frames=5, image_size=SIZE, memory_frames=0)
    config = CONFIG.with_changes(controls=("yaw", "eyelids"), **own)
    monkeypatch.setitem(PRESETS, "bundled", config)
    model = new_model(clips)
    some = clips.batch(clips.plans(16)(7))
    moved = (some["clip"] - some["portrait"][:, None]).std() * model.config.departures.relative_scale
    assert model.config.latent_scale == 0.5 and 0.5 < moved < 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = train_transformer(tmp_path, model, clips, 2, 2 / 60, 1e-3, CPU)
    same = {name for name, value in trained.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith("audio_projection.window.")}
    lines = [json.loads(line) for line in (tmp_path / "transformer" / "log.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["loss"]) and lines[-1]["x0_error"] > 0


@pytest.mark.parametrize("processes", [0, 1])
def test_what_is_read_ahead_is_that_of_the_step(processes):
    read = ReadAhead(operator.neg, processes)
    assert [read(step) for step in (3, 4, 5, 9, 9, 0)] == [-3, -4, -5, -9, -9, 0]


def test_controls_are_counted_from_the_portrait_but_for_the_eyelids():
    rest, motion = np.zeros(len(OWN), np.float32), np.zeros((1, len(OWN)), np.float32)
    for name, at_rest, moved in (("yaw", 0.1, 0.3), ("blink", 0.2, 0.9), ("smile", 0.5, 0.25)):
        rest[COLUMN[name]], motion[0, COLUMN[name]] = at_rest, moved
    asked = dict(zip(ASKED, Performance(None, rest, motion, natural=False).asked[0], strict=True))
    assert asked["yaw"] == pytest.approx(np.degrees(0.2)) and asked["eyelids"] == pytest.approx(0.9)
    assert asked["smile"] == pytest.approx(-0.25) and asked["roll"] == 0


@pytest.mark.parametrize("kind", [PuppetActor, DrawnActor])
def test_everything_follows_from_the_speech_and_what_is_told(kind):
    """Two clips of one person with one mouth and the same tracks are the same clip."""
    mouth = np.zeros((40, 7), np.float32)
    mouth[:, 0] = np.linspace(0, 1, 40)
    performance = perform(kind(3), np.random.default_rng(0), mouth, photograph=kind is PuppetActor)
    motion, rest = performance.motion, performance.rest
    told = {own for own, _, _ in ASKED.values()} | {"open", "width", "round", "teeth", "tongue", "tuck"}
    for name in set(OWN) - told:
        own = motion[:, COLUMN[name]]
        follows = {"widen": "brow", "squint": "smile"}.get(name)
        if follows is None:
            assert (own == rest[COLUMN[name]]).all(), name
        else:
            assert own.min() >= 0 and (own > 0).any() == (motion[:, COLUMN[follows]] > rest[COLUMN[follows]]).any()
    frames = torch.cat(list(performance.frames(slice(30, 32))))
    assert frames.shape == (2, 3, SIZE, SIZE) and frames.min() > -1e-5 and frames.max() < 1 + 1e-5
    assert performance.portrait.shape == (1, 3, SIZE, SIZE)


@pytest.mark.parametrize("kind", [PuppetActor, DrawnActor])
def test_actors_are_aligned(kind):
    """Eyes and mouth of a head that looks straight ahead lie where portraits are cut to have them."""
    from letstalk_core.picture.face import ALIGNED

    actor = kind(1)
    places = actor.places(np.zeros((1, len(OWN)), np.float32))[0]
    assert np.abs(places - ALIGNED[[2, 0, 1]]).max() < 8
