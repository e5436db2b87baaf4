"""The configuration of a training, a dataclass for each task. config_file.py reads them from YAML and the command line.

Defaults are the paper's recipe for the linear model (arXiv 2411.16748, Section 4.1) where it states one.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field

from ..config import LetsTalkConfig
from ..errors import InputError
from ..model.transformer import GRADIENT_CHECKPOINTING
from ..presets import PRESETS

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def need(condition: bool, sentence: str) -> None:
    """Raises InputError with the sentence unless the condition holds."""
    if not condition:
        raise InputError(f"training configuration: {sentence}")


def _need_at_least(config: typing.Any, least: int, *names: str) -> None:
    for name in names:
        need(getattr(config, name) >= least, f"{name} is {getattr(config, name)}, less than {least}")


def _need_share(config: typing.Any, *names: str) -> None:
    for name in names:
        need(0 <= getattr(config, name) <= 1, f"{name} is {getattr(config, name)}, not in 0..1")


@dataclass(frozen=True)
class LoopConfig:
    """What every training loop has: how many steps, how large, and what is kept."""

    seed: int = 0
    steps: int = 300_000  # optimizer steps
    learning_rate: float = 1e-4
    schedule: str = "constant"  # the learning rate's, a name of diffusers.optimization.get_scheduler
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
        _need_at_least(self, 1, "steps", "accumulation", "log_every", "save_every", "keep_checkpoints")
        _need_at_least(self, 0, "warmup_steps", "weight_decay", "gradient_clip", "gradient_clip_start", "seed")
        for name in ("beta1", "beta2", "ema_decay"):
            need(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}, not in 0..1")
        need(self.learning_rate > 0, f"learning_rate is {self.learning_rate}, not above 0")
        need(self.schedule in SCHEDULES, f"schedule is {self.schedule!r}, not one of {', '.join(SCHEDULES)}")
        need(self.precision in PRECISIONS, f"precision is {self.precision!r}, not one of {', '.join(PRECISIONS)}")
        need(self.device in ("auto", "cpu"), f"device is {self.device!r}, not auto or cpu")


@dataclass(frozen=True)
class TrainingConfig(LoopConfig):
    """What both tasks have: where the data is, what is begun with, and where everything goes.

    run: the folder of everything that the training writes; the same command goes on from the last checkpoint in it.
    """

    data_kinds: typing.ClassVar[tuple[str, ...]] = ()  # kinds of data that the task learns from

    run: str = "runs/letstalk"
    task: str = ""  # the name in TASKS
    autoencoder: str = ""  # path; where init_from bundles one it may be left out
    init_from: str = ""  # a checkpoint (.safetensors, or .ckpt of the official layout) to begin from, as far as it fits
    frozen: str = ""  # regular expression: parameters that are not trained
    # what data_path is: "shards", "videos" (a folder), "avatar" (drawn people; made there), or "images" (a folder, for
    # an autoencoder)
    data: str = "shards"
    data_path: str = ""
    batch_size: int = 1  # examples per process and batch
    workers: int = 2  # processes that load data, per process
    held_out_share: float = 0.0  # share of the stretches that are not trained on
    compile: bool = False  # torch.compile of every block
    sample_every: int = 0  # steps; 0: no samples

    def __post_init__(self):
        super().__post_init__()
        need(self.task == type(self).task, f"task is {self.task!r}, not one of {', '.join(TASKS)}")
        need(
            self.data in self.data_kinds,
            f"data is {self.data!r}, not one of {', '.join(self.data_kinds)}, which task {self.task} learns from",
        )
        need(bool(self.data_path), "data_path is missing: where is the data?")
        need(bool(self.run), "run is missing: where shall the training be kept?")
        _need_at_least(self, 1, "batch_size")
        _need_at_least(self, 0, "workers", "sample_every")
        _need_share(self, "held_out_share")
        need(self.held_out_share < 1, "held_out_share is 1: nothing is left to train on")
        need(
            self.sample_every % self.save_every == 0,
            f"sample_every is {self.sample_every}, not a multiple of save_every {self.save_every}",
        )


@dataclass(frozen=True)
class AutoencoderTraining(TrainingConfig):
    """A training of an autoencoder: the small DC-AE, the portrait-guided one, or one to go on from."""

    data_kinds = ("shards", "videos", "avatar", "people", "images")

    task: str = "autoencoder"
    guided: bool = False  # begin with the portrait-guided autoencoder, with random weights, instead of the small DC-AE
    avatar_people: int = 2500  # drawn people of data "avatar", puppets of data "people"
    image_size: int = 0  # pixels, the side of the squares; 0: 128, and 256 for data "people"

    def __post_init__(self):
        super().__post_init__()
        _need_at_least(self, 1, "avatar_people")
        _need_at_least(self, 0, "image_size")


@dataclass(frozen=True)
class TransformerTraining(TrainingConfig):
    """A training of a transformer with its audio projection, whole or by low-rank adapters.

    model: changes to the preset, by the flat names of config.py, such as {"image_size": 256}.
    """

    data_kinds = ("shards", "videos", "avatar")

    task: str = "transformer"
    preset: str = ""  # linear-S ... softmax-XL; may be left out where init_from is a .safetensors of this package
    model: dict[str, typing.Any] = field(default_factory=dict)
    audio_encoder: str = ""  # path of wav2vec2; not needed for mel features
    lora_rank: int = 0  # above 0: only low-rank adapters are trained, on init_from
    lora_alpha: float = 0.0  # 0: as lora_rank
    avatar_clips: int = 11_000  # drawn clips of data "avatar"

    # conditions
    first_clip_share: float = 0.5  # share of examples that are a video's first clip, whose memory is the portrait
    audio_dropout: float = 0.1  # share of clips without audio, so that guidance has an unconditional branch
    portrait_dropout: float = 0.0  # share of clips without portrait

    # noise-regularised memory (paper, Section 3.4); each part can be switched off
    memory_pixel_noise: bool = True  # sigma exp(N(-3, 0.5)) on portrait and memory frames before encoding
    memory_noise_steps: int = 50  # DDPM noise of t in [0, this) on memory latents; 0: none
    memory_mask: float = 0.25  # share of the memory's positions that are dropped; 0: none
    memory_mask_share: float = 1.0  # share of the clips whose memory is masked
    memory_shared_noise: float = 0.0  # not the paper's: largest sigma of noise, mostly alike in all memory frames

    # what the loss looks at
    first_guess_share: float = 0.0  # share of clips with t = 1 (only on the straight path of "flow" and "x0")
    mouth_weight: float = 0.0  # added to a weight of 1 where the data says what is mouth, eyes, and a blinking eye
    eye_weight: float = 0.0
    blink_weight: float = 0.0
    control_dropout: float = 0.0  # share of examples whose model is told of some or none of its controls

    gradient_checkpointing: str = "none"  # what the backward pass computes again: GRADIENT_CHECKPOINTING

    # sample videos
    sample_portrait: str = ""  # default: the example's
    sample_audio: str = ""  # held-out speech; default: the example's
    sample_seconds: float = 4.0
    sample_steps: int = 0  # denoising steps; 0: the model's own

    def __post_init__(self):
        super().__post_init__()
        need(
            self.preset in PRESETS or (not self.preset and bool(self.init_from)),
            f"preset is {self.preset!r}, not one of {', '.join(PRESETS)}",
        )
        _need_at_least(self, 1, "avatar_clips")
        _need_at_least(self, 0, "lora_rank", "lora_alpha", "memory_noise_steps", "memory_shared_noise", "sample_steps")
        _need_at_least(self, 0, "mouth_weight", "eye_weight", "blink_weight")
        _need_share(self, "first_clip_share", "audio_dropout", "portrait_dropout", "control_dropout")
        _need_share(self, "memory_mask", "memory_mask_share")
        _need_share(self, "first_guess_share")
        need(self.memory_noise_steps <= 1000, f"memory_noise_steps is {self.memory_noise_steps}, more than 1000")
        way, ways = self.gradient_checkpointing, GRADIENT_CHECKPOINTING
        need(way in ways, f"gradient_checkpointing is {way!r}, not one of {', '.join(ways)}")
        need(self.sample_seconds > 0, f"sample_seconds is {self.sample_seconds}, not above 0")
        need(not self.lora_rank or bool(self.init_from), "lora_rank needs init_from: the model that is adapted")
        need(not (self.lora_rank and self.frozen), "frozen has no meaning with lora_rank: only adapters learn")
        if self.preset:
            self.model_config()  # says what is wrong with it

    def model_config(self, base: LetsTalkConfig | None = None) -> LetsTalkConfig:
        """The preset, or the configuration of init_from's file, with the changes of `model`."""
        try:
            return (base or PRESETS[self.preset]).with_changes(**self.model)
        except ValueError as error:
            raise InputError(str(error)) from None


TASKS: dict[str, type[TrainingConfig]] = {kind.task: kind for kind in (TransformerTraining, AutoencoderTraining)}

# What may differ between a run and its continuation: it changes no step that is still to come, or only how fast.
FREE_TO_CHANGE = (
    "run", "steps", "device", "log_every", "save_every", "keep_checkpoints", "workers", "gradient_checkpointing",
    "compile", "sample_every", "sample_portrait", "sample_audio", "sample_seconds", "sample_steps", "batch_size",
    "accumulation", "data_path", "autoencoder", "audio_encoder", "init_from",
)  # fmt: skip


def fixed_settings(config: LoopConfig) -> dict[str, typing.Any]:
    """The settings that a continuation must have in common with the run that it continues, as JSON knows them."""
    free = set(FREE_TO_CHANGE)
    if config.schedule not in ("constant", "constant_with_warmup"):
        free.discard("steps")  # the learning rate depends on where the end is
    return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(config).items() if k not in free}))
