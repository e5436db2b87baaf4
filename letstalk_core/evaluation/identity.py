"""A small network that tells drawn people apart: how far a frame's person is from the portrait's.

Trained on renderings, blurred and disturbed as generated frames are; pictures of one person in different poses have to
lie together and those of different people apart. `identity_accuracy` judges it on people it never met.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.drawn.stills import HELD_OUT_POSES, POSES, held_out_pictures, render_pictures
from ..pixels import pixels_to_images
from ..training.loop import Loss, TrainingRun, small_config
from ..weights import read_network, write_network
from .meter import FaceNet, disturb

WEIGHTS = Path(__file__).resolve().parent / "identity.safetensors"
SIZE, WIDTH = 128, 48  # pixels, length of a vector
TEMPERATURE = 0.1  # softmax temperature of the loss


class IdentityNet(FaceNet):
    """Images [n,3,128,128] in -1..1 -> unit vectors [n,48]; the distance of two is 1 - their product, 0 to 2."""

    def __init__(self):
        super().__init__(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(super().forward(images), dim=1)


def train_identity(work: Path, people: int = 2500, steps: int = 2000, batch: int = 32) -> IdentityNet:
    """Train the network in work/identity (resumed if begun), on the autoencoder's training pictures.

    Each step sees two pictures of each of `batch` people and has to find the pairs, by the symmetric cross-entropy of
    CLIP (arXiv 2103.00020).
    """
    pictures = render_pictures(work, people, POSES, SIZE)[0]
    torch.manual_seed(0)
    net = IdentityNet().to(memory_format=torch.channels_last)
    run = TrainingRun(work / "identity", net, small_config(steps, 1.5e-3))

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((11, step))
        chosen = np.sort(rng.choice(people, batch, replace=False)) * POSES
        poses = np.stack([rng.choice(POSES, 2, replace=False) for _ in chosen])  # [batch,2]
        sides = []
        for side in (0, 1):
            images = disturb(pixels_to_images(pictures[chosen + poses[:, side]]), rng)
            gain = torch.from_numpy(rng.uniform(0.9, 1.1, (batch, 3, 1, 1))).float()
            shift = tuple(int(s) for s in rng.integers(-3, 4, 2))
            sides.append(run.module((images * gain).clamp(-1, 1).roll(shift, (2, 3))))
        alike = sides[0] @ sides[1].T / TEMPERATURE  # [batch,batch]
        right = torch.arange(batch)
        loss = (F.cross_entropy(alike, right) + F.cross_entropy(alike.T, right)) / 2
        return Loss(loss, {"found": (alike.argmax(1) == right).float().mean()})

    run.fit(loss_of)
    return run.averaged()


def identity_accuracy(net: IdentityNet, work: Path) -> dict[str, float]:
    """Judge the network on held-out people: "same" and "different", the median distances of two pictures of one person
    and of two; "nearer", how often the former is below the latter (the area under the ROC curve)."""
    vectors = net.read(held_out_pictures(work, SIZE)[0])
    distances = 1 - vectors @ vectors.T
    who = np.arange(len(vectors)) // HELD_OUT_POSES
    above = np.triu(np.ones_like(distances, bool), 1)
    same, other = (distances[above & mask] for mask in (who[:, None] == who, who[:, None] != who))
    nearer = float((np.searchsorted(np.sort(other), same, "right")).mean() / len(other))
    return {"same": float(np.median(same)), "different": float(np.median(other)), "nearer": 1 - nearer}


def load_identity() -> IdentityNet:
    """The network with the weights of this repository, in evaluation mode."""
    return read_network(WEIGHTS, IdentityNet())


if __name__ == "__main__":  # python -m letstalk_core.evaluation.identity WORK_FOLDER makes the file beside this one
    import sys

    work = Path(sys.argv[1])
    trained = train_identity(work)
    print("on held-out people:", identity_accuracy(trained, work))
    write_network(WEIGHTS, trained)
