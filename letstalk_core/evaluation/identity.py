"""A small network that tells people and drawings apart: how far a frame's person is from the portrait's.

Trained on puppets and drawings who speak, blurred and disturbed as generated frames are; pictures of one person in
different poses have to lie together and those of different people apart. `identity_accuracy` judges it on people it
never met.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.people.talking import SpeakingPictures
from ..pixels import normalise
from ..training.loop import Loss, TrainingRun, small_config
from ..weights import read_network, write_network
from .meter import FaceNet, convolutions, disturb, reduced

WEIGHTS = Path(__file__).resolve().parent / "identity.safetensors"
WIDTH = 48  # length of a vector
PEOPLE, HELD_OUT_PEOPLE = 2400, 100
TEMPERATURE = 0.1  # softmax temperature of the loss


class IdentityNet(FaceNet):
    """Images [n,3,S,S] in -1..1 -> unit vectors [n,48]; the distance of two is 1 - their product, 0 to 2."""

    def __init__(self):
        super().__init__()
        self.layers = convolutions()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.layers(reduced(images))), dim=1)


def train_identity(work: Path, people: int = PEOPLE, steps: int = 2000, batch: int = 32) -> IdentityNet:
    """Train the network in work/identity (resumed if begun), on the pictures of people who speak in work/speaking.

    Each step sees two pictures of each of `batch` people and has to find the pairs, by the symmetric cross-entropy of
    CLIP (arXiv 2103.00020).
    """
    source = SpeakingPictures(work / "speaking", people).make(os.cpu_count() or 1)
    torch.manual_seed(0)
    net = IdentityNet()
    run = TrainingRun(work / "identity", net, small_config(steps, 1.5e-3))

    def loss_of(step: int) -> Loss:
        rng = np.random.default_rng((11, step))
        chosen = rng.choice(people, batch, replace=False)
        poses = np.stack([rng.choice(source.pictures.shape[1], 2, replace=False) for _ in chosen])  # [batch,2]
        sides = []
        for side in (0, 1):
            images = disturb(reduced(normalise(torch.from_numpy(source.pictures[chosen, poses[:, side]]))), rng)
            gain = torch.from_numpy(rng.uniform(0.9, 1.1, (batch, 3, 1, 1))).float()
            shift = tuple(int(s) for s in rng.integers(-3, 4, 2))
            sides.append(run.module((images * gain).clamp(-1, 1).roll(shift, (2, 3))))
        alike = sides[0] @ sides[1].T / TEMPERATURE  # [batch,batch]
        right = torch.arange(batch)
        loss = (F.cross_entropy(alike, right) + F.cross_entropy(alike.T, right)) / 2
        return Loss(loss, {"found": (alike.argmax(1) == right).float().mean()})

    run.fit(loss_of)
    return run.averaged()


@torch.inference_mode()
def identity_accuracy(net: IdentityNet, work: Path) -> dict[str, float]:
    """Judge the network on held-out people: "same" and "different", the median distances of two pictures of one person
    and of two; "nearer", how often the former is below the latter (the area under the ROC curve)."""
    held = SpeakingPictures(work / "speaking-heldout", HELD_OUT_PEOPLE, held_out=True).make(os.cpu_count() or 1)
    vectors = torch.cat([net(normalise(torch.from_numpy(pictures))) for pictures in held.pictures]).numpy()
    distances = 1 - vectors @ vectors.T
    who = np.arange(len(vectors)) // held.pictures.shape[1]
    above = np.triu(np.ones_like(distances, bool), 1)
    same, other = (distances[above & mask] for mask in (who[:, None] == who, who[:, None] != who))
    nearer = float((np.searchsorted(np.sort(other), same, "right")).mean() / len(other))
    return {"same": float(np.median(same)), "different": float(np.median(other)), "nearer": 1 - nearer}


def load_identity() -> IdentityNet:
    """The network with the weights of this repository, in evaluation mode."""
    return read_network(WEIGHTS, IdentityNet())


if __name__ == "__main__":  # python -m letstalk_core.evaluation.identity WORK [PEOPLE] makes the file beside this one
    import sys

    work = Path(sys.argv[1])
    trained = train_identity(work, *map(int, sys.argv[2:3]))
    print("on held-out people:", identity_accuracy(trained, work))
    write_network(WEIGHTS, trained)
