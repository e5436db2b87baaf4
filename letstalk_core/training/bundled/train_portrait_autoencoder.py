"""The portrait-guided autoencoder of the bundled model and its teacher: puppets and drawings, for a given time.

    python -m letstalk_core.training.bundled.train_portrait_autoencoder WORK --minutes 60 [--start FILE]
        [--decoder-only]

Writes WORK/autoencoder.safetensors and WORK/teacher.safetensors (teacher.py says what that is for), and prints their
quality on people whom they never met. Needs torch, numpy, opencv, safetensors, einops and tqdm alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...autoencoders import find_autoencoder
from ...data.people.geometry import SIZE
from ...data.people.pictures import PeoplePictures, PuppetPictures, face_regions
from ...data.people.talking import DRAWN_EVERY, SpeakingPictures
from ...picture.autoencoder import Autoencoder, build_autoencoder
from ...picture.portrait_autoencoder import SMALL_PORTRAIT_AE, PortraitAutoencoder, ResidualBlock
from ...pixels import normalise
from ...precision import native_autocast
from ...weights import write_weights
from ..reconstruction import REGION_WEIGHTS, psnr, psnrs, reconstruction_loss
from .read_ahead import ReadAhead
from .teacher import Teacher
from .timed import TimedRun, prepare_arithmetic

PUPPETS, SPEAKING, HELD_OUT_PEOPLE = 2600, 2400, 100
TURNS = 3  # pictures of people who speak to one of somebody in any pose
PEAK = 1e-3  # largest learning rate; half as much where it goes on from a trained one
UNSEEN_STEP = 10**9  # steps from here on are never trained on
SMALL_LATENTS = 1e-4  # weight of the latents' mean square: they stay of the size of 1
TAUGHT = 0.1  # weight of what the teacher cannot tell of latents' motion, as a share of it
MOST_NOISE = 0.3  # of the latents' size, on what is decoded: errors of a transformer are forgiven
LEAST_MOTION = 0.1  # of the mean motion, added where a share is taken of it
ALONE_WEIGHTS = (1.0, 16.0, 8.0)  # of the face, its mouth and eyes, in the loss of a decoder alone
RESIDENT_SHARE = 0.4  # of a GPU's free memory that pictures may take
PORTRAIT_NOISE = 0.5  # at most, on the portrait's latents that the teacher sees: it must not know people by heart


class Taught(nn.Module):
    """An autoencoder and its teacher."""

    def __init__(self, autoencoder: PortraitAutoencoder, teacher: Teacher):
        super().__init__()
        self.autoencoder, self.teacher = autoencoder, teacher

    def forward(
        self, images: Tensor, portraits: Tensor, controls: Tensor, told: Tensor, noise: Tensor, portrait_noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images and portraits [n,3,S,S] in -1..1, controls [n,2,21] of both; told: bool [n], what is decoded from the
        teacher's latents; both noises [n,C,h,w], as shares of the latents' size.

        Returns the images as they are decoded, their latents, the portraits', and the told ones.
        """
        features = self.autoencoder.encoder.features(portraits)
        start = self.autoencoder.encoder.latents(features).float()
        latents = self.autoencoder.encode(images).float()
        size = latents.square().mean().sqrt()
        taught = start + self.teacher(start + portrait_noise * size, controls).float()
        decoded = torch.where(told[:, None, None, None], taught, latents) + noise * size
        return self.autoencoder.decode(decoded, self.autoencoder.seen(portraits, features)), latents, start, taught


class Batches:
    """Batches by step, on a device, of so many examples of each source; of each every other one is decoded from what
    the teacher tells. Pictures that a GPU has room for lie in its memory, others are read from their files."""

    def __init__(self, sources: list[tuple[PeoplePictures, int]], device: torch.device):
        self.sources, self.device = [(source, count) for source, count in sources if count], device
        bytes_in_all = sum(source.pictures.nbytes for source, _ in self.sources)
        self.resident = device.type == "cuda" and bytes_in_all < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
        place = device if self.resident else torch.device("cpu")
        self.pictures = [torch.from_numpy(source.pictures).to(place) for source, _ in self.sources]

    def __call__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((7, step))
        parts = [
            source.read_batch(pictures, rng.integers(len(source), size=count), rng)
            for (source, count), pictures in zip(self.sources, self.pictures, strict=True)
        ]
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        batch["told"] = torch.cat([torch.arange(count) % 2 == 0 for _, count in self.sources])
        return {name: values.to(self.device) for name, values in batch.items()}


