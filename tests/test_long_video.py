"""Clip by clip: the same frames whatever the way they are asked for, and a state that does not grow."""

import dataclasses

import pytest
import torch

from letstalk_core.errors import InputError
from letstalk_core.model.checkpoint import LetsTalkModel
from letstalk_core.model.latents import from_model_space, to_model_space
from letstalk_core.presets import PRESETS
from letstalk_core.video.clips import ClipSampler, SamplingSettings, smooth_border
from letstalk_core.video.controls import blink_schedule
from letstalk_core.video.memory import MemoryBank

FLOW = dict(objective="x0", learn_variance=False, default_sampler="euler", default_steps=2, controls=("eyelids",))


def make_model(**changes) -> LetsTalkModel:
    torch.manual_seed(0)
    model = LetsTalkModel(PRESETS["tiny"].with_changes(**{**FLOW, **changes}))
    for parameter in model.parameters():  # the fresh model's gates are closed: open them, so that inputs matter
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make_model(relative_latents=True, relative_scale=2.0)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, 4, 4, generator=generator), torch.randn(10, 4, 80, generator=generator)


def latents_of(model, inputs, settings=None, **options):
    sampler = ClipSampler(model, *inputs, settings or SamplingSettings(seed=7))
    return torch.cat([clip.latents for clip in sampler.clips(**options)])


