"""The model for photographs from nothing, for a given time: speech, ear, autoencoder, clips, transformer, one file.

Needs torch, numpy, opencv, safetensors, einops, tqdm and transformers alone where speech was prepared beforehand
(data/speech/packed.py). Every part goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...config import PRESETS, LetsTalkConfig
from ...data.people.talking import PuppetClips
from ...data.source import Source, Window
from ...data.speech.pairs import PackedPairs, SpokenPairs
from ...data.stored_clips import StoredClipSource
from ...model.audio_projection import AudioProjection
from ...model.checkpoint import (
    BundledAutoencoder,
    LetsTalkModel,
    load_checkpoint,
    save_checkpoint,
)
from ...picture.autoencoder import Autoencoder, load_autoencoder
from ...pipeline import bundled_autoencoder
from ...precision import native_autocast
from ..build import freeze
from ..training_config import TransformerTraining
from ..transformer_loss import Denoiser, TransformerLoss
from . import train_portrait_autoencoder
from .timed import TimedRun
from .train_ear import train_ear

PAIRS, CLIPS = 8000, 24000
PUPPETS, DRAWN_PEOPLE = train_portrait_autoencoder.PUPPETS, train_portrait_autoencoder.DRAWN_PEOPLE
WORTH_COMPILING = 10  # minutes
SHARES = {"ear": 0.15, "autoencoder": 0.45, "transformer": 0.4}  # of the minutes
# Frames of a clip: three steps of four see many people, a few frames of each, without which the transformer learns its
# people by heart; one sees motion, sixteen frames at a time and two to shift the window.
SHORT, LONG, LONG_SHARE = 4, 18, 1 / 8
PEAK = 2e-3  # largest learning rate; half as much where it goes on from a trained one
NOTES = {
    "title": "LetsTalk portraits 256",
    "licence": "Apache-2.0",
    "trained_on": "puppets of photographs of people who do not exist, and synthetic speech of this repository",
}


def loss_settings(work: Path) -> TransformerTraining:
    """What is seen, what is added to it and what counts in the transformer's loss."""
    return TransformerTraining(
        run=str(work), preset="portraits", data="avatar", data_path=str(work),
        frozen=r"^audio_projection\.window\.",  # it heard far more speech than the clips hold
        memory_pixel_noise=False, mouth_weight=8.0, eye_weight=3.0, blink_weight=3.0, control_dropout=0.2,
        first_guess_share=0.8,  # where nothing is seen and the conditions alone decide: the first step of two
    )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What the model for photographs is trained of, and where.

    minutes: of all trainings; making what they learn from takes more. speech: a packed file, or None to speak it here.
    start: a model whose ear and autoencoder are taken, and whose transformer learns on; all minutes are then its own.
    clips, pairs, puppets, drawn: how many are made; of the clips LONG_SHARE are long. batch: long clips of a step, None
    for what suits the device.
    """

    work: Path
    minutes: float
    speech: Path | None = None
    start: Path | None = None
    clips: int = CLIPS
    pairs: int = PAIRS
    puppets: int = PUPPETS
    drawn: int = DRAWN_PEOPLE
    batch: int | None = None
    device: torch.device = torch.device("cpu")

    def spoken(self) -> SpokenPairs | PackedPairs:
        """Speech, its features and mouths."""
        folder, encoder = self.work / "audio" / "pairs", PRESETS["portraits"].audio.encoder
        if self.speech is None:
            pairs = SpokenPairs(folder, self.pairs, encoder, self.work / "audio" / "utterances")
        else:
            pairs = PackedPairs(folder, self.speech, encoder)
        return pairs.make(os.cpu_count() or 1)


def train_portraits(plan: Plan, output: Path) -> Path:
    """Train all parts of the plan in its folder and write the model."""
    torch.set_flush_denormal(True)
    plan.work.mkdir(parents=True, exist_ok=True)
    pairs, autoencoder = plan.spoken(), plan.work / "autoencoder.safetensors"
    if plan.start:
        model, peak, minutes = load_checkpoint(plan.start), PEAK / 2, plan.minutes
        train_portrait_autoencoder.save(bundled_autoencoder(plan.start), autoencoder, {})
    else:
        ear = train_ear(plan.work / "ear", pairs, PRESETS["portraits"], SHARES["ear"] * plan.minutes, plan.device)
        if not autoencoder.exists():
            train_portrait_autoencoder.run(
                plan.work, SHARES["autoencoder"] * plan.minutes, plan.device, puppets=plan.puppets, drawn=plan.drawn
            )
    short, long = talking_clips(plan, autoencoder, pairs)
    loaded = load_autoencoder(autoencoder)
    if not plan.start:
        model, peak, minutes = new_model(ear, loaded, long), PEAK, SHARES["transformer"] * plan.minutes
    batch = plan.batch or (64 if plan.device.type == "cuda" else 12)
    batches = Batches(turns(short, long, model.config, batch), plan.device)
    trained = train_transformer(plan.work, model, batches, minutes, peak, plan.device).cpu()
    bundled = BundledAutoencoder(loaded.config, loaded.model.state_dict())
    save_checkpoint(output, trained, bundled, dtype=torch.float16, notes=NOTES)
    return output


def talking_clips(plan: Plan, autoencoder: Path, pairs: SpokenPairs) -> tuple[PuppetClips, PuppetClips]:
    """The plan's short and long clips, each of somebody else."""
    long = max(1, round(plan.clips * LONG_SHARE))
    short = max(1, plan.clips - long)
    return tuple(
        PuppetClips(plan.work / name, count, length, autoencoder, pairs, first=first).make(
            os.cpu_count() or 1, plan.device.type
        )
        for name, count, length, first in (("short-clips", short, SHORT, 0), ("long-clips", long, LONG, short))
    )


