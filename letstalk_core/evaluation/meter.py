"""A small network that reads a drawn face: how far the mouth is open, how wide, how round, how closed the eyes.

Trained on renderings, whose controls are known, blurred and disturbed as generated frames are. It judges every model
alike and is itself judged on held-out people (`meter_accuracy`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.drawn.motion import COLUMN
from ..data.drawn.stills import held_out_pictures, training_pictures
from ..pixels import pixels_to_images
from ..training.loop import Loss, TrainingRun, small_config
from ..weights import read_network, write_network

READINGS = ("open", "width", "round", "blink")
SIZE = 128  # pixels
_COLUMNS = [COLUMN[name] for name in READINGS]


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
        """Frames uint8 [n,128,128,3] -> what forward gives, float32 [n,outputs]."""
        parts = [self(pixels_to_images(frames[i : i + 64])) for i in range(0, len(frames), 64)]
        return torch.cat(parts).numpy()


class FaceMeter(FaceNet):
    """Images [n,3,128,128] in -1..1 -> readings [n,4], columns READINGS, in the units of drawn people's controls."""

    def __init__(self):
        super().__init__(len(READINGS))


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


def train_meter(work: Path, people: int = 2500, steps: int = 6000, batch: int = 32) -> FaceMeter:
    """Train the network in work/meter (resumed if begun), on the autoencoder's training pictures."""
    pictures, _, controls = training_pictures(work, people, SIZE)
    targets = torch.from_numpy(controls[:, _COLUMNS])
    torch.manual_seed(0)
    net = FaceMeter().to(memory_format=torch.channels_last)
    run = TrainingRun(work / "meter", net, small_config(steps, 1.5e-3))

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((3, step))
        index = np.sort(rng.choice(len(pictures), batch, replace=False))
        images = disturb(pixels_to_images(pictures[index]), rng)
        if rng.random() < 0.5:
            images = images.flip(3)
        shift = rng.integers(-4, 5, 2)
        images = images.roll(tuple(int(s) for s in shift), (2, 3))
        return Loss(F.mse_loss(run.module(images), targets[index]))

    run.fit(loss_of)
    return run.averaged()


def meter_accuracy(meter: FaceMeter, work: Path) -> dict[str, float]:
    """Correlation of each reading with the truth on held-out people."""
    pictures, _, truth = held_out_pictures(work, SIZE)
    readings = meter.read(pictures)
    return {
        name: float(np.corrcoef(readings[:, i], truth[:, column])[0, 1])
        for i, (name, column) in enumerate(zip(READINGS, _COLUMNS, strict=True))
    }


def load_meter(path: Path) -> FaceMeter:
    """The meter with the weights of a file, in evaluation mode."""
    return read_network(path, FaceMeter())


if __name__ == "__main__":  # python -m letstalk_core.evaluation.meter WORK_FOLDER makes the file beside this one
    import sys

    work = Path(sys.argv[1])
    trained = train_meter(work)
    print("correlation with the truth on held-out people:", meter_accuracy(trained, work))
    write_network(Path(__file__).resolve().parent / "face_meter.safetensors", trained)
