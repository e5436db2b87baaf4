"""Puppets that speak, kept as latents: what is in a clip, and the examples that are cut from it."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from letstalk_core.config import CONTROLS
from letstalk_core.data.people.actors import ASKED, DrawnActor, Performance, PuppetActor, perform
from letstalk_core.data.people.geometry import SIZE
from letstalk_core.data.people.puppet import COLUMN
from letstalk_core.data.people.puppet import CONTROLS as OWN
from letstalk_core.data.people.talking import DRAWN_EVERY, PuppetClips
from letstalk_core.data.source import Window
from letstalk_core.data.stored_clips import CONTEXT, StoredClipSource
from letstalk_core.errors import InputError
from letstalk_core.model.checkpoint import LetsTalkModel
from letstalk_core.picture.autoencoder import build_autoencoder
from letstalk_core.training.bundled import timed
from letstalk_core.training.bundled.train_portrait_autoencoder import save
from letstalk_core.training.bundled.train_portraits import Batches, train_transformer, turns

from .tiny import CONFIG, GUIDED_AUTOENCODER

LENGTH = 7
WINDOW = Window(4, 2, 5, controls=("yaw", "eyelids"))
AROUND = slice(0, LENGTH + 2 * CONTEXT)


@pytest.fixture(scope="module")
def pairs():
    """Speech whose features are the number of its frame, and which opens the mouth in turn."""
    frames = np.arange(3 * 100).reshape(3, 100)
    features = np.broadcast_to((frames % 100)[..., None, None], (3, 100, 2, 6)).astype(np.float16)
    mouths = np.zeros((3, 100, 7), np.float16)
    mouths[..., 0] = frames % 5 / 5
    return SimpleNamespace(count=3, features=features, mouths=mouths)


@pytest.fixture(scope="module")
def clips(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    torch.manual_seed(0)
    save(build_autoencoder(GUIDED_AUTOENCODER), folder / "autoencoder.safetensors", {})
    return PuppetClips(folder / "clips", 3, LENGTH, folder / "autoencoder.safetensors", pairs, block=1).make()


def test_clips_are_made_once(clips, pairs):
    before, first = clips.latents[1].copy(), clips.latents[0].copy()
    clips.latents[0] = 0
    again = PuppetClips(clips.folder, 3, LENGTH, clips.autoencoder, pairs, block=1).make()
    assert not again.latents[0].any() and np.array_equal(again.latents[1], before)
    next(clips.folder.glob("*-0.done")).unlink()
    assert np.array_equal(again.make().latents[0], first)


def test_another_autoencoder_has_latents_of_its_own(clips, pairs, tmp_path):
    torch.manual_seed(1)
    save(build_autoencoder(GUIDED_AUTOENCODER), tmp_path / "other.safetensors", {})
    before = np.array(clips.latents)
    other = PuppetClips(clips.folder, 3, LENGTH, tmp_path / "other.safetensors", pairs, block=1).make()
    assert other.latents.any(axis=(1, 2, 3, 4)).all() and not np.array_equal(other.latents, before)
    assert np.array_equal(clips.latents, before)


def test_a_transformer_is_trained_for_a_given_time(clips, tmp_path, monkeypatch):
    """The window of its ear stays as it was."""
    clock = itertools.count(0, 0.1)  # as many steps on any machine
    monkeypatch.setattr(timed, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    own = dict(audio_blocks=2, audio_channels=6, audio_window=5, clip_frames=5, image_size=SIZE, latent_scale=1.0)
    model = LetsTalkModel(CONFIG.with_changes(controls=("eyelids", "yaw"), relative_scale=2.0, **own))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    device = torch.device("cpu")
    batches = Batches(turns(clips, clips, model.config, 2), device)
    assert [tuple(batches(step)["clip"].shape[:2]) for step in (2, 3, 4)] == [(2, 4), (2, 5), (2, 4)]
    first, again, other = (batches(step)["clip"] for step in (8, 8, 9))
    assert torch.equal(first, again) and not torch.equal(first, other)
    trained = train_transformer(tmp_path, model, batches, 2 / 60, 1e-3, device)
    same = {name for name, value in trained.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith("audio_projection.window.")}
    lines = [json.loads(line) for line in (tmp_path / "transformer" / "log.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["loss"]) and lines[-1]["x0_error"] > 0


def test_people_of_two_folders_can_differ(clips, pairs, tmp_path):
    others = PuppetClips(tmp_path / "others", 2, LENGTH, clips.autoencoder, pairs, first=5).make()
    same = PuppetClips(tmp_path / "same", 2, LENGTH, clips.autoencoder, pairs, first=0).make()
    assert np.array_equal(same.latents[:], clips.latents[:2]) and not np.array_equal(others.latents[:], same.latents[:])


def test_a_clip_has_its_speech_and_its_controls(clips):
    assert set(ASKED) == set(CONTROLS)
    for i in range(3):
        frames = clips.features[i, :, 0, 0]
        assert (np.diff(frames) >= 0).all()
        assert (np.diff(frames)[CONTEXT:-CONTEXT] == 1).all()  # one after the other, but at the ends of the speech
        yaw = clips.asked(i, AROUND, ("yaw", "eyelids"))[:, 0]
        assert clips.starts[i] == (abs(yaw[CONTEXT]) < 1e-4)  # the head begins where the portrait has it
        assert set(np.unique(clips.regions[i])) == {0, 1, 2} and clips.regions.shape[1:] == (SIZE // 4, SIZE // 4)
        assert np.abs(clips.latents[i, 1:] - clips.latents[i, 0]).max() > 0
        for name, (least, most) in CONTROLS.items():  # a portrait may look one way and the clip the other
            values = clips.asked(i, AROUND, (name,))
            assert values.min() >= least - most - 0.01 and values.max() <= 2 * most + 0.01


def test_controls_are_counted_from_the_portrait_but_for_the_eyelids():
    rest, motion = np.zeros(len(OWN), np.float32), np.zeros((1, len(OWN)), np.float32)
    for name, at_rest, moved in (("yaw", 0.1, 0.3), ("blink", 0.2, 0.9), ("smile", 0.5, 0.25)):
        rest[COLUMN[name]], motion[0, COLUMN[name]] = at_rest, moved
    asked = dict(zip(ASKED, Performance(None, rest, motion, natural=False).asked[0], strict=True))
    assert asked["yaw"] == pytest.approx(np.degrees(0.2)) and asked["eyelids"] == pytest.approx(0.9)
    assert asked["smile"] == pytest.approx(-0.25) and asked["roll"] == 0


def test_examples(clips):
    source = StoredClipSource(clips, WINDOW, clips.encoded, "puppet")
    assert len(source) == 3 and source.name(1) == "puppet clip 1"
    latent = clips.latents.shape[2:]
    for seed in range(20):
        example = source.read(seed % 3, np.random.default_rng(seed))
        assert {name: tuple(value.shape) for name, value in example.items()} == {
            "clip": (4, *latent), "memory": (2, *latent), "portrait": latent, "features": (4, 5, 2, 6),
            "controls": (4, 5, 2), "regions": (SIZE // 4, SIZE // 4),
        }  # fmt: skip
        frames = example["features"][:, 2, 0, 0]
        assert (frames.diff() <= 1).all() and torch.equal(example["features"][1:, 1], example["features"][:-1, 2])


def test_what_does_not_fit_is_refused(clips, pairs):
    with pytest.raises(InputError, match="puppet clips have 7 frames, fewer than 2 of memory and 16"):
        StoredClipSource(clips, Window(16, 2, 5), clips.encoded, "puppet")
    with pytest.raises(InputError, match="only latents are kept; set memory_pixel_noise=false"):
        StoredClipSource(clips, Window(4, 2, 5, pixel_conditions=True), clips.encoded).read(0, np.random.default_rng(0))
    with pytest.raises(InputError, match="delete its folder"):
        PuppetClips(clips.folder, 4, LENGTH, clips.autoencoder, pairs)


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


def test_some_clips_are_drawings(clips):
    assert DRAWN_EVERY == 5  # clip 0 of the three is one
    assert not np.array_equal(
        PuppetActor(0).render(np.zeros((1, len(OWN)), np.float32)),
        DrawnActor(0).render(np.zeros((1, len(OWN)), np.float32)),
    )
