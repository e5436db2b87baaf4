"""The one configuration: everything that decides what a model is, a small dataclass a part, checked where it is made.

Letters used for axes throughout the package: B batch, F frames of a clip, M memory frames, N tokens of a frame,
D width, C latent channels, h and w latent height and width, K audio tokens of a frame, A their width,
W audio window, L audio feature blocks, E their channels.

Users meet every field under one flat name: `depth`, `audio_width`, `default_steps` (see FLAT_NAMES). Files of version 1
hold these; files of version 2 and 3 hold the parts, and those before 3 have blink_condition for controls.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

VERSION = 3  # of the JSON in checkpoints; without a number it is 1
FUSIONS = ("direct", "siamese", "symbiotic")
# The objectives that each sampler goes with (diffusion/samplers.py).
SAMPLERS = {"euler": ("flow", "x0"), "dpm++": ("noise", "v"), "ddim": ("noise", "v"), "ddpm": ("noise", "v")}
OBJECTIVES = ("noise", "v", "flow", "x0")
TIMESTEPS = 1000  # of training, and the most steps of denoising
MOST_GUIDANCE = 20.0
# What a model can be asked for beside its audio, frame by frame, and in which range; all but the eyelids as a
# difference to the portrait. Angles are in degrees: yaw to the picture's right, pitch up, roll clockwise.
CONTROLS = {
    "eyelids": (0.0, 1.0), "yaw": (-25.0, 25.0), "pitch": (-16.0, 16.0), "roll": (-17.0, 17.0), "brows": (-1.0, 1.0),
    "smile": (-1.0, 1.0), "gaze_x": (-1.0, 1.0), "gaze_y": (-1.0, 1.0),
}  # fmt: skip
FPS_RANGE = (1, 240)
TYPES = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping", tuple: "a list",
}  # fmt: skip


# Each part with what its fields' flat names begin with.
PARTS = {"transformer": "", "audio": "audio_", "diffusion": "", "sampling": "default_", "departures": ""}


def samplers_for(objective: str) -> list[str]:
    """Names of the samplers that go with an objective."""
    return [name for name, objectives in SAMPLERS.items() if objective in objectives]


def _need(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(f"configuration: {sentence}")


def _need_known(unknown: list[str]) -> None:
    _need(not unknown, f"unknown keys {unknown}; the file may come from a newer version")


def _need_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _need(value in allowed, f"{name} is {value!r}, not one of {', '.join(map(repr, allowed))}")


def _need_types(part: Any, prefix: str = "") -> None:
    """Every field has the type of its default; a number with a point may be a whole one, but not NaN or infinite."""
    for field in dataclasses.fields(part):
        value, kind = getattr(part, field.name), type(field.default)
        good = type(value) is kind or (kind is float and type(value) is int)
        good = good and (kind is not float or math.isfinite(value))
        _need(good, f"{prefix}{field.name} is {value!r}, not {TYPES.get(kind, kind.__name__)}")


def _need_positive(part: Any, prefix: str, *names: str) -> None:
    for name in names:
        _need(getattr(part, name) > 0, f"{prefix}{name} is {getattr(part, name)}, not above 0")


@dataclass(frozen=True)
class TransformerConfig:
    """The diffusion transformer (paper, Section 3.2 and Figure 2); defaults are LetsTalk-S with linear attention."""

    depth: int = 12
    width: int = 384  # D
    heads: int = 6  # of softmax attention; linear attention has heads of linear_head_width channels
    linear_head_width: int = 32
    attention: str = "linear"  # "linear" (ReLU kernel, GLUMBConv) or "softmax" (GELU feed-forward)
    mlp_ratio: float = 4.0
    latent_channels: int = 32  # C
    patch_size: int = 1
    clip_frames: int = 16  # F
    memory_frames: int = 2  # M
    portrait_fusion: str = "symbiotic"  # Tables 3 and 4: one of FUSIONS
    audio_fusion: str = "direct"

    def __post_init__(self):
        _need_types(self)
        _need_positive(self, "", "depth", "width", "heads", "linear_head_width", "mlp_ratio")
        _need_positive(self, "", "latent_channels", "patch_size", "clip_frames")
        _need(self.memory_frames >= 0, f"memory_frames is {self.memory_frames}, less than 0")
        _need(round(self.width * self.mlp_ratio) >= 1, f"mlp_ratio {self.mlp_ratio} of width {self.width} is nothing")
        _need_one_of("attention", self.attention, ("linear", "softmax"))
        _need_one_of("portrait_fusion", self.portrait_fusion, FUSIONS)
        _need_one_of("audio_fusion", self.audio_fusion, FUSIONS)
        _need(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")
        _need(self.width % 4 == 0, f"width {self.width} is not a multiple of 4, which the 2-D positions need")
        _need(
            self.attention == "softmax" or self.width % self.linear_head_width == 0,
            f"width {self.width} is not a multiple of linear_head_width {self.linear_head_width}",
        )


@dataclass(frozen=True)
class AudioConfig:
    """From audio features [F,L,E] to audio tokens [F,K,A] (paper, Section 3.3)."""

    encoder: str = "wav2vec2"  # or "mel", "whisper"
    tokens: int = 32  # K
    width: int = 768  # A
    hidden: int = 512
    window: int = 5  # W, frames, odd
    blocks: int = 12  # L
    channels: int = 768  # E

    def __post_init__(self):
        _need_types(self, PARTS["audio"])
        _need_one_of("audio_encoder", self.encoder, ("wav2vec2", "mel", "whisper"))
        _need_positive(self, "audio_", "tokens", "width", "hidden", "window", "blocks", "channels")
        _need(self.window % 2 == 1, f"audio_window {self.window} is even, so it has no centre")


@dataclass(frozen=True)
class DiffusionConfig:
    """What the model is trained to answer (paper, Section 3.1; diffusion/objective.py)."""

    objective: str = "noise"  # "noise", "v", "flow" (rectified flow) or "x0" (the same flow, the model answers x0)
    learn_variance: bool = True  # only with "noise": 2C output channels

    def __post_init__(self):
        _need_types(self)
        _need_one_of("objective", self.objective, OBJECTIVES)
        _need(
            self.objective == "noise" or not self.learn_variance,
            f"learn_variance goes with objective 'noise', not with {self.objective!r}",
        )


@dataclass(frozen=True)
class SamplingDefaults:
    """How clips are sampled where nobody says otherwise."""

    steps: int = 25  # of denoising, 1 to TIMESTEPS
    sampler: str = "dpm++"
    guidance_scale: float = 1.0  # 1 is neutral

    def __post_init__(self):
        _need_types(self, PARTS["sampling"])
        _need_one_of("default_sampler", self.sampler, tuple(SAMPLERS))
        _need(1 <= self.steps <= TIMESTEPS, f"default_steps is {self.steps}, not in 1..{TIMESTEPS}")
        scale = self.guidance_scale
        _need(0 <= scale <= MOST_GUIDANCE, f"default_guidance_scale is {scale}, not in 0..{MOST_GUIDANCE:g}")


@dataclass(frozen=True)
class Departures:
    """Switches that the paper does not have, all of them here; the defaults are the paper's.

    Our own models also choose among what the other parts offer otherwise than the paper: objective "x0", mel features,
    fewer and smaller tokens, the euler sampler.
    """

    # model
    portrait_each_frame: bool = True  # False: one set of portrait tokens for the whole clip (faster)
    add_portrait: bool = False  # also add the portrait's embedding to every frame's tokens (less drift)
    audio_convolutions: bool = False  # over mel columns or whisper's frames, instead of linear layers on the window
    controls: tuple[str, ...] = ()  # of CONTROLS: one more audio token carries what is asked for in the window
    relative_latents: bool = False  # the model works on (latents - portrait latents) * relative_scale
    relative_scale: float = 1.0
    time_shift: float = 1.0  # of the times of "flow" and "x0" towards noise: at 6, t = 0.5 becomes 0.86
    # sampling
    noise_scale: float = 1.0  # of the noise that a clip starts from: below 1 less flickers
    memory_scale: float = 1.0  # of what the memory differs from the portrait: below 1 a clip's errors die out
    border_smoothing: float = 0.0  # b: a clip's frame f is moved by b^(f+1) of what the clip jumps at its start

    def __post_init__(self):
        if isinstance(self.controls, list):  # as JSON and YAML have it
            object.__setattr__(self, "controls", tuple(self.controls))
        _need_types(self)
        for name in self.controls:
            _need_one_of("controls", name, tuple(CONTROLS))
        _need(len(set(self.controls)) == len(self.controls), f"controls {list(self.controls)} names one twice")
        _need_positive(self, "", "relative_scale", "time_shift")
        _need(0 < self.noise_scale <= 1, f"noise_scale {self.noise_scale} is not above 0 and at most 1")
        _need(
            self.memory_scale == 1 or (self.relative_latents and 0 <= self.memory_scale < 1),
            f"memory_scale {self.memory_scale} is not in 0..1, or below 1 without relative_latents",
        )
        _need(0 <= self.border_smoothing < 1, f"border_smoothing {self.border_smoothing} is not in 0..1")


@dataclass(frozen=True)
class LetsTalkConfig:
    """A LetsTalk model, from the encoders that it expects to the objective that it was trained with.

    Defaults are those of the paper's linear model (arXiv 2411.16748). Raises ValueError, naming both values, where two
    fields contradict each other.
    """

    transformer: TransformerConfig = TransformerConfig()
    audio: AudioConfig = AudioConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingDefaults = SamplingDefaults()
    departures: Departures = Departures()
    autoencoder: str = "dc-ae"  # or "sd-vae", "portrait"
    latent_scale: float = 0.41407
    image_size: int = 512  # pixels, the side of the square
    fps: float = 25.0  # frames a second

    def __post_init__(self):
        _need_types(self)
        _need_one_of("autoencoder", self.autoencoder, ("dc-ae", "sd-vae", "portrait"))
        _need_positive(self, "", "latent_scale", "image_size")
        _need(FPS_RANGE[0] <= self.fps <= FPS_RANGE[1], f"fps is {self.fps}, not in {FPS_RANGE[0]}..{FPS_RANGE[1]}")
        objective, sampler, audio = self.diffusion.objective, self.sampling.sampler, self.audio
        _need(
            sampler in samplers_for(objective),
            f"default_sampler {sampler!r} does not go with objective {objective!r}; choose "
            f"{', '.join(samplers_for(objective))}",
        )
        _need(
            not self.departures.audio_convolutions
            or audio.encoder == "whisper"
            or (audio.encoder == "mel" and audio.blocks == 4 and audio.window >= 5),
            f"audio_convolutions needs whisper features, or mel features with 4 blocks in a window of 5 or more, not "
            f"{audio.encoder} with {audio.blocks} in {audio.window}",
        )

    @property
    def output_channels(self) -> int:
        """Channels of the model's output: 2C with a learned variance, else C."""
        return self.transformer.latent_channels * (2 if self.diffusion.learn_variance else 1)

    @property
    def lead_frames(self) -> int:
        """Frames before a clip that are sampled with it, so that it can be joined to those that were made (see
        video.clips.smooth_border). A memory shows the model where the clip begins; without one it is asked."""
        return int(self.departures.border_smoothing > 0 and not self.transformer.memory_frames)

    def flat(self) -> dict[str, Any]:
        """Every field's value by its flat name."""
        values = dataclasses.asdict(self)
        return {name: values[part][field] if part else values[field] for name, (part, field) in FLAT_NAMES.items()}

    def with_changes(self, **changes: Any) -> LetsTalkConfig:
        """The same model but for some fields, given by their flat names: with_changes(depth=4, audio_width=64).

        ValueError for a name that no field has, and where the result contradicts itself.
        """
        _need_known(sorted(changes.keys() - FLAT_NAMES.keys()))
        nested: dict[str, dict] = {}
        for name, value in changes.items():
            part, field = FLAT_NAMES[name]
            nested.setdefault(part, {})[field] = value
        parts = {name: dataclasses.replace(getattr(self, name), **fields) for name, fields in nested.items() if name}
        return dataclasses.replace(self, **parts, **nested.get("", {}))

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LetsTalkConfig:
        """The configuration in a file of any version up to this one's; ValueError for an unknown key or version."""
        values = json.loads(text)
        _need(isinstance(values, dict), f"{text[:40]!r} is not a mapping")
        version = values.pop("version", 1)
        if version == 1:
            return cls().with_changes(**_with_fitting_sampler(_with_controls(values)))
        _need(version in (2, VERSION), f"its version is {version!r}, and {VERSION} is the newest that is known here")
        given = {("", name): value for name, value in values.items() if name not in PARTS}
        for part in PARTS & values.keys():
            _need(isinstance(values[part], dict), f"{part} is {values[part]!r}, not a mapping")
            if version == 2 and part == "departures":
                values[part] = _with_controls(values[part])
            given |= {(part, name): value for name, value in values[part].items()}
        flat = {place: name for name, place in FLAT_NAMES.items()}
        _need_known(sorted(".".join(place).strip(".") for place in given if place not in flat))
        return cls().with_changes(**{flat[place]: value for place, value in given.items()})


def _with_controls(values: dict[str, Any]) -> dict[str, Any]:
    """Versions 1 and 2 knew of one control alone."""
    values = dict(values)
    return {**values, "controls": ["eyelids"]} if values.pop("blink_condition", False) else values


def _with_fitting_sampler(values: dict[str, Any]) -> dict[str, Any]:
    """Version 1 took any default sampler; one that cannot sample becomes the first that can."""
    fitting = samplers_for(values.get("objective", DiffusionConfig.objective))
    sampler = values.get("default_sampler", SamplingDefaults.sampler)
    return values if not fitting or sampler in fitting else {**values, "default_sampler": fitting[0]}


def _flat_name(part: str, field: str) -> str:
    return f"{PARTS[part]}{field}"


def _flat_names() -> dict[str, tuple[str, str]]:
    names = {}
    for field in dataclasses.fields(LetsTalkConfig):
        if field.name in PARTS:
            for inner in dataclasses.fields(field.default):
                names[_flat_name(field.name, inner.name)] = (field.name, inner.name)
        else:
            names[field.name] = ("", field.name)
    return names


FLAT_NAMES = _flat_names()  # flat name: (part, or "" for the whole; name in it)
