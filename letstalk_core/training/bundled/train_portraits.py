"""The model for photographs from nothing, for a given time: speech, ear, autoencoder, teacher, transformer, one file.

Needs torch, numpy, opencv, safetensors, einops and tqdm alone where speech was prepared beforehand
(data/speech/packed.py). Every part goes on where it was stopped.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...autoencoders import find_autoencoder
from ...data.people.pictures import POSES, PeoplePictures, PuppetPictures
from ...data.people.talking import SpeakingPictures
from ...data.source import Window
from ...data.speech.pairs import PackedPairs, SpokenPairs
from ...errors import InputError
from ...model.checkpoint import BundledAutoencoder, LetsTalkModel, load_checkpoint, save_checkpoint
from ...precision import native_autocast
from ...presets import PRESETS
from ..build import freeze
from ..training_config import TransformerTraining
from ..transformer_loss import Denoiser, TransformerLoss
from . import train_portrait_autoencoder
from .read_ahead import ReadAhead
from .teacher import Teacher
from .timed import TimedRun, prepare_arithmetic
from .told_clips import ToldClips
from .train_ear import train_ear
from .train_portrait_autoencoder import PUPPETS, SPEAKING, UNSEEN_STEP

PAIRS = 8000
WORTH_COMPILING = 10  # minutes
PLANNERS = 6  # processes that plan clips for a GPU
SHARES = {"ear": 0.15, "autoencoder": 0.45, "transformer": 0.4}  # of the minutes
SHARES_ON = {"ear": 0.2, "transformer": 0.8}  # of the minutes where a model learns on
PEAK = 2e-3  # largest learning rate; half as much where it goes on from a trained one
NOTES = {
    "title": "LetsTalk portraits 256",
    "licence": "Apache-2.0",
    "trained_on": "puppets of photographs of people who do not exist, and synthetic speech of this repository",
}


def loss_settings(work: Path) -> TransformerTraining:
    """What is seen, what is added to it and what counts in the transformer's loss."""
    return TransformerTraining(
        run=str(work), preset="bundled", data="avatar", data_path=str(work),
        frozen=r"^audio_projection\.window\.",  # it heard far more speech than the clips hold
        memory_pixel_noise=False, mouth_weight=8.0, eye_weight=3.0, blink_weight=3.0, control_dropout=0.2,
        audio_dropout=0.05,
        first_guess_share=0.9,  # where nothing is seen and the conditions alone decide: by default the only step
    )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What the model for photographs is trained of, and where.

    minutes: of all trainings; making what they learn from takes more. speech: a packed file, or None to speak it here.
    start: a model whose ear and transformer learn on, with the autoencoder and teacher in the folder, else with its own
    autoencoder and the teacher beside it. pairs, puppets, speaking: how many are made. batch: clips of a step, None for
    what suits the device.
    """

    work: Path
    minutes: float
    speech: Path | None = None
    start: Path | None = None
    pairs: int = PAIRS
    puppets: int = PUPPETS
    speaking: int = SPEAKING
    batch: int | None = None
    device: torch.device = torch.device("cpu")

    def spoken(self) -> SpokenPairs | PackedPairs:
        """Speech, its features and mouths."""
        folder, encoder = self.work / "audio" / "pairs", PRESETS["bundled"].audio.encoder
        if self.speech is None:
            pairs = SpokenPairs(folder, self.pairs, encoder, self.work / "audio" / "utterances")
        else:
            pairs = PackedPairs(folder, self.speech, encoder)
        return pairs.make(os.cpu_count() or 1)

    def portraits(self) -> list[tuple[PeoplePictures, int]]:
        """People, and how many pictures of each one can be portraits."""
        puppets = PuppetPictures(self.work / "puppets", self.puppets)
        speaking = SpeakingPictures(self.work / "speaking", self.speaking)
        return [(source.make(os.cpu_count() or 1), most) for source, most in ((puppets, 1), (speaking, POSES + 1))]


def train_portraits(plan: Plan, output: Path) -> Path:
    """Train all parts of the plan in its folder and write the model."""
    prepare_arithmetic()
    plan.work.mkdir(parents=True, exist_ok=True)
    autoencoder = plan.work / "autoencoder.safetensors"
    if plan.start and not autoencoder.exists():
        autoencoder = plan.start  # the one that it bundles
    teacher = train_portrait_autoencoder.teacher_beside(autoencoder)
    if (plan.start or autoencoder.exists()) and not teacher.exists():
        raise InputError(f"{teacher} is missing: it lies beside the autoencoder that it was trained with.")
    known = _known_model(plan.start) if plan.start else None
    pairs, device = plan.spoken(), plan.device
    shares, peak = (SHARES_ON, PEAK / 2) if known else (SHARES, PEAK)
    runs = plan.work / f"from-{plan.start.stem}" if known else plan.work
    heard = known.audio_projection if known else None
    ear = train_ear(runs / "ear", pairs, PRESETS["bundled"], shares["ear"] * plan.minutes, device, heard)
    if not autoencoder.exists():
        train_portrait_autoencoder.run(
            plan.work, SHARES["autoencoder"] * plan.minutes, device, puppets=plan.puppets, speaking=plan.speaking
        )
    loaded, window = find_autoencoder(str(autoencoder)), Window.of(PRESETS["bundled"])
    clips = ToldClips(plan.portraits(), pairs, loaded, Teacher.load(teacher), window, device)
    model = new_model(clips)
    if known:
        model.load_state_dict(known.state_dict())
    model.audio_projection.load_state_dict(ear.state_dict())
    batch, minutes = plan.batch or (64 if device.type == "cuda" else 12), shares["transformer"] * plan.minutes
    trained = train_transformer(runs, model, clips, batch, minutes, peak, device).cpu()
    bundled = BundledAutoencoder(loaded.config, loaded.model.state_dict())
    save_checkpoint(output, trained, bundled, dtype=torch.float16, notes=NOTES)
    return output


def _known_model(path: Path) -> LetsTalkModel:
    """The model in a file to go on from; InputError where it is of another shape."""
    known, preset = load_checkpoint(path), PRESETS["bundled"]
    measured = {"latent_scale": preset.latent_scale, "relative_scale": preset.departures.relative_scale}
    if known.config.with_changes(**measured) != preset:
        raise InputError(f"{path} is not such a model as train-portraits writes; give one that is, or no --start.")
    return known


def new_model(clips: ToldClips) -> LetsTalkModel:
    """An untrained model for the latents of the clips."""
    torch.manual_seed(0)
    some = clips.batch(clips.plans(64)(UNSEEN_STEP))
    deviation = float((some["clip"] - some["portrait"][:, None]).std())
    scales = {"latent_scale": clips.scale, "relative_scale": 1 / deviation}
    return LetsTalkModel(PRESETS["bundled"].with_changes(**scales))


def train_transformer(
    work: Path, model: LetsTalkModel, clips: ToldClips, batch: int, minutes: float, peak: float, device: torch.device
) -> LetsTalkModel:
    """Train a model in work/transformer (resumed if begun) for `minutes`, `batch` clips a step."""
    config = loss_settings(work)
    freeze(model, config.frozen)
    denoiser = Denoiser(model.to(device).train())
    if minutes >= WORTH_COMPILING and shutil.which("g++"):  # 0.85 of the time on a CPU
        for block in model.transformer.blocks:
            block.compile()
    reader = clips.mouth_reader() / model.config.departures.relative_scale
    loss = TransformerLoss(config, model.config, None, device, reader)
    plans = ReadAhead(clips.plans(batch), PLANNERS if device.type == "cuda" else 0)
    run = TimedRun(work / "transformer", denoiser, minutes, peak, device, matrices=inner_weights(model))

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with native_autocast(device.type):
            found = loss(denoiser, clips.batch(plans(step)))
        return found.per_example.mean(), found.numbers

    run.fit(loss_of)
    run.averaged()
    return model


def inner_weights(model: LetsTalkModel) -> list[nn.Parameter]:
    """The matrices of the transformer's blocks."""
    return [weight for weight in model.transformer.blocks.parameters() if weight.requires_grad and weight.ndim == 2]
