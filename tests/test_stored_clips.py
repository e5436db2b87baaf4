"""Examples that are cut from clips in arrays."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from letstalk_core.data.source import Window
from letstalk_core.data.stored_clips import CONTEXT, StoredClipSource
from letstalk_core.errors import InputError

LENGTH = 7
WINDOW = Window(4, 2, 5, controls=("yaw", "eyelids"))


@pytest.fixture
def store():
    """Three clips whose features are the numbers of their frames."""
    around = LENGTH + 2 * CONTEXT
    features = np.broadcast_to(np.arange(around)[None, :, None, None], (3, around, 2, 6)).astype(np.float16)
    return SimpleNamespace(
        count=3, length=LENGTH, features=features, regions=np.zeros((3, 64, 64), np.uint8),
        starts=np.array([True, False, True]), asked=lambda index, part, names: np.zeros((around, len(names)))[part],
    )  # fmt: skip


def latents():
    return np.random.default_rng(0).random((3, LENGTH, 4, 8, 8)), np.zeros((3, 4, 8, 8))


def test_examples(store):
    source = StoredClipSource(store, WINDOW, latents())
    assert len(source) == 3 and source.name(1) == "drawn clip 1"
    for seed in range(20):
        example = source.read(seed % 3, np.random.default_rng(seed))
        assert {name: tuple(value.shape) for name, value in example.items()} == {
            "clip": (4, 4, 8, 8), "memory": (2, 4, 8, 8), "portrait": (4, 8, 8), "features": (4, 5, 2, 6),
            "controls": (4, 5, 2), "regions": (64, 64),
        }  # fmt: skip
        frames = example["features"][:, 2, 0, 0]
        assert (frames.diff() == 1).all() and torch.equal(example["features"][1:, 1], example["features"][:-1, 2])


def test_what_does_not_fit_is_refused(store):
    with pytest.raises(InputError, match="drawn clips have 7 frames, fewer than 2 of memory and 16"):
        StoredClipSource(store, Window(16, 2, 5), latents())
    with pytest.raises(InputError, match="audio_window is 11; drawn clips know 9 at most"):
        StoredClipSource(store, Window(4, 2, 11), latents())
