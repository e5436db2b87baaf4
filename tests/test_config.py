"""The configuration: parts and flat names say the same, files of every version are read, nonsense is refused."""

import dataclasses
import json
import math

import pytest
from safetensors import safe_open

from letstalk_core.config import FLAT_NAMES, PARTS, Departures, LetsTalkConfig
from letstalk_core.pipeline import BUNDLED_MODEL
from letstalk_core.presets import PAPER, PRESETS

EVERY_PRESET = pytest.mark.parametrize("name", PRESETS)
BUNDLED = PRESETS["bundled"]  # of which nearly every field differs from its default


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        # the sampler stays that of "noise", which cannot sample a flow
        (dict(objective="flow", learn_variance=False), "default_sampler 'dpm\\+\\+' .* objective 'flow'; choose euler"),
        (dict(objective="x0", learn_variance=False), "default_sampler 'dpm\\+\\+' .* objective 'x0'; choose euler"),
        (dict(default_sampler="euler"), "default_sampler 'euler' .* objective 'noise'; choose dpm\\+\\+, ddim, ddpm"),
        (dict(default_sampler="nonsense"), "default_sampler is 'nonsense', not one of 'euler', 'dpm\\+\\+'"),
        (dict(objective="score"), "objective is 'score'"),
        (dict(objective="v"), "learn_variance goes with objective 'noise', not with 'v'"),
        (dict(default_steps=0), "default_steps is 0, not in 1..1000"),
        (dict(default_steps=1001), "default_steps is 1001, not in 1..1000"),
        (dict(default_guidance_scale=-1), "default_guidance_scale is -1"),
        (dict(default_guidance_scale=21), "default_guidance_scale is 21, not in 0..20"),
        (dict(default_guidance_scale=math.nan), "default_guidance_scale is nan"),
        (dict(depth=2.5), "depth is 2.5, not a whole number"),
        (dict(width="64"), "width is '64', not a whole number"),
        (dict(depth=True), "depth is True, not a whole number"),
        (dict(default_steps=2.5), "default_steps is 2.5, not a whole number"),
        (dict(memory_frames="2"), "memory_frames is '2', not a whole number"),
        (dict(learn_variance="yes"), "learn_variance is 'yes', not true or false"),
        (dict(default_guidance_scale="2"), "default_guidance_scale is '2', not a number"),
        (dict(mlp_ratio=1e-9), "mlp_ratio 1e-09 of width 64 is nothing"),
        (dict(mlp_ratio=0), "mlp_ratio is 0, not above 0"),
        (dict(width=30), "width 30 is not a multiple of heads 4"),
        (dict(memory_frames=-1), "memory_frames is -1"),
        (dict(relative_scale=0), "relative_scale is 0, not above 0"),
        (dict(time_shift=math.inf), "time_shift is inf"),
        (dict(fps=0), "fps is 0, not in 1..240"),
        (dict(fps=math.nan), "fps is nan"),
        (dict(latent_scale=0), "latent_scale is 0, not above 0"),
        (dict(latent_scale=math.nan), "latent_scale is nan"),
        (dict(image_size=0), "image_size is 0, not above 0"),
        (dict(audio_window=4), "audio_window 4 is even"),
        (dict(audio_window=0), "audio_window is 0"),
        (dict(audio_encoder="ears"), "audio_encoder is 'ears'"),
        (
            dict(audio_convolutions=True, audio_blocks=12),
            "audio_convolutions needs whisper features, or mel",
        ),
        (dict(autoencoder="jpeg"), "autoencoder is 'jpeg'"),
        (dict(sampler="ddim", hyperdrive=1), r"unknown keys \['hyperdrive', 'sampler'\]"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, sentence):
    with pytest.raises(ValueError, match=f"^configuration: {sentence}"):
        PRESETS["tiny"].with_changes(**changes)


@EVERY_PRESET
def test_every_field_has_one_flat_name_by_which_it_can_be_read_and_changed(name):
    config = PRESETS[name]
    places = [
        (part, field.name) for part in PARTS for field in dataclasses.fields(getattr(config, part))
    ] + [("", field.name) for field in dataclasses.fields(config) if field.name not in PARTS]  # fmt: skip
    assert len(places) == len(FLAT_NAMES) and set(places) == set(FLAT_NAMES.values())
    flat = config.flat()
    assert flat.keys() == FLAT_NAMES.keys()
    for key, (part, field) in FLAT_NAMES.items():
        assert flat[key] == getattr(getattr(config, part) if part else config, field), key
    assert config.with_changes(**flat) == config
    assert PRESETS["tiny"].with_changes(**flat) == config
    assert config.with_changes() == config