def train(
    work: Path, minutes: float, device: torch.device, batch: int, start: Path | None = None, puppets: int = PUPPETS,
    speaking: int = SPEAKING, decoder_only: bool = False,
) -> tuple[Autoencoder, Teacher]:  # fmt: skip
    """Train in work/autoencoder (resumed if begun) for `minutes`, `batch` pictures a step. start: an autoencoder to go
    on from, and its teacher where there is one beside it. decoder_only: in work/decoder; latents stay what they are."""
    workers = os.cpu_count() or 1
    poses = PuppetPictures(work / "puppets", puppets).make(workers, device.type)
    speakers = SpeakingPictures(work / "speaking", speaking).make(workers, device.type)
    posing = -(-batch // (1 + TURNS))
    drawn = Batches([(poses, posing), (speakers, batch - posing)], device)
    batches: Callable[[int], dict[str, Tensor]] = drawn if drawn.resident else ReadAhead(drawn)
    autoencoder, teacher = _to_begin_with(start, [poses.controls, speakers.controls])
    if decoder_only:
        autoencoder.model.encoder.requires_grad_(False)
        teacher.requires_grad_(False)
    channels, side, known_scale = autoencoder.latent_channels, SIZE // autoencoder.downscale, autoencoder.latent_scale
    autoencoder.latent_scale = 1.0
    portrait_noise, weights = (0.0, ALONE_WEIGHTS) if decoder_only else (PORTRAIT_NOISE, REGION_WEIGHTS)
    both = Taught(autoencoder.model, teacher).to(device)
    inner = [weight for weight in inner_weights(autoencoder.model) + teacher.inner_weights() if weight.requires_grad]
    folder, peak = work / ("decoder" if decoder_only else "autoencoder"), PEAK / 2 if start else PEAK
    run = TimedRun(folder, both, minutes, peak, device, matrices=inner)
    forward = _compiled(both, decoder_only) if shutil.which("g++") else both

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        examples, generator = batches(step), torch.Generator(device).manual_seed(step)
        images, portraits = (
            normalise(examples[name]).contiguous(memory_format=torch.channels_last) for name in ("image", "portrait")
        )
        noises = [
            most * torch.rand(batch, 1, 1, 1, generator=generator, device=device)
            * torch.randn(batch, channels, side, side, generator=generator, device=device)
            for most in (MOST_NOISE, portrait_noise)
        ]  # fmt: skip
        with native_autocast(device.type):
            output, latents, start, taught = forward(images, portraits, examples["controls"], examples["told"], *noises)
        untold = untold_share(latents, start, taught).mean()
        loss = reconstruction_loss(output.float(), images, examples["regions"], weights).mean()
        loss = loss + TAUGHT * untold + SMALL_LATENTS * latents.square().mean()
        return loss, {"psnr": psnrs(output.detach().float(), images).mean(), "untold": untold.detach()}

    run.fit(loss_of)
    run.averaged()
    if decoder_only:
        autoencoder.latent_scale = known_scale
        return autoencoder, teacher
    with torch.no_grad():
        examples = [batches(UNSEEN_STEP + number)["image"] for number in range(8)]
        latents = torch.cat([autoencoder.encode(normalise(images)) for images in examples])
    autoencoder.latent_scale = 1 / float(latents.std())
    return autoencoder, teacher


def _to_begin_with(start: Path | None, controls: list[np.ndarray]) -> tuple[Autoencoder, Teacher]:
    """An autoencoder, known or new, and its teacher, new where none lies beside a known one: of these controls."""
    torch.manual_seed(0)
    autoencoder = find_autoencoder(str(start)) if start else build_autoencoder(SMALL_PORTRAIT_AE)
    autoencoder = autoencoder.to(memory_format=torch.channels_last).train().requires_grad_(True)
    if start and (known := teacher_beside(start)).exists():
        return autoencoder, Teacher.load(known).train().requires_grad_(True)
    told = torch.cat([torch.from_numpy(part[:]).flatten(0, 1) for part in controls])
    return autoencoder, Teacher(autoencoder.latent_channels, SIZE // autoencoder.downscale, told)


def _compiled(both: Taught, decoder_only: bool) -> Callable[..., tuple[Tensor, ...]]:
    """What takes 0.6 of the time."""
    if not decoder_only:
        return torch.compile(both)
    for block in both.autoencoder.decoder.modules():  # compiled whole, PyTorch 2.11 crashes in grid_sample's backward
        if isinstance(block, ResidualBlock):
            block.compile()
    return both


def untold_share(latents: Tensor, start: Tensor, taught: Tensor) -> Tensor:
    """Of each picture's motion, the share that the teacher does not tell, [n]: of latents, those of the portraits and
    what is told, [n,C,h,w]. Each picture counts alike: a mouth moves latents much less than a head does."""
    missed, moved = ((latents - other).square().mean((1, 2, 3)) for other in (taught, start))
    return missed / (moved + LEAST_MOTION * moved.mean())


def teacher_beside(autoencoder: Path) -> Path:
    """Where the teacher of an autoencoder's file is kept."""
    return autoencoder.with_name("teacher.safetensors")


def inner_weights(model: PortraitAutoencoder) -> list[nn.Parameter]:
    """Of the layers between pictures and pictures: not the first, and none that ends in flows or colours."""
    outer = {model.encoder.stem.weight, model.decoder.paint.weight, *(flow.weight for flow in model.decoder.flow)}
    return [weight for weight in model.parameters() if weight.ndim == 4 and weight not in outer]


@torch.no_grad()
def quality(
    autoencoder: Autoencoder, work: Path, teacher: Teacher | None = None, people: int = HELD_OUT_PEOPLE
) -> dict[str, dict[str, float]]:
    """PSNR in dB on people and drawings held out: whole picture, mouth, eyes; the same of what the teacher tells; the
    same of the still portrait. "untold": the share of the latents' motion that the teacher cannot tell."""
    workers = os.cpu_count() or 1
    poses = PuppetPictures(work / "puppets-heldout", people, held_out=True).make(workers)
    speaking = SpeakingPictures(work / "speaking-heldout", people, held_out=True).make(workers)
    drawn = range(0, people, DRAWN_EVERY)
    groups = {
        "poses": (poses, range(people)), "speaking": (speaking, [i for i in range(people) if i not in drawn]),
        "drawings": (speaking, drawn),
    }  # fmt: skip
    return {
        name: _quality_of(autoencoder, teacher, source, chosen) for name, (source, chosen) in groups.items() if chosen
    }


def _quality_of(
    autoencoder: Autoencoder, teacher: Teacher | None, source: PeoplePictures, chosen: Iterable[int]
) -> dict[str, float]:
    device = next(autoencoder.parameters()).device
    found: dict[str, list[float]] = defaultdict(list)
    for index in chosen:
        pictures = normalise(torch.from_numpy(source.pictures[index]).to(device))
        images, portrait = pictures[1:], pictures[:1]
        parts = face_regions(torch.from_numpy(source.places[index, 1:]).to(device))
        seen, latents = autoencoder.look_at(portrait), autoencoder.encode(pictures)
        shown = {"": autoencoder.decode(latents[1:], seen), "still": portrait.expand_as(images)}
        if teacher is not None:
            controls = torch.from_numpy(source.controls[index]).to(device)
            both = torch.stack([controls[1:], controls[:1].expand_as(controls[1:])], 1)
            start = (latents[:1] / autoencoder.latent_scale).expand(len(images), -1, -1, -1)
            added = autoencoder.latent_scale * teacher(start, both)
            shown["told"] = autoencoder.decode(latents[:1] + added, seen)
            moved = latents[1:] - latents[:1]
            found["untold"].append(float((moved - added).square().mean() / moved.square().mean()))
        for way, output in shown.items():
            for number, part in enumerate(("whole", "mouth", "eyes")):
                found[f"{way} {part}".strip()].append(psnr(output, images, parts == number if number else None))
    return {name: sum(values) / len(values) for name, values in found.items()}


def save(autoencoder: Autoencoder, path: Path, report: dict) -> None:
    """Write the autoencoder with its configuration, in half precision."""
    metadata = {"config": json.dumps({**autoencoder.config, "scaling_factor": autoencoder.latent_scale})}
    weights = {name: value.half() for name, value in autoencoder.model.state_dict().items()}
    write_weights(path, weights, metadata | {"quality": json.dumps(report)})


def run(
    work: Path, minutes: float, device: torch.device, batch: int | None = None, start: Path | None = None,
    puppets: int = PUPPETS, speaking: int = SPEAKING, decoder_only: bool = False,
) -> None:  # fmt: skip
    """Train, and write WORK/autoencoder.safetensors with its quality, which is printed, and its teacher beside it."""
    batch = batch or (64 if device.type == "cuda" else 8)
    autoencoder, teacher = train(work, minutes, device, batch, start, puppets, speaking, decoder_only)
    report = quality(autoencoder, work, teacher, min(HELD_OUT_PEOPLE, max(1, puppets // 10)))
    path = work / "autoencoder.safetensors"
    teacher.save(teacher_beside(path))
    save(autoencoder, path, report)
    print(json.dumps(report, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--start", type=Path, help="an autoencoder, or a model that bundles one, to go on from")
    parser.add_argument("--decoder-only", action="store_true", help="keep the latents, and with them the transformer")
    parser.add_argument("--batch", type=int, help="pictures of a step (default: 8 on a CPU, 64 on a GPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    start, decoder_only = arguments.start, arguments.decoder_only
    if decoder_only and not (start and teacher_beside(start).exists()):
        parser.error("--decoder-only goes on from a file that --start names, with its teacher.safetensors beside it.")
    device = torch.device(arguments.device)
    prepare_arithmetic()
    run(arguments.work, arguments.minutes, device, arguments.batch, start, decoder_only=decoder_only)


if __name__ == "__main__":
    main()