def new_model(ear: AudioProjection, autoencoder: Autoencoder, clips: PuppetClips) -> LetsTalkModel:
    """An untrained model with a trained ear, for the latents of the clips."""
    torch.manual_seed(0)
    scales = {"latent_scale": autoencoder.latent_scale, "relative_scale": relative_scale(*clips.encoded)}
    model = LetsTalkModel(PRESETS["portraits"].with_changes(**scales))
    model.audio_projection.load_state_dict(ear.state_dict())
    return model


def relative_scale(latents: np.ndarray, portraits: np.ndarray) -> float:
    """1 / the deviation of frames' latents [n,T,C,h,w] from their portraits' [n,C,h,w]: relative_scale of the model."""
    some = slice(None, None, max(1, len(latents) // 200))
    difference = latents[some].astype(np.float32) - portraits[some, None].astype(np.float32)
    return float(1 / difference.std())


def turns(short: PuppetClips, long: PuppetClips, config: LetsTalkConfig, batch: int) -> list[tuple[Source, int]]:
    """What the steps see in turn, and how many clips of it: about as many frames in each of them."""
    whole = Window.of(config)
    few = StoredClipSource(short, dataclasses.replace(whole, clip_frames=SHORT), short.encoded, "puppet")
    return 3 * [(few, whole.clip_frames // SHORT * batch)] + [
        (StoredClipSource(long, whole, long.encoded, "puppet"), batch)
    ]


class Batches:
    """Batches of sources in turn, each with a size, by step, on a device; they follow from the step's number. The next
    is read meanwhile."""

    def __init__(self, turns: list[tuple[Source, int]], device: torch.device):
        self.turns, self.device = turns, device
        self._reader, self._coming = ThreadPoolExecutor(1), {}

    def __call__(self, step: int) -> dict:
        coming = self._coming.pop(step, None) or self._reader.submit(self._read, step)
        self._coming = {step + 1: self._reader.submit(self._read, step + 1)}
        return coming.result()

    def _read(self, step: int) -> dict:
        rng = np.random.default_rng((9, step))
        source, size = self.turns[step % len(self.turns)]
        chosen = [int(index) for index in rng.integers(len(source), size=size)]
        examples = [source.read(index, rng) for index in chosen]
        batch = {name: torch.stack([example[name] for example in examples]).to(self.device) for name in examples[0]}
        seeds = [int(seed) for seed in rng.integers(2**31, size=size)]
        return {**batch, "seed": seeds, "name": [source.name(index) for index in chosen]}


def train_transformer(
    work: Path, model: LetsTalkModel, batches: Batches, minutes: float, peak: float, device: torch.device
) -> LetsTalkModel:
    """Train a model in work/transformer (resumed if begun) for `minutes`."""
    config = loss_settings(work)
    freeze(model, config.frozen)
    denoiser = Denoiser(model.to(device).train())
    if minutes >= WORTH_COMPILING and shutil.which("g++"):  # 0.85 of the time on a CPU
        for block in model.transformer.blocks:
            block.compile(dynamic=False)  # for short and for long clips
    loss = TransformerLoss(config, model.config, None, device)
    run = TimedRun(work / "transformer", denoiser, minutes, peak, device, matrices=inner_weights(model))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        with native_autocast(device.type):
            found = loss(denoiser, batches(step))
        return found.per_example.mean(), {name: float(value) for name, value in found.numbers.items()}

    run.fit(loss_of)
    run.averaged()
    return model


def inner_weights(model: LetsTalkModel) -> list[nn.Parameter]:
    """The matrices of the transformer's blocks."""
    return [weight for weight in model.transformer.blocks.parameters() if weight.requires_grad and weight.ndim == 2]