def test_a_change_changes_nothing_else():
    changed = BUNDLED.with_changes(depth=7, audio_width=48, default_steps=3, noise_scale=0.25, fps=30.0)
    assert (changed.transformer.depth, changed.audio.width, changed.sampling.steps) == (7, 48, 3)
    assert (changed.departures.noise_scale, changed.fps) == (0.25, 30.0)
    assert {**changed.flat(), "depth": 6, "audio_width": 192, "default_steps": 1, "noise_scale": 0.5, "fps": 25.0} == (
        BUNDLED.flat()
    )


@EVERY_PRESET
def test_what_is_written_is_read_back(name):
    config = PRESETS[name]
    text = config.to_json()
    assert json.loads(text)["version"] == 3
    assert LetsTalkConfig.from_json(text) == config
    assert LetsTalkConfig.from_json(json.dumps(config.flat())) == config  # as version 1 wrote it


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"version": 4}, "version is 4, and 3 is the newest"),
        ({"depth": 3, "hyperdrive": 1}, r"unknown keys \['hyperdrive'\]; the file may come from a newer version"),
        ({"version": 2, "hyperdrive": 1}, r"unknown keys \['hyperdrive'\]; the file may come from a newer version"),
        ({"version": 2, "audio": {"hyperdrive": 1}}, r"unknown keys \['audio.hyperdrive'\]"),
        ({"version": 2, "sampling": {"steps": 0}}, "default_steps is 0"),
        ({"version": 2, "sampling": 4}, "sampling is 4, not a mapping"),
        ({"version": 2, "depth": 3}, r"unknown keys \['depth'\]"),
        ({"version": "2"}, "version is '2', and 3 is the newest"),
        ([1], "not a mapping"),
    ],
)
def test_a_file_of_a_newer_version_is_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        LetsTalkConfig.from_json(json.dumps(values))


def test_a_version_1_file_whose_default_sampler_could_not_sample_gets_one_that_can():
    """The previous release took such files, and its users gave the sampler each time."""
    flow = {"objective": "flow", "learn_variance": False, "default_steps": 7}
    config = LetsTalkConfig.from_json(json.dumps({**flow, "default_sampler": "dpm++"}))
    assert (config.sampling.sampler, config.sampling.steps) == ("euler", 7)
    assert LetsTalkConfig.from_json(json.dumps(flow)) == config
    with pytest.raises(ValueError, match="default_sampler 'dpm\\+\\+'"):  # which version 2 never writes
        LetsTalkConfig.from_json(
            json.dumps({"version": 2, "diffusion": {"objective": "flow", "learn_variance": False}})
        )


@pytest.mark.skipif(not BUNDLED_MODEL.exists(), reason="no bundled model in this repository yet")
def test_the_preset_of_the_shipped_model_is_its_configuration_but_for_what_was_measured():
    with safe_open(BUNDLED_MODEL, "pt") as file:
        shipped = LetsTalkConfig.from_json(file.metadata()["letstalk_config"])
    measured = {"latent_scale": BUNDLED.latent_scale, "relative_scale": BUNDLED.departures.relative_scale}
    assert shipped != BUNDLED and shipped.with_changes(**measured) == BUNDLED


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_that_knew_of_blinks_alone(version):
    values = {"blink_condition": True, "add_portrait": True}
    text = json.dumps(values if version == 1 else {"version": 2, "departures": values})
    config = LetsTalkConfig.from_json(text)
    assert config == LetsTalkConfig().with_changes(controls=("eyelids",), add_portrait=True)
    assert LetsTalkConfig.from_json(config.to_json()) == config
    assert LetsTalkConfig.from_json(text.replace("true", "false", 1)).departures.controls == ()


@pytest.mark.parametrize(
    ("controls", "sentence"),
    [
        (["eyes"], "controls is 'eyes', not one of 'eyelids', 'yaw'"),
        (["yaw", "yaw"], "names one twice"),
        ("yaw", "not a list"),
    ],
)
def test_controls_that_are_none(controls, sentence):
    with pytest.raises(ValueError, match=sentence):
        LetsTalkConfig().with_changes(controls=controls)


def test_the_papers_models_depart_from_it_in_nothing():
    assert len(PAPER) == 8 and PAPER.items() <= PRESETS.items()
    assert {config.departures for config in PAPER.values()} == {Departures()}
    assert dataclasses.asdict(Departures()) == dict(
        portrait_each_frame=True, add_portrait=False, audio_convolutions=False, controls=(),
        relative_latents=False, relative_scale=1.0, time_shift=1.0, noise_scale=1.0, memory_scale=1.0,
        border_smoothing=0.0,
    )  # fmt: skip
