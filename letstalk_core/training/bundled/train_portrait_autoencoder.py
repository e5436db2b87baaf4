"""The portrait-guided autoencoder of the bundled model: puppets and drawings, for a given time.

    python -m letstalk_core.training.bundled.train_portrait_autoencoder WORK --minutes 60 [--start FILE]

Writes WORK/autoencoder.safetensors and prints its quality on people whom it never met. Needs torch, numpy, opencv,
safetensors, einops and tqdm alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...data.drawn.stills import HELD_OUT_POSES, DrawnPictures, held_out_pictures
from ...data.people.geometry import SIZE
from ...data.people.pictures import PuppetPictures, face_regions
from ...picture.autoencoder import Autoencoder, build_autoencoder, load_autoencoder
from ...picture.portrait_autoencoder import SMALL_PORTRAIT_AE, PortraitAutoencoder
from ...pixels import normalise, pixels_to_images
from ...precision import native_autocast
from ...weights import write_weights
from ..reconstruction import psnr, reconstruction_loss, with_noise
from .timed import TimedRun

PUPPETS, DRAWN_PEOPLE, HELD_OUT_PUPPETS = 2600, 600, 100
DRAWN_SHARE = 0.25  # of a batch
PEAK = 1e-3  # largest learning rate; half as much where it goes on from a trained one
UNSEEN_STEP = 10**9  # steps from here on are never trained on
SMALL_LATENTS = 1e-4  # weight of the latents' mean square: they stay of the size of 1


class PortraitPictures:
    """Batches of pictures, portraits and regions on a device: puppets, and drawings for a quarter."""

    def __init__(self, work: Path, puppets: int, drawn: int, device: torch.device):
        self.puppets = PuppetPictures(work / "puppets", puppets).make(os.cpu_count() or 1, device.type)
        self.drawn = DrawnPictures(work / "drawn", drawn, SIZE, portraits=True)
        self.device = device

    def batch(self, step: int, size: int) -> dict[str, Tensor]:
        """uint8 "image" and "portrait" [size,3,256,256], "regions" [size,256,256]; they follow from the step."""
        rng = np.random.default_rng((7, step))
        sources = [self.drawn if number < DRAWN_SHARE * size else self.puppets for number in range(size)]
        examples = [source.read(int(rng.integers(len(source))), rng) for source in sources]
        return {name: torch.stack([example[name] for example in examples]).to(self.device) for name in examples[0]}


def train(
    work: Path, minutes: float, device: torch.device, batch: int, start: Path | None = None, puppets: int = PUPPETS,
    drawn: int = DRAWN_PEOPLE,
) -> Autoencoder:  # fmt: skip
    """Train in work/autoencoder (resumed if begun) for `minutes`, `batch` pictures a step."""
    pictures = PortraitPictures(work, puppets, drawn, device)
    torch.manual_seed(0)
    autoencoder = load_autoencoder(start) if start else build_autoencoder(SMALL_PORTRAIT_AE)
    autoencoder.latent_scale = 1.0
    autoencoder = autoencoder.to(device).to(memory_format=torch.channels_last).train().requires_grad_(True)
    model, peak = autoencoder.model, PEAK / 2 if start else PEAK
    run = TimedRun(work / "autoencoder", model, minutes, peak, device, matrices=inner_weights(model))

    def rebuilt(images: Tensor, portraits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latents = model.encode(images)
        return model.decode(with_noise(latents, noise), model.look_at(portraits)), latents

    rebuild = torch.compile(rebuilt) if shutil.which("g++") else rebuilt  # compiled: 0.6 of the time

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        examples = pictures.batch(step, batch)
        images, portraits = (
            normalise(examples[name]).contiguous(memory_format=torch.channels_last) for name in ("image", "portrait")
        )
        shape = (batch, autoencoder.latent_channels, *(side // autoencoder.downscale for side in images.shape[2:]))
        noise = torch.randn(shape, generator=torch.Generator(device).manual_seed(step), device=device)
        with native_autocast(device.type):
            output, latents = rebuild(images, portraits, noise)
        loss = reconstruction_loss(output.float(), images, examples["regions"]).mean()
        loss = loss + SMALL_LATENTS * latents.float().square().mean()
        return loss, {"psnr": psnr(output.detach().float(), images)}

    run.fit(loss_of)
    autoencoder.model = run.averaged()
    examples = [pictures.batch(UNSEEN_STEP + number, batch) for number in range(8)]
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(normalise(example["image"])) for example in examples])
    autoencoder.latent_scale = 1 / float(latents.std())
    return autoencoder


def inner_weights(model: PortraitAutoencoder) -> list[nn.Parameter]:
    """Of the layers between pictures and pictures: not the first, and none that ends in flows or colours."""
    outer = {model.encoder.stem.weight, model.decoder.paint.weight, *(flow.weight for flow in model.decoder.flow)}
    return [weight for weight in model.parameters() if weight.ndim == 4 and weight not in outer]


@torch.no_grad()
def quality(autoencoder: Autoencoder, work: Path, puppets: int = HELD_OUT_PUPPETS) -> dict[str, dict[str, float]]:
    """PSNR in dB on held-out puppets and drawings: whole picture, mouth, eyes, and of the still portrait."""
    device = next(autoencoder.parameters()).device
    held = PuppetPictures(work / "puppets-heldout", puppets, held_out=True).make(os.cpu_count() or 1)
    pictures, regions, _ = held_out_pictures(work / "drawn", SIZE)
    drawings = pixels_to_images(np.array(pictures)).unflatten(0, (-1, HELD_OUT_POSES))
    poses = normalise(torch.from_numpy(held.pictures[:]))
    places = held.places[:, 1:].reshape(-1, 3, 2)
    photographs = poses[:, 1:], poses[:, 0], torch.stack([face_regions(place) for place in places])
    drawn_regions = torch.from_numpy(regions).unflatten(0, (-1, HELD_OUT_POSES))[:, 1:].flatten(0, 1)
    report = {}
    for name, (images, portraits, parts) in {
        "photographs": photographs, "drawings": (drawings[:, 1:], drawings[:, 0], drawn_regions)
    }.items():  # fmt: skip
        outputs = []
        for own, portrait in zip(images, portraits, strict=True):
            seen = autoencoder.look_at(portrait[None].to(device))
            outputs.append(autoencoder.decode(autoencoder.encode(own.to(device)), seen).cpu())
        output, truth = torch.cat(outputs), images.flatten(0, 1)
        still = portraits[:, None].expand_as(images).flatten(0, 1)
        report[name] = {
            "whole": psnr(output, truth), "mouth": psnr(output, truth, parts == 1),
            "eyes": psnr(output, truth, parts == 2), "still": psnr(still, truth),
            "still, mouth": psnr(still, truth, parts == 1),
        }  # fmt: skip
    return report


def save(autoencoder: Autoencoder, path: Path, report: dict) -> None:
    """Write the autoencoder with its configuration, in half precision."""
    metadata = {"config": json.dumps({**autoencoder.config, "scaling_factor": autoencoder.latent_scale})}
    weights = {name: value.half() for name, value in autoencoder.model.state_dict().items()}
    write_weights(path, weights, metadata | {"quality": json.dumps(report)})


def run(
    work: Path, minutes: float, device: torch.device, batch: int | None = None, start: Path | None = None,
    puppets: int = PUPPETS, drawn: int = DRAWN_PEOPLE,
) -> None:  # fmt: skip
    """Train, and write WORK/autoencoder.safetensors with its quality, which is printed."""
    batch = batch or (64 if device.type == "cuda" else 8)
    autoencoder = train(work, minutes, device, batch, start, puppets, drawn)
    report = quality(autoencoder, work, min(HELD_OUT_PUPPETS, max(1, puppets // 10)))
    save(autoencoder, work / "autoencoder.safetensors", report)
    print(json.dumps(report, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--start", type=Path, help="an autoencoder to go on from")
    parser.add_argument("--batch", type=int, help="pictures of a step (default: 8 on a CPU, 64 on a GPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_flush_denormal(True)
    run(arguments.work, arguments.minutes, device, arguments.batch, arguments.start)


if __name__ == "__main__":
    main()
