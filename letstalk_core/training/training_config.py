"""The configuration of a training: a YAML file and key=value pairs on the command line; an unknown key is an error.

Defaults are the paper's recipe for the linear model (arXiv 2411.16748, Section 4.1) where it states one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from ..config import PRESETS, LetsTalkConfig
from ..errors import InputError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
DATA_KINDS = ("shards", "videos", "avatar", "images")
TASKS = ("transformer", "autoencoder")


@dataclass(frozen=True)
class LoopConfig:
    """What every training has: how many steps, how large, and what is kept."""

    seed: int = 0
    steps: int = 300_000  # optimizer steps
    learning_rate: float = 1e-4
    schedule: str = "constant"  # of the learning rate; a name of diffusers.optimization.get_scheduler
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    gradient_clip: float = 0.1  # largest norm of the gradient; 0 clips never
    gradient_clip_start: int = 20_000  # the first step that is clipped
    ema_decay: float = 0.9999
    accumulation: int = 1  # batches per optimizer step
    precision: str = "auto"  # auto: bf16 where the hardware computes in it, else fp32; weights stay fp32
    device: str = "auto"  # or cpu
    log_every: int = 50
    save_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self):
        for name in ("steps", "accumulation", "log_every", "save_every", "keep_checkpoints"):
            _need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, less than 1")
        for name in ("warmup_steps", "weight_decay", "gradient_clip", "gradient_clip_start", "seed"):
            _need(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, less than 0")
        for name in ("beta1", "beta2", "ema_decay"):
            _need(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}, not in 0..1")
        _need(self.learning_rate > 0, f"learning_rate is {self.learning_rate}, not above 0")
        _need(self.schedule in SCHEDULES, f"schedule is {self.schedule!r}, not one of {', '.join(SCHEDULES)}")
        _need(self.precision in PRECISIONS, f"precision is {self.precision!r}, not one of {', '.join(PRECISIONS)}")
        _need(self.device in ("auto", "cpu"), f"device is {self.device!r}, not auto or cpu")


@dataclass(frozen=True)
class TrainingConfig(LoopConfig):
    """A training of a transformer (with its audio projection) or of an autoencoder.

    run: the folder of everything that the training writes; the same command goes on from the last checkpoint in it.
    model: changes to the preset's fields, such as {"image_size": 256}.
    """

    run: str = "runs/letstalk"
    task: str = "transformer"  # or "autoencoder", the small DC-AE
    preset: str = ""  # linear-S ... softmax-XL; may be left out where init_from is a file of ours
    model: dict[str, typing.Any] = field(default_factory=dict)
    autoencoder: str = ""  # path; where init_from bundles one it may be left out
    audio_encoder: str = ""  # path of wav2vec2; not needed for mel features
    init_from: str = ""  # a checkpoint (ours or .ckpt of the official layout) to begin from, as far as it fits
    lora_rank: int = 0  # above 0: only low-rank adapters are trained, on init_from
    lora_alpha: float = 0.0  # 0: as lora_rank

    # data
    # what data_path is: "shards", "videos" (a folder), "avatar" (drawn people; made there), or "images" (a folder, for
    # an autoencoder)
    data: str = "shards"
    data_path: str = ""
    batch_size: int = 1  # clips per process and batch
    workers: int = 2  # processes that load data, per process
    first_clip_share: float = 0.5  # of the examples: the first clip of a video, whose memory is the portrait
    avatar_clips: int = 11_000  # drawn clips of data "avatar"
    avatar_people: int = 2500  # the same of task "autoencoder"
    image_size: int = 0  # pixels, of task "autoencoder"; 0: 128
    held_out_share: float = 0.0  # of the stretches are not trained on

    # conditions
    audio_dropout: float = 0.1  # share of clips without audio, so that guidance has an unconditional branch
    portrait_dropout: float = 0.0  # and without portrait
    frozen: str = ""  # regular expression: parameters that are not trained

    # noise-regularised memory (paper, Section 3.4); each part can be switched off
    memory_pixel_noise: bool = True  # sigma exp(N(-3, 0.5)) on portrait and memory frames before encoding
    memory_noise_steps: int = 50  # DDPM noise of t in [0, this) on memory latents; 0: none
    memory_mask: float = 0.25  # share of the memory's positions that are dropped; 0: none
    memory_mask_share: float = 1.0  # share of the clips whose memory is masked
    memory_shared_noise: float = 0.0  # our addition: most sigma of noise that is mostly alike in all memory frames

    # what the loss looks at
    first_guess_share: float = 0.0  # of the clips have t = 1 (only on the straight path of "flow" and "x0")
    mouth_weight: float = 0.0  # added to a weight of 1 where the data says what is mouth, eyes, and a blinking eye
    eye_weight: float = 0.0
    blink_weight: float = 0.0

    # speed and memory
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile of every block

    # sample videos
    sample_every: int = 0  # steps; 0: none
    sample_portrait: str = ""  # default: the example's
    sample_audio: str = ""  # held-out speech; default: the example's
    sample_seconds: float = 4.0
    sample_steps: int = 0  # of denoising; 0: the model's own

    def __post_init__(self):
        super().__post_init__()
        _need(self.task in TASKS, f"task is {self.task!r}, not one of {', '.join(TASKS)}")
        _need(self.data in DATA_KINDS, f"data is {self.data!r}, not one of {', '.join(DATA_KINDS)}")
        _need(
            self.preset in PRESETS or (not self.preset and (bool(self.init_from) or self.task == "autoencoder")),
            f"preset is {self.preset!r}, not one of {', '.join(PRESETS)}",
        )
        _need(bool(self.data_path), "data_path is missing: where is the data?")
        _need(bool(self.run), "run is missing: where shall the training be kept?")
        for name in ("batch_size", "avatar_clips", "avatar_people"):
            _need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, less than 1")
        for name in (
            "workers", "lora_rank", "lora_alpha", "memory_noise_steps", "memory_shared_noise", "sample_every",
            "sample_steps", "mouth_weight", "eye_weight", "blink_weight", "image_size",
        ):  # fmt: skip
            _need(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, less than 0")
        for name in (
            "first_clip_share", "audio_dropout", "portrait_dropout", "memory_mask", "memory_mask_share",
            "first_guess_share", "held_out_share",
        ):  # fmt: skip
            _need(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}, not in 0..1")
        _need(self.held_out_share < 1, "held_out_share is 1: nothing is left to train on")
        _need(self.memory_noise_steps <= 1000, f"memory_noise_steps is {self.memory_noise_steps}, more than 1000")
        _need(
            self.sample_every % self.save_every == 0,
            f"sample_every is {self.sample_every}, not a multiple of save_every {self.save_every}",
        )
        _need(self.sample_seconds > 0, f"sample_seconds is {self.sample_seconds}, not above 0")
        _need(not self.lora_rank or bool(self.init_from), "lora_rank needs init_from: the model that is adapted")
        _need(not (self.lora_rank and self.frozen), "frozen has no meaning with lora_rank: only adapters learn")
        if self.preset:
            self.model_config()  # says what is wrong with it
        self._check_task()

    def _check_task(self) -> None:
        """What would be ignored is refused."""
        if self.task == "autoencoder":
            _need(not self.model, "model.KEY changes a transformer; with task autoencoder set image_size")
            _need(not self.lora_rank, "lora_rank goes with task transformer only; set it to 0")
            _need(not self.gradient_checkpointing, "gradient_checkpointing goes with task transformer only")
        else:
            _need(not self.image_size, "image_size is of task autoencoder; set model.image_size")
            _need(self.data != "images", "data is images, without speech; only task autoencoder learns from them")

    def model_config(self, base: LetsTalkConfig | None = None) -> LetsTalkConfig:
        """The preset, or the configuration of init_from's file, with the changes of `model`."""
        _check_keys(self.model, LetsTalkConfig, "model.")
        changes = {name: _converted(LetsTalkConfig, name, value, "model.") for name, value in self.model.items()}
        try:
            return dataclasses.replace(base or PRESETS[self.preset], **changes)
        except ValueError as error:
            raise InputError(str(error)) from None


