"""The next clip is made while this one is used: the same clips, one waiting at most, nothing left running."""

import contextlib
import contextvars
import threading
from types import SimpleNamespace

import pytest
import torch

from letstalk_core.model.checkpoint import LetsTalkModel, load_checkpoint
from letstalk_core.video.ahead import ahead
from letstalk_core.video.clips import Clip, ClipSampler, SamplingSettings
from letstalk_core.video.memory import MemoryBank

from .tiny import CONFIG, write_tiny_checkpoint

CPU, CARD = torch.device("cpu"), torch.device("cuda")


def test_one_is_made_while_another_is_used_and_no_more():
    begun = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(begun):
            event.set()
            yield number

    taken = ahead(items(), CPU)
    assert next(taken) == 0
    assert begun[1].wait(10) and not begun[2].is_set()  # nobody has asked for the next one yet
    assert list(taken) == [1, 2, 3]


def test_clips_are_those_that_are_made_one_after_the_other(tmp_path):
    model = load_checkpoint(write_tiny_checkpoint(tmp_path / "tiny.safetensors", memory_frames=2))
    config = model.config
    features = torch.randn(11, config.audio.blocks, config.audio.channels)  # the last clip is not whole
    sampler = ClipSampler(model, torch.randn(1, config.transformer.latent_channels, 4, 4), features, SamplingSettings())
    plain, made = list(sampler.clips()), list(ahead(sampler.clips(), CPU))
    assert [clip.index for clip in made] == [clip.index for clip in plain] and len(made) > 1
    for one, other in zip(made, plain, strict=True):
        assert torch.equal(one.latents, other.latents) and torch.equal(one.memory.latents, other.memory.latents)


def test_what_goes_wrong_is_raised_in_its_place():
    def items():
        yield "good"
        raise InterruptedError("cancelled")

    taken = ahead(items(), CPU)
    assert next(taken) == "good"
    with pytest.raises(InterruptedError, match="cancelled"):
        next(taken)


def test_whoever_leaves_early_leaves_nothing_running():
    before, release, ended = threading.active_count(), threading.Event(), []

    def items():
        yield 0
        release.wait(10)
        ended.append(True)
        yield 1

    taken = ahead(items(), CPU)
    assert next(taken) == 0
    threading.Timer(0.1, release.set).start()
    taken.close()
    assert ended == [True] and threading.active_count() <= before + 1  # the timer may still end


def test_the_thread_knows_what_its_caller_knows():
    told = contextvars.ContextVar("told", default="nothing")
    told.set("node 7")
    assert list(ahead((told.get() for _ in range(2)), CPU)) == ["node 7", "node 7"]


class FakeCard:
    """The parts of torch.cuda that are used, which write down what happens."""

    def __init__(self, monkeypatch):
        self.happened = []
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream("own"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.stream("user's"))
        monkeypatch.setattr(torch.cuda, "stream", self.inside)

    def stream(self, name):
        return SimpleNamespace(
            wait_stream=lambda other: self.happened.append(f"{name} waits"),
            synchronize=lambda: self.happened.append(f"{name} done"),
        )

    @contextlib.contextmanager
    def inside(self, stream):
        self.happened.append("in")
        yield
        self.happened.append("out")


def test_a_card_has_clips_whole_before_they_are_used_and_their_memory_after(monkeypatch):
    card = FakeCard(monkeypatch)
    taken = ahead(iter("a"), CARD)
    assert next(taken) == "a"
    assert card.happened[:4] == ["own waits", "in", "own done", "out"]
    assert list(taken) == []
    assert card.happened[4:].count("user's done") == 1 and card.happened[4:].count("own done") == 1


@pytest.mark.parametrize("alone", [True, False])
def test_chunks_of_a_card_are_decoded_while_the_next_clip_is_sampled(alone, monkeypatch):
    """But not where several videos are one batch: their clips come from different streams."""
    card = FakeCard(monkeypatch)
    config = CONFIG.with_changes(memory_frames=2)
    model, length = LetsTalkModel(config).eval(), config.transformer.clip_frames
    features = torch.zeros(2 * length, config.audio.blocks, config.audio.channels)
    sampler = ClipSampler(
        model, torch.zeros(1, config.transformer.latent_channels, 4, 4), features, SamplingSettings(),
        denoiser=None if alone else lambda *_: None,
    )  # fmt: skip
    memory = MemoryBank(torch.zeros(1, 2, config.transformer.latent_channels, 4, 4))
    clips = [
        Clip(number, torch.full((length, 3, 4, 4), 0.5 * number), MemoryBank(memory.latents, length * (number + 1)))
        for number in (0, 1)
    ]
    sampler.portrait = SimpleNamespace(device=CARD)
    sampler.clips = lambda memory, frames: iter(clips)
    chunks = list(sampler.chunks(lambda latents: latents, memory=memory))
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks]), torch.cat([clip.latents for clip in clips]))
    assert ("own waits" in card.happened) == alone
