"""A small network that tells drawn people apart: how far a frame's person is from the portrait's.

Trained on renderings, blurred and disturbed as generated frames are; pictures of one person in different poses have to
lie together and those of different people apart. `accuracy` judges it on people it never met.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.pictures import HELD_OUT_POSES, POSES, held_out_pictures, render_pictures
from ..training.autoencoder import to_images
from ..training.loop import TrainingRun
from .meter import disturb

WEIGHTS = Path(__file__).resolve().parent / "identity.safetensors"
SIZE, WIDTH = 128, 48
TEMPERATURE = 0.1


class IdentityNet(nn.Module):
    """Images [n,3,128,128] in -1..1 -> unit vectors [n,48]; the distance of two people is 1 - their product, 0 to 2."""

    def __init__(self):
        super().__init__()
        widths = (3, 16, 32, 64, 96, 96)
        self.layers = nn.Sequential()
        for low, high in zip(widths[:-1], widths[1:], strict=True):
            self.layers.append(nn.Conv2d(low, high, 3, stride=2, padding=1))
            self.layers.append(nn.GroupNorm(8, high))
            self.layers.append(nn.SiLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.layers(images)), dim=1)

    @torch.inference_mode()
    def read(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 [n,128,128,3] -> unit vectors float32 [n,48]."""
        return torch.cat([self(to_images(frames[i : i + 64])) for i in range(0, len(frames), 64)]).numpy()


def train_identity(work: Path, people: int = 2500, steps: int = 2000, batch: int = 32) -> IdentityNet:
    """Train in work/identity (resumed if begun), on the autoencoder's training pictures: each step sees two pictures of
    each of `batch` people and has to find the pairs."""
    pictures = render_pictures(work, people, POSES, SIZE)[0]
    torch.manual_seed(0)
    run = TrainingRun(work / "identity", IdentityNet().to(memory_format=torch.channels_last), steps, peak=1.5e-3)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((11, step))
        chosen = np.sort(rng.choice(people, batch, replace=False)) * POSES
        poses = np.stack([rng.choice(POSES, 2, replace=False) for _ in chosen])  # [batch,2]
        sides = []
        for side in (0, 1):
            images = disturb(to_images(pictures[chosen + poses[:, side]]), rng)
            gain = torch.from_numpy(rng.uniform(0.9, 1.1, (batch, 3, 1, 1))).float()
            shift = tuple(int(s) for s in rng.integers(-3, 4, 2))
            sides.append(run.module((images * gain).clamp(-1, 1).roll(shift, (2, 3))))
        alike = sides[0] @ sides[1].T / TEMPERATURE  # [batch,batch]
        right = torch.arange(batch)
        loss = (F.cross_entropy(alike, right) + F.cross_entropy(alike.T, right)) / 2
        return loss, {"loss": loss.item(), "found": (alike.argmax(1) == right).float().mean().item()}

    run.fit(loss_of)
    return run.averaged.eval()


def accuracy(net: IdentityNet, work: Path) -> dict[str, float]:
    """On held-out people: median distances of one person's pictures and of two people's, and how often a random pair of
    one person is nearer than a random pair of two (the area under the curve)."""
    vectors = net.read(held_out_pictures(work, SIZE)[0])
    distances = 1 - vectors @ vectors.T
    who = np.arange(len(vectors)) // HELD_OUT_POSES
    above = np.triu(np.ones_like(distances, bool), 1)
    same, other = (distances[above & mask] for mask in (who[:, None] == who, who[:, None] != who))
    nearer = float((np.searchsorted(np.sort(other), same, "right")).mean() / len(other))
    return {"same": float(np.median(same)), "different": float(np.median(other)), "nearer": 1 - nearer}


def load_identity(path: Path = WEIGHTS) -> IdentityNet:
    net = IdentityNet()
    net.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return net.eval()


if __name__ == "__main__":  # python -m letstalk_core.evaluation.identity WORK_FOLDER makes the file beside this one
    import sys

    work = Path(sys.argv[1])
    trained = train_identity(work)
    print("on held-out people:", accuracy(trained, work))
    save_file({key: value.half().contiguous() for key, value in trained.state_dict().items()}, WEIGHTS)
