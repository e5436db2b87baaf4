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
SIZE, REDUCED = 256, 128  # pixels of a face, and of a face reduced
MOUTH_ROWS, MOUTH_COLUMNS = slice(116, 244), slice(64, 192)  # of a face: where mouths are, in pixels
FEATURES, AT_ONCE = 128, 64  # numbers before the last layer; frames
PICTURES_OF_EACH = 4  # of a person in a batch
SMALLER_SHARE = 0.25  # of the batches, as if they came from pictures of 128 pixels
_COLUMNS = [COLUMN[name] for name in READINGS]
_MIRRORED = torch.tensor([-1.0 if name == "yaw" else 1.0 for name in READINGS])


def convolutions() -> nn.Sequential:
    """Images [n,3,128,128] in -1..1 -> features [n,96,4,4]: what the judges of generated faces have in common."""
    layers, widths = nn.Sequential(), (3, 16, 32, 64, 96, 96)
    for low, high in zip(widths[:-1], widths[1:], strict=True):
        layers.append(nn.Conv2d(low, high, 3, stride=2, padding=1))
        layers.append(nn.GroupNorm(8, high))
        layers.append(nn.SiLU())
    return layers


class FaceNet(nn.Module):
    """A judge of faces in images [n,3,S,S] in -1..1, which it brings to its own size."""

    @torch.inference_mode()
    def read(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 [n,S,S,3] -> what forward gives for them, float32."""
        parts = [self(pixels_to_images(frames[i : i + AT_ONCE])) for i in range(0, len(frames), AT_ONCE)]
        return torch.cat(parts).numpy()


class FaceMeter(FaceNet):
    """Images [n,3,S,S] in -1..1 -> readings [n,6], columns READINGS, in the units of puppets' controls.

    It sees the whole face at half the size and the mouth as it is: lips that part move by a few pixels.
    """

    def __init__(self):
        super().__init__()
        self.face, self.mouth = convolutions(), convolutions()
        self.joined = nn.Sequential(nn.Linear(2 * 96 * 16, FEATURES), nn.SiLU())
        self.last = nn.Linear(FEATURES, len(READINGS))

    def features(self, images: Tensor) -> Tensor:
        """What the last layer takes, [n,128]."""
        if images.shape[-1] != SIZE:
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        mouth = self.mouth(images[:, :, MOUTH_ROWS, MOUTH_COLUMNS])
        return self.joined(torch.cat([self.face(reduced(images)).flatten(1), mouth.flatten(1)], dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.features(images))


def reduced(images: Tensor) -> Tensor:
    """Images [n,3,S,S] at 128 pixels."""
    return F.interpolate(images, (REDUCED, REDUCED), mode="area")


def disturb(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images [n,3,S,S] with blur and noise of random strength, as autoencoders leave behind."""
    if rng.random() < 0.6:
        images = _blurred(images, rng.uniform(0.3, 1.3))
    if rng.random() < 0.5:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
        images = images + rng.uniform(0, 0.06) * noise
    return images


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Images [n,3,S,S] under a Gaussian of `sigma` pixels, as matrix products: less than half of convolutions' time."""
    at = torch.arange(images.shape[-1], dtype=torch.float32)
    weights = torch.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
    weights[weights < 1e-6] = 0  # numbers too small for their exponent take a CPU ten times as long
    weights = weights / weights.sum(1, keepdim=True)
    return weights @ images @ weights.T


def train_meter(
    work: Path, puppets: int = PUPPETS, speaking: int = SPEAKING, start: Path | None = None, steps: int = 6000,
    batch: int = 48,
) -> FaceMeter:  # fmt: skip
    """Train the network in work/meter (resumed if begun), on the pictures of the portrait-guided autoencoder: half of a
    batch, a multiple of 8, are puppets in all poses, half people and drawings who speak. start: weights to go on from.

    What differs between the pictures of one person counts twice: within a clip a judge has to see how a mouth moves.
    """
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
        images, targets = _changed(normalise(torch.cat(pictures)), rng), torch.cat(readings)
        if rng.random() < 0.5:
            images, targets = images.flip(3), targets * _MIRRORED
        errors = ((run.module(images) - targets) / unit).unflatten(0, (-1, PICTURES_OF_EACH))
        return Loss(errors.square().mean() + (errors - errors.mean(1, keepdim=True)).square().mean())

    run.fit(loss_of)
    return run.averaged()


def _changed(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images [n,3,256,256] shifted, sometimes smaller, and disturbed."""
    images = images.roll(tuple(int(s) for s in rng.integers(-8, 9, 2)), (2, 3))
    if rng.random() < SMALLER_SHARE:
        images = F.interpolate(reduced(images), (SIZE, SIZE), mode="bilinear")
    return disturb(images, rng)


def _some(source: PeoplePictures, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random pictures uint8 [count,3,256,256], PICTURES_OF_EACH of a person in a row, and what is to be read from them,
    [count,6]."""
    people = rng.integers(len(source), size=count // PICTURES_OF_EACH).repeat(PICTURES_OF_EACH)
    poses = rng.permuted(np.tile(np.arange(POSES + 1), (count // PICTURES_OF_EACH, 1)), axis=1)[:, :PICTURES_OF_EACH]
    readings = source.controls[people, poses.ravel()][:, _COLUMNS]
    return torch.from_numpy(source.pictures[people, poses.ravel()]), torch.from_numpy(readings)


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
