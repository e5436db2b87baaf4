"""Muon (Jordan 2024): momentum whose matrices are made orthogonal, so that every direction of a weight is learned at
the same pace."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ADAM_SIZE = 0.2  # root mean square of Adam's steps: matrices step as far, so that one learning rate serves both
STEPS, A, B, C = 5, 3.4445, -4.7750, 2.0315  # of the Newton-Schulz iteration towards an orthogonal matrix


class Muon(torch.optim.Optimizer):
    """For weights of layers [out, in, ...], each taken as a matrix [out, in * ...]; not for the first and last ones."""

    def __init__(self, parameters: list[nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.mul_(MOMENTUM).add_(weight.grad)
                ahead = (weight.grad + MOMENTUM * momentum).flatten(1)
                step = ADAM_SIZE * math.sqrt(max(ahead.shape)) * orthogonal(ahead)
                weight.sub_(group["lr"] * step.view_as(weight))


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix [m,n] with all of its singular values near 1 (0.7 to 1.2).

    Each iteration is a polynomial of the square matrix x xT, so the short side's matrices alone are iterated and the
    long one is multiplied twice.
    """
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    one = torch.eye(len(x), device=x.device)
    square, whole = x @ x.T, one
    for _ in range(STEPS):
        factor = A * one + B * square + C * square @ square
        whole, square = factor @ whole, factor @ square @ factor
    x = whole @ x
    return x.T if len(matrix) > matrix.shape[1] else x
