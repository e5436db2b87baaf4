"""A small network that reads a face: how far the mouth is open, how wide, how round, how closed the eyes, and more.

Trained on puppets of photographs and on drawings, whose controls are known, blurred and disturbed as generated frames
are. It judges every model alike and is itself judged on held-out people (`meter_accuracy`).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.drawn.motion import COLUMN
from ..data.drawn.stills import POSES, held_out_pictures, training_pictures
from ..data.people.geometry import SIZE as WHOLE
from ..data.people.pictures import PuppetPictures
from ..pixels import normalise, pixels_to_images, pixels_to_planes
from ..training.bundled.train_portrait_autoencoder import HELD_OUT_PEOPLE, PUPPETS
from ..training.loop import Loss, TrainingRun, small_config
from ..weights import read_network, write_network

READINGS = ("open", "width", "round", "blink", "smile", "yaw")
SIZE = 128  # pixels
DRAWN_PEOPLE, DRAWN_SHARE = 600, 0.25  # of a batch
_COLUMNS = [COLUMN[name] for name in READINGS]
_MIRRORED = torch.tensor([-1.0 if name == "yaw" else 1.0 for name in READINGS])


class FaceNet(nn.Module):
    """Images [n,3,128,128] in -1..1 -> numbers [n,outputs]: what the judges of generated faces have in common."""

    def __init__(self, outputs: int):
        super().__init__()
        widths = (3, 16, 32, 64, 96, 96)
        self.layers = nn.Sequential()
        for low, high in zip(widths[:-1], widths[1:], strict=True):
            self.layers.append(nn.Conv2d(low, high, 3, stride=2, padding=1))
            self.layers.append(nn.GroupNorm(8, high))
            self.layers.append(nn.SiLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, outputs))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images))

    @torch.inference_mode()
    def read(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 [n,S,S,3] -> what forward gives for them at 128 pixels, float32 [n,outputs]."""
        parts = [self(reduced(pixels_to_images(frames[i : i + 64]))) for i in range(0, len(frames), 64)]
        return torch.cat(parts).numpy()


class FaceMeter(FaceNet):
    """Images [n,3,128,128] in -1..1 -> readings [n,6], columns READINGS, in the units of puppets' controls."""

    def __init__(self):
        super().__init__(len(READINGS))


def reduced(images: Tensor) -> Tensor:
    """Images [n,3,S,S] at 128 pixels."""
    return F.interpolate(images, (SIZE, SIZE), mode="area")


def disturb(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images [n,3,H,W] with blur and noise of random strength, as autoencoders leave behind."""
    if rng.random() < 0.6:
        sigma = rng.uniform(0.3, 1.3)
        x = torch.arange(-3, 4).float()
        kernel = torch.exp(-(x**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
        images = F.conv2d(images, kernel, padding=(0, 3), groups=3)
        images = F.conv2d(images, kernel.transpose(2, 3), padding=(3, 0), groups=3)
    if rng.random() < 0.5:
        noise = torch.from_numpy(rng.standard_normal(images.shape, np.float32))
        images = images + rng.uniform(0, 0.06) * noise
    return images


def train_meter(work: Path, steps: int = 6000, batch: int = 32) -> FaceMeter:
    """Train the network in work/meter (resumed if begun), on the pictures of the portrait-guided autoencoder."""
    pictures, controls, puppets = _training_pictures(work)
    drawn = round(DRAWN_SHARE * batch)
    torch.manual_seed(0)
    net = FaceMeter().to(memory_format=torch.channels_last)
    run = TrainingRun(work / "meter", net, small_config(steps, 1.5e-3))

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((3, step))
        of_puppets = rng.integers(puppets, size=batch - drawn)
        chosen = np.concatenate([of_puppets, rng.integers(puppets, len(pictures), size=drawn)])
        images, targets = disturb(normalise(pictures[chosen]), rng), controls[chosen]
        if rng.random() < 0.5:
            images, targets = images.flip(3), targets * _MIRRORED
        shift = rng.integers(-4, 5, 2)
        images = images.roll(tuple(int(s) for s in shift), (2, 3))
        return Loss(F.mse_loss(run.module(images), targets))

    run.fit(loss_of)
    return run.averaged()


def _training_pictures(work: Path) -> tuple[Tensor, Tensor, int]:
    """Pictures uint8 [n,3,128,128] and their controls [n,6] as READINGS has them, and how many are puppets, the first
    ones; 1.4 GB."""
    puppets = PuppetPictures(work / "puppets", PUPPETS).make(os.cpu_count() or 1)
    drawings, _, drawn_controls = training_pictures(work / "drawn", DRAWN_PEOPLE, WHOLE)
    parts = [_reduced_planes(torch.from_numpy(puppets.pictures[i])) for i in range(len(puppets))]
    count = len(puppets) * puppets.pictures.shape[1]
    parts += [_reduced_planes(pixels_to_planes(drawings[i : i + POSES])) for i in range(0, len(drawings), POSES)]
    controls = np.concatenate([puppets.controls[:].reshape(count, -1)[:, _COLUMNS], drawn_controls[:, _COLUMNS]])
    return torch.cat(parts), torch.from_numpy(controls), count


def _reduced_planes(planes: Tensor) -> Tensor:
    return F.interpolate(planes.float(), (SIZE, SIZE), mode="area").round().byte()


def meter_accuracy(meter: FaceMeter, work: Path) -> dict[str, dict[str, float]]:
    """Correlation of each reading with the truth on held-out people and drawings."""
    held = PuppetPictures(work / "puppets-heldout", HELD_OUT_PEOPLE, held_out=True).make(os.cpu_count() or 1)
    drawings, _, drawn_controls = held_out_pictures(work / "drawn", WHOLE)
    pictures = held.pictures[:].transpose(0, 1, 3, 4, 2).reshape(-1, WHOLE, WHOLE, 3)
    report = {}
    for kind, frames, truth in (
        ("people", pictures, held.controls[:].reshape(len(pictures), -1)), ("drawings", drawings, drawn_controls)
    ):  # fmt: skip
        readings = meter.read(frames)
        report[kind] = {
            name: float(np.corrcoef(readings[:, i], truth[:, column])[0, 1])
            for i, (name, column) in enumerate(zip(READINGS, _COLUMNS, strict=True))
        }
    return report


def load_meter(path: Path) -> FaceMeter:
    """The meter with the weights of a file, in evaluation mode."""
    return read_network(path, FaceMeter())


if __name__ == "__main__":  # python -m letstalk_core.evaluation.meter WORK_FOLDER makes the file beside this one
    import sys

    work = Path(sys.argv[1])
    trained = train_meter(work)
    print("correlation with the truth on held-out people:", meter_accuracy(trained, work))
    write_network(Path(__file__).resolve().parent / "face_meter.safetensors", trained)
