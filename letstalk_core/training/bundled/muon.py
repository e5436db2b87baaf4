"""Muon (Jordan 2024): momentum whose matrices are made orthogonal, so that every direction of a weight is learned at
the same pace."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ADAM_SIZE = 0.2  # root mean square of Adam's steps: matrices step as far, so that one learning rate serves both
STEPS, A, B, C = 5, 3.4445, -4.7750, 2.0315  # of the Newton-Schulz iteration towards an orthogonal matrix


class Muon(torch.optim.Optimizer):
    """For weights of layers [out, in, ...], each taken as a matrix [out, in * ...]; not for the first and last ones.

    Weights of one shape are computed together: on a GPU one by one takes longer to ask for than to do.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                alike[weight.shape].append(weight)
            for weights in alike.values():
                self._step(weights, group["lr"])

    def _step(self, weights: list[nn.Parameter], rate: float) -> None:
        """Of weights of one shape."""
        gradients = [weight.grad for weight in weights]
        momenta = [self.state[weight].setdefault("momentum", torch.zeros_like(weight)) for weight in weights]
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        ahead = torch.stack(torch._foreach_add(gradients, momenta, alpha=MOMENTUM)).flatten(2)
        steps = ADAM_SIZE * math.sqrt(max(ahead.shape[1:])) * orthogonal(ahead)
        torch._foreach_sub_(weights, [step.view_as(weight) for step, weight in zip(steps, weights)], alpha=rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [...,m,n] with all of their singular values near 1 (0.7 to 1.2).

    Each iteration is a polynomial of the square matrix x xT, so the short side's matrices alone are iterated and the
    long one is multiplied twice.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    one = torch.eye(x.shape[-2], device=x.device)
    square, whole = x @ x.mT, one
    for _ in range(STEPS):
        factor = A * one + B * square + C * square @ square
        whole, square = factor @ whole, factor @ square @ factor
    x = whole @ x
    return x.mT if tall else x