def _need(condition: bool, sentence: str) -> None:
    if not condition:
        raise InputError(f"training configuration: {sentence}")


def load_config(path: str | Path | None, changes: list[str] = ()) -> TrainingConfig:
    """The configuration in a YAML file, with changes "key=value" ("model.depth=4" for the model's own).

    Raises InputError for a file that is not there or not a mapping, for an unknown key (naming the nearest known one),
    and for a value of another type.
    """
    values: dict = {}
    if path is not None:
        values = _read_yaml(Path(path))
    for change in changes:
        key, separator, text = change.partition("=")
        _need(bool(separator) and bool(key), f"{change!r} is not key=value")
        owner, name = (LetsTalkConfig, key[6:]) if key.startswith("model.") else (TrainingConfig, key)
        is_text = typing.get_type_hints(owner).get(name) is str
        value = text if is_text else _parse(text, change)  # a path may have a # in it, and a run be called 2024
        if key.startswith("model."):
            _need(isinstance(values.get("model") or {}, dict), f"model is {values.get('model')!r}, not a mapping")
            values["model"] = {**(values.get("model") or {}), name: value}
        else:
            values[key] = value
    _check_keys(values, TrainingConfig, "")
    return TrainingConfig(**{name: _converted(TrainingConfig, name, value, "") for name, value in values.items()})


def _read_yaml(path: Path) -> dict:
    import yaml

    if not path.is_file():
        raise InputError(f"There is no configuration file {path}; configs/ has examples.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML ({' '.join(str(error).split())}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a mapping of keys to values.")
    return values


def _parse(text: str, change: str):
    import yaml

    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise InputError(f"training configuration: the value of {change!r} cannot be read") from None


def _check_keys(values: dict, owner: type, prefix: str) -> None:
    known = [item.name for item in dataclasses.fields(owner)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"
            raise InputError(f"training configuration: unknown key {prefix}{key}{hint}")


def _converted(owner: type, name: str, value, prefix: str):
    """The value in its field's type. YAML reads 1e-4 as text and 1 as int, which a float field takes."""
    wanted = typing.get_type_hints(owner)[name]
    if isinstance(wanted, types.GenericAlias) or typing.get_origin(wanted) is dict:
        wanted = dict
    if wanted is dict and value is None:
        return {}
    if wanted is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if wanted is str and value is None:
        return ""
    if type(value) is wanted:
        return value
    raise InputError(f"training configuration: {prefix}{name} is {value!r}, not {_named(wanted)}")


def _named(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}[kind]


# What may differ between a run and its continuation: it changes no step that is still to come, or only how fast.
FREE_TO_CHANGE = (
    "run", "steps", "device", "log_every", "save_every", "keep_checkpoints", "workers", "gradient_checkpointing",
    "compile", "sample_every", "sample_portrait", "sample_audio", "sample_seconds", "sample_steps", "batch_size",
    "accumulation", "data_path", "autoencoder", "audio_encoder", "init_from",
)  # fmt: skip


def identity(config: LoopConfig) -> dict:
    """What a continuation must have in common with the run that it continues, as JSON knows it."""
    free = set(FREE_TO_CHANGE)
    if config.schedule not in ("constant", "constant_with_warmup"):
        free.discard("steps")  # the learning rate depends on where the end is
    return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(config).items() if k not in free}))
