"""Linear maps that are fitted and not trained."""

from __future__ import annotations

import numpy as np


def ridge(x: np.ndarray, y: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D,...] and level [...] of the ridge regression y = x @ weights + level from x [n,D] to y [n,...], solved
    on the smaller side.

    share: the penalty, of the variance that x has around its means.
    """
    mean, level = x.mean(0), y.mean(0)
    weights = _centred(x - mean, y - level, share)
    return weights, level - mean @ weights


def _centred(x: np.ndarray, y: np.ndarray, share: float) -> np.ndarray:
    strength = share * len(x) * max(float(x.var()), 1e-12)
    if x.shape[1] <= len(x):
        return np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + strength * np.eye(len(x)), y)
