"""The transformer for photographs, on puppets that speak, for a given time.

    python -m letstalk_core.training.bundled.train_portraits WORK OUTPUT --autoencoder FILE --ear FILE --minutes 60

Speech (that of train_avatar) and clips are made in WORK unless they are there. The audio projection hears as that of
the model in `--ear` does, and its window stays so. Goes on where it was stopped; --start goes on from a finished model.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...config import PRESETS, LetsTalkConfig
from ...data.people.talking import PuppetClips
from ...data.source import Source, Window
from ...data.speech.pairs import SpokenPairs
from ...data.stored_clips import StoredClipSource
from ...model.checkpoint import BundledAutoencoder, LetsTalkModel, load_checkpoint, save_checkpoint
from ...picture.autoencoder import load_autoencoder
from ...precision import native_autocast
from ..build import freeze
from ..training_config import TransformerTraining
from ..transformer_loss import Denoiser, TransformerLoss
from .timed import TimedRun
from .train_avatar import relative_scale

PAIRS, CLIPS = 8000, 5000
FRAMES = 18  # of a clip: sixteen that are seen at a time, and two to shift the window
PEAK = 1e-3  # largest learning rate; half as much where it goes on from a trained one
NOTES = {
    "title": "LetsTalk portraits 256",
    "licence": "Apache-2.0",
    "trained_on": "puppets of photographs of people who do not exist, and synthetic speech of this repository",
}


def loss_settings(work: Path, batch: int) -> TransformerTraining:
    """What is seen, what is added to it and what counts in the transformer's loss."""
    return TransformerTraining(
        run=str(work), preset="portraits", data="avatar", data_path=str(work), batch_size=batch,
        frozen=r"^audio_projection\.window\.",  # it heard far more speech than the clips hold
        memory_pixel_noise=False, mouth_weight=8.0, eye_weight=3.0, blink_weight=3.0, control_dropout=0.2,
        first_guess_share=0.5,  # where nothing is seen and the conditions alone decide: half of the steps
    )  # fmt: skip


def with_ear_of(ear: LetsTalkModel, config: LetsTalkConfig) -> LetsTalkModel:
    """An untrained model that hears as another does; what it can be asked for is its own."""
    torch.manual_seed(0)
    model = LetsTalkModel(config)
    own, heard = model.audio_projection.state_dict(), ear.audio_projection.state_dict()
    own |= {name: value for name, value in heard.items() if not name.startswith("control.")}
    model.audio_projection.load_state_dict(own)
    return model


class Batches:
    """Batches of a source by step, on a device; they follow from the step's number alone."""

    def __init__(self, source: Source, size: int, device: torch.device):
        self.source, self.size, self.device = source, size, device

    def __call__(self, step: int) -> dict:
        rng = np.random.default_rng((9, step))
        chosen = [int(index) for index in rng.integers(len(self.source), size=self.size)]
        examples = [self.source.read(index, rng) for index in chosen]
        batch = {name: torch.stack([example[name] for example in examples]).to(self.device) for name in examples[0]}
        seeds = [step * self.size + number for number in range(self.size)]
        return {**batch, "seed": seeds, "name": [self.source.name(index) for index in chosen]}


def train_transformer(
    work: Path, model: LetsTalkModel, source: Source, minutes: float, peak: float, batch: int, device: torch.device
) -> LetsTalkModel:
    """Train a model in work/transformer (resumed if begun) for `minutes`, `batch` clips a step."""
    config = loss_settings(work, batch)
    freeze(model, config.frozen)
    denoiser = Denoiser(model.to(device).train())
    loss, batches = TransformerLoss(config, model.config, None, device), Batches(source, batch, device)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--ear", type=Path, required=True, help="a model whose audio projection is taken")
    parser.add_argument("--start", type=Path, help="a model to go on from")
    parser.add_argument("--minutes", type=float, required=True, help="of the transformer's training")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--batch", type=int, help="clips of a step (default: 12 on a CPU, 64 on a GPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_flush_denormal(True)
    work, autoencoder = arguments.work, load_autoencoder(arguments.autoencoder)
    encoder, workers = PRESETS["portraits"].audio.encoder, os.cpu_count() or 1
    pairs = SpokenPairs(work / "audio" / "pairs", PAIRS, encoder, work / "audio" / "utterances").make(workers)
    clips = PuppetClips(work / "puppet-clips", arguments.clips, FRAMES, arguments.autoencoder, pairs)
    clips.make(workers, device.type)
    if arguments.start:
        model, peak = load_checkpoint(arguments.start), PEAK / 2
    else:
        scales = {"latent_scale": autoencoder.latent_scale, "relative_scale": relative_scale(*clips.encoded)}
        config, peak = PRESETS["portraits"].with_changes(**scales), PEAK
        model = with_ear_of(load_checkpoint(arguments.ear), config)
    source = StoredClipSource(clips, Window.of(model.config), clips.encoded, "puppet")
    batch = arguments.batch or (64 if device.type == "cuda" else 12)
    trained = train_transformer(work, model, source, arguments.minutes, peak, batch, device)
    bundled = BundledAutoencoder(autoencoder.config, autoencoder.model.state_dict())
    save_checkpoint(arguments.output, trained.cpu(), bundled, dtype=torch.float16, notes=NOTES)


if __name__ == "__main__":
    main()
