"""The nine combinations of fusion schemes, on random weights."""

import itertools

import pytest
import torch

from letstalk_core.config import FUSIONS
from letstalk_core.model.checkpoint import LetsTalkModel, load_checkpoint, save_checkpoint
from letstalk_core.model.transformer import GRADIENT_CHECKPOINTING
from letstalk_core.video.clips import ClipSampler, SamplingSettings

from .test_transformer import LINEAR, SOFTMAX, inputs, random_model

COMBINATIONS = [
    pytest.param(
        base.with_changes(portrait_fusion=portrait, audio_fusion=audio, portrait_each_frame=each),
        id=f"{name}-{portrait}-{audio}-{each}",
    )
    for name, base in (("linear", LINEAR), ("softmax", SOFTMAX))
    for portrait, audio in itertools.product(FUSIONS, FUSIONS)
    for each in ((True, False) if portrait == "symbiotic" else (True,))
]


@pytest.mark.parametrize("config", COMBINATIONS)
def test_both_conditions_reach_the_frames_and_every_parameter_learns(config):
    given, model = inputs(config), random_model(config)
    latents, timesteps = given.pop("latents"), given.pop("timesteps")
    output = model(latents, timesteps, **given)
    assert output.shape == (2, 3, config.output_channels, 4, 6) and output.isfinite().all()
    output.square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        for name in ("portrait", "audio_tokens"):
            changed = model(latents, timesteps, **{**given, name: given[name] + 1})
            assert (changed - output).abs().amax((1, 2, 3, 4)).min() > 1e-5, name


@pytest.mark.parametrize("config", COMBINATIONS)
def test_conditions_prepared_once_stand_for_portrait_and_audio_at_every_timestep(config):
    model, given = random_model(config), inputs(config)
    memory = given["memory"]
    with torch.no_grad():
        once = model.prepare(given["portrait"], given["audio_tokens"])
        for timesteps in (given.pop("timesteps"), torch.tensor([10, 20])):
            expected = model(timesteps=timesteps, **given)
            found = model(given["latents"], timesteps, memory=memory, conditions=once)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("config", COMBINATIONS)
@pytest.mark.parametrize(("frames", "dtype"), [(3, torch.float32), (1, torch.float32), (3, torch.bfloat16)])
def test_the_part_of_a_batch_without_audio_gets_what_zeros_give(config, frames, dtype):
    """To the bit: cross-attention to zeros answers with a constant, and is left out."""
    model, given = random_model(config).to(dtype), inputs(config, frames)
    portrait, audio = given.pop("portrait"), given.pop("audio_tokens")[:1]
    with torch.no_grad():
        zeros = torch.cat([audio, torch.zeros_like(audio)])
        expected, found = (model(**given, conditions=model.prepare(portrait, tokens)) for tokens in (zeros, audio))
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])  # products of fewer rows may round otherwise


@pytest.mark.parametrize("config", [LINEAR, SOFTMAX])
@pytest.mark.parametrize("scheme", FUSIONS)
def test_audio_acts_on_its_own_frame_alone_where_only_space_is_mixed(config, scheme):
    """But for a twin, whose temporal attention sees the whole clip."""
    config = config.with_changes(audio_fusion=scheme, memory_frames=0)
    model, given = random_model(config), inputs(config, memory=0)
    for block in model.blocks:
        torch.nn.init.zeros_(block.temporal.mix.weight)
        torch.nn.init.zeros_(block.temporal.mix.bias)
    with torch.no_grad():
        before = model(**given)
        given["audio_tokens"][:, 1] += 1
        changed = (model(**given) - before).abs().amax((0, 2, 3, 4)) > 1e-6
    assert changed.tolist() == ([True] * 3 if scheme == "siamese" else [False, True, False])


@pytest.mark.parametrize("portrait", FUSIONS)
@pytest.mark.parametrize("audio", FUSIONS)
def test_a_twin_runs_once_per_clip_whatever_the_steps(portrait, audio):
    config = LINEAR.with_changes(
        portrait_fusion=portrait, audio_fusion=audio, objective="flow", learn_variance=False,
        default_sampler="euler", clip_frames=4,
    )  # fmt: skip
    model, calls = LetsTalkModel(config).eval(), {"portrait": 0, "audio": 0}

    def count(name):
        def hook(module, arguments, result):
            calls[name] += 1

        return hook

    for name, fusion in model.transformer.fusions.items():
        if hasattr(fusion, "twin"):
            fusion.twin.register_forward_hook(count(name))
    features = torch.randn(8, config.audio.blocks, config.audio.channels)
    clips = list(ClipSampler(model, torch.randn(1, 4, 4, 4), features, SamplingSettings(steps=5)).clips())
    assert len(clips) == 2
    assert calls == {"portrait": 2 * (portrait == "siamese"), "audio": 2 * (audio == "siamese")}


@pytest.mark.parametrize("config", COMBINATIONS)
def test_gradient_checkpointing_changes_no_gradient(config):
    grads = {}
    for way in GRADIENT_CHECKPOINTING:
        model, given = random_model(config), inputs(config)
        model.gradient_checkpointing = way
        model(**given).square().mean().backward()
        grads[way] = [parameter.grad for parameter in model.parameters()]
    for way in ("selective", "full"):
        for again, plain in zip(grads[way], grads["none"], strict=True):
            torch.testing.assert_close(again, plain)


def test_an_unknown_gradient_checkpointing_is_refused():
    model = random_model(LINEAR)
    with pytest.raises(ValueError, match="gradient_checkpointing is True, not one of none, selective, full"):
        model.gradient_checkpointing = True
    assert model.gradient_checkpointing == "none"


@pytest.mark.parametrize("config", COMBINATIONS[:10:3])
def test_a_checkpoint_keeps_its_schemes(config, tmp_path):
    torch.manual_seed(0)
    model = LetsTalkModel(config)
    save_checkpoint(tmp_path / "model.safetensors", model)
    loaded = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded.config == config
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])


def test_portrait_or_conditions_not_both_and_not_neither():
    model, given = random_model(LINEAR), inputs(LINEAR)
    latents, timesteps = given["latents"], given["timesteps"]
    with pytest.raises(ValueError, match="give the portrait"):
        model(latents, timesteps)
    with torch.no_grad():
        conditions = model.prepare(given["portrait"], given["audio_tokens"])
    with pytest.raises(ValueError, match="give the portrait"):
        model(latents, timesteps, portrait=given["portrait"], conditions=conditions)
    for name in ("portrait", "audio_tokens"):
        with pytest.raises(ValueError, match="give the portrait and audio_tokens"):
            model(latents, timesteps, **{name: given[name]})
