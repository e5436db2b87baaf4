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

from ..data.people.pictures import POSES, PeoplePictures, PuppetPictures
from ..data.people.puppet import COLUMN
from ..data.people.talking import SpeakingPictures
from ..pixels import normalise, pixels_to_images
from ..training.bundled.train_portrait_autoencoder import HELD_OUT_PEOPLE, PUPPETS, SPEAKING
from ..training.loop import Loss, TrainingRun, small_config
from ..weights import read_network, write_network

READINGS = ("open", "width", "round", "blink", "smile", "yaw")
SIZE = 128  # pixels
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


def train_meter(
    work: Path, puppets: int = PUPPETS, speaking: int = SPEAKING, start: Path | None = None, steps: int = 6000,
    batch: int = 64,
) -> FaceMeter:  # fmt: skip
    """Train the network in work/meter (resumed if begun), on the pictures of the portrait-guided autoencoder: half of a
    batch are puppets in all poses, half people and drawings who speak. start: weights to go on from."""
    sources = (PuppetPictures(work / "puppets", puppets), SpeakingPictures(work / "speaking", speaking))
    sources = [source.make(os.cpu_count() or 1) for source in sources]
    unit = torch.from_numpy(sources[0].controls[:][..., _COLUMNS].std((0, 1)))
    torch.manual_seed(0)
    net = FaceMeter() if start is None else load_meter(start).requires_grad_(True).train()
    # Not channels last: on a CPU such a step, of convolutions and group norms, takes 2.7 times as long, 5 in bfloat16.
    run = TrainingRun(work / "meter", net, small_config(steps, 1.5e-3))

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((3, step))
        pictures, readings = zip(*(_some(source, batch // len(sources), rng) for source in sources), strict=True)
        images = reduced(normalise(torch.cat(pictures)))
        images, targets = disturb(images, rng), torch.cat(readings)
        if rng.random() < 0.5:
            images, targets = images.flip(3), targets * _MIRRORED
        shift = rng.integers(-4, 5, 2)
        images = images.roll(tuple(int(s) for s in shift), (2, 3))
        return Loss(F.mse_loss(run.module(images) / unit, targets / unit))

    run.fit(loss_of)
    return run.averaged()


def _some(source: PeoplePictures, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random pictures uint8 [count,3,256,256] and what is to be read from them, [count,6]."""
    people, poses = rng.integers(len(source), size=count), rng.integers(POSES + 1, size=count)
    readings = source.controls[people, poses][:, _COLUMNS]
    return torch.from_numpy(source.pictures[people, poses]), torch.from_numpy(readings)


def meter_accuracy(meter: FaceMeter, work: Path) -> dict[str, dict[str, float]]:
    """Correlation of each reading with the truth on held-out people in all poses, on people and drawings who speak."""
    report = {}
    for kind, folder in ((PuppetPictures, "puppets-heldout"), (SpeakingPictures, "speaking-heldout")):
        held = kind(work / folder, HELD_OUT_PEOPLE, held_out=True).make(os.cpu_count() or 1)
        frames = held.pictures[:].transpose(0, 1, 3, 4, 2)
        readings = meter.read(frames.reshape(-1, *frames.shape[2:]))
        truth = held.controls[:].reshape(len(readings), -1)
        report[held.kind] = {
            name: float(np.corrcoef(readings[:, i], truth[:, column])[0, 1])
            for i, (name, column) in enumerate(zip(READINGS, _COLUMNS, strict=True))
        }
    return report


def load_meter(path: Path) -> FaceMeter:
    """The meter with the weights of a file, in evaluation mode."""
    return read_network(path, FaceMeter())


if __name__ == "__main__":  # python -m letstalk_core.evaluation.meter WORK [PUPPETS SPEAKING [START]] makes the file
    import sys

    work = Path(sys.argv[1])
    trained = train_meter(work, *map(int, sys.argv[2:4]), *map(Path, sys.argv[4:5]))
    print("correlation with the truth on held-out people:", meter_accuracy(trained, work))
    write_network(Path(__file__).resolve().parent / "face_meter.safetensors", trained)