def test_as_many_frames_as_features(model, inputs):
    clips = list(ClipSampler(model, *inputs, SamplingSettings()).clips())
    assert [len(clip.latents) for clip in clips] == [4, 4, 2]
    assert clips[-1].memory.frames == 10
    assert torch.isfinite(torch.cat([clip.latents for clip in clips])).all()


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(model, inputs):
    first, again, other = (latents_of(model, inputs, SamplingSettings(seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_a_clip_alone_equals_the_same_clip_in_the_whole_video(model, inputs):
    clips = list(ClipSampler(model, *inputs, SamplingSettings(seed=7)).clips())
    alone = latents_of(model, inputs, memory=clips[0].memory, frames=4)
    assert torch.equal(alone, clips[1].latents)
    first = latents_of(model, inputs, frames=4)
    assert torch.equal(first, clips[0].latents)


def test_each_clip_follows_the_memory_of_the_one_before(model, inputs):
    clips = list(ClipSampler(model, *inputs, SamplingSettings(seed=7)).clips())
    portrait = inputs[0]
    remembered = from_model_space(clips[0].memory.latents, portrait, model.config)[0]
    assert torch.allclose(remembered, clips[0].latents[-2:], atol=1e-5)
    moved = dataclasses.replace(clips[0].memory, latents=clips[0].memory.latents + 1)
    assert not torch.allclose(latents_of(model, inputs, memory=moved, frames=4), clips[1].latents, atol=1e-3)


def test_the_state_does_not_grow_with_the_video(model, inputs):
    portrait, features = inputs
    sampler = ClipSampler(model, portrait, features.repeat(5, 1, 1), SamplingSettings())
    sizes = {clip.memory.latents.shape for clip in sampler.clips()}
    assert sizes == {(1, 2, 4, 4, 4)}


def test_the_audio_of_a_clip_decides_it_and_later_audio_does_not(model, inputs):
    portrait, features = inputs
    changed = features.clone()
    changed[7:] += 3  # two frames beyond the first clip's window
    assert torch.equal(
        latents_of(model, (portrait, features), frames=4), latents_of(model, (portrait, changed), frames=4)
    )
    changed[2] += 3
    assert not torch.allclose(
        latents_of(model, (portrait, features), frames=4), latents_of(model, (portrait, changed), frames=4), atol=1e-3
    )


def test_memory_noise_and_guidance_change_the_result_repeatably(model, inputs):
    plain = latents_of(model, inputs)
    for changes in ({"memory_noise": 0.3}, {"guidance_scale": 2.0}):
        settings = SamplingSettings(seed=7, **changes)
        changed = latents_of(model, inputs, settings)
        assert not torch.allclose(changed, plain, atol=1e-3)
        assert torch.equal(changed, latents_of(model, inputs, settings))


@pytest.mark.parametrize("memory_frames", [0, 2])
def test_guidance_as_one_batch_gives_what_one_by_one_gives(inputs, memory_frames):
    """With one step the guided answer lies on the line through the unguided one (alone) and that without sound."""
    model = make_model(relative_latents=True, relative_scale=2.0, memory_frames=memory_frames)
    found = {scale: latents_of(model, inputs, SamplingSettings(seed=7, steps=1, guidance_scale=scale), frames=4)
             for scale in (0.0, 1.0, 3.0)}  # fmt: skip
    assert not torch.allclose(found[0.0], found[1.0], atol=1e-2)
    torch.testing.assert_close(found[3.0], found[0.0] + 3 * (found[1.0] - found[0.0]), atol=1e-4, rtol=1e-4)


def test_the_model_may_choose_its_guidance_scale_and_noise(model, inputs):
    own = make_model(relative_latents=True, relative_scale=2.0, default_guidance_scale=2.0)
    assert torch.equal(latents_of(own, inputs), latents_of(model, inputs, SamplingSettings(seed=7, guidance_scale=2.0)))
    assert torch.equal(latents_of(own, inputs, SamplingSettings(seed=7, guidance_scale=1.0)), latents_of(model, inputs))
    calm = make_model(relative_latents=True, relative_scale=2.0, noise_scale=0.5)
    assert not torch.allclose(latents_of(calm, inputs), latents_of(model, inputs), atol=1e-3)


def test_a_scaled_memory_is_nearer_to_the_portrait_and_the_bank_keeps_all_of_it(model, inputs):
    half = make_model(relative_latents=True, relative_scale=2.0, memory_scale=0.5)
    whole = list(ClipSampler(model, *inputs, SamplingSettings(seed=7)).clips())
    clips = list(ClipSampler(half, *inputs, SamplingSettings(seed=7)).clips())
    assert torch.equal(clips[0].latents, whole[0].latents)  # it remembers the portrait itself, which differs in nothing
    assert torch.equal(clips[0].memory.latents, whole[0].memory.latents)
    assert not torch.allclose(clips[1].latents, whole[1].latents, atol=1e-3)
    nearer = dataclasses.replace(whole[0].memory, latents=0.5 * whole[0].memory.latents)
    assert torch.equal(clips[1].latents, latents_of(model, inputs, memory=nearer, frames=4))


def test_the_memory_is_seen_scaled_and_with_noise_of_its_own_for_each_clip():
    bank = MemoryBank(torch.randn(1, 2, 4, 40, 40, generator=torch.Generator().manual_seed(0)), frames=4)
    kept = bank.latents.clone()
    assert torch.equal(bank.seen(0.5, 0, 1, 1), 0.5 * kept)
    noise = bank.seen(1, 0.3, 1, 1) - kept
    assert abs(noise.std() - 0.3) < 0.01 and abs(noise.mean()) < 0.01
    torch.testing.assert_close(bank.seen(0.5, 0.3, 1, 1), 0.5 * kept + noise)  # the noise is not scaled
    for seed, clip in ((1, 2), (2, 1)):
        assert (bank.seen(1, 0.3, seed, clip) - kept - noise).abs().mean() > 0.1
    assert torch.equal(bank.latents, kept)


def test_a_smoothed_border_jumps_less_and_leaves_the_rest_of_the_clip(inputs):
    rough = make_model(relative_latents=True, relative_scale=2.0)
    smooth = make_model(relative_latents=True, relative_scale=2.0, border_smoothing=0.25)
    before, after = latents_of(rough, inputs), latents_of(smooth, inputs)
    assert torch.equal(after[:4], before[:4])  # nothing was shown before the first clip
    jump = before[4] - before[3]
    assert torch.allclose(after[4] - after[3], 0.75 * jump, atol=1e-4)
    assert torch.allclose(after[7] - before[7], -(0.25**4) * jump, atol=1e-4)
    moved = smooth_border(before[None, 4:8], before[None, 3:4], 0.25)[0]
    assert torch.allclose(moved, after[4:8], atol=1e-4)


def test_without_a_memory_a_clip_is_moved_by_what_it_has_wrong_about_the_frame_before(inputs):
    model, portrait, answers = make_model(memory_frames=0, border_smoothing=0.25), inputs[0], []

    def answer(x, t, conditions, memory):
        """That of a model that is right about movements and off by something else in each clip."""
        assert memory is None and x.shape[1] == 1 + 4 and len(conditions.audio.attended[0][0][0]) == 5
        frames = 4.0 * len(answers) + torch.arange(-1, 4)  # of the video
        answers.append(portrait[:, None] + 0.5 * frames[:, None, None, None] + 3.0 * (-1) ** len(answers))
        return answers[-1]

    settings = SamplingSettings(seed=7, steps=1)
    made = torch.cat([clip.latents for clip in ClipSampler(model, *inputs, settings, denoiser=answer).clips()])
    last = answers[0][0, 0]  # nothing was shown before the first clip, and it has nothing wrong
    for own, clip in zip(answers, made.split(4), strict=True):
        wrong = last - own[0, 0]
        for frame, found in enumerate(clip):
            torch.testing.assert_close(found, own[0, 1 + frame] + 0.25 ** (frame + 1) * wrong)
        last = clip[-1]
    # What moves goes on moving over the border: only a quarter of the clip's own error is left of the jump.
    jump = made[4] - made[3] - 0.5
    torch.testing.assert_close(jump, 0.75 * (answers[1][0, 0] - made[3]), atol=1e-4, rtol=1e-4)


def test_models_without_memory_or_relative_latents_work_too(inputs):
    for changes in (
        {"memory_frames": 0},
        {"relative_latents": False},
        {"objective": "noise", "default_sampler": "ddpm"},
    ):
        result = latents_of(make_model(**changes), inputs)
        assert result.shape == (10, 4, 4, 4) and torch.isfinite(result).all()


def test_model_space_is_undone():
    config = PRESETS["tiny"].with_changes(relative_latents=True, relative_scale=3.0)
    latents, portrait = torch.randn(2, 5, 4, 8, 8), torch.randn(2, 4, 8, 8)
    there = to_model_space(latents, portrait, config)
    assert torch.allclose(from_model_space(there, portrait, config), latents, atol=1e-5)
    assert MemoryBank.of_portrait(portrait[:1], config).latents.abs().max() == 0


def test_blinks_do_not_depend_on_where_one_starts_and_come_at_a_human_rate():
    whole = blink_schedule(5, 0, 25 * 300, 25)
    for start in (0, 1, 90, 93, 94, 95, 1000, 3333):
        assert torch.equal(blink_schedule(5, start, 40, 25), whole[start : start + 40])
    blinks = int(((whole[1:] > 0.5) & (whole[:-1] <= 0.5)).sum()) / 5
    assert 14 <= blinks <= 18
    assert not torch.equal(whole, blink_schedule(6, 0, 25 * 300, 25))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"guidance_scale": float("nan")}, "guidance scale"),
        ({"memory_noise": -1}, "memory noise"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_settings_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        SamplingSettings(**options)


def test_frames_beyond_the_recording_and_memory_inside_a_clip_are_refused(model, inputs):
    with pytest.raises(InputError, match="recording has 10"):
        latents_of(model, inputs, frames=11)
    with pytest.raises(InputError, match="middle of a clip"):
        latents_of(model, inputs, memory=MemoryBank(torch.zeros(1, 2, 4, 4, 4), frames=3))
    with pytest.raises(ValueError, match="choose euler"):
        latents_of(model, inputs, SamplingSettings(sampler="ddim"))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(noise_scale=0.0), "noise_scale 0.0"),
        (dict(border_smoothing=1.0), "border_smoothing 1.0"),
        (dict(memory_scale=0.5), "memory_scale 0.5"),
    ],
)
def test_configurations_that_cannot_be_sampled_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        PRESETS["tiny"].with_changes(**changes)
