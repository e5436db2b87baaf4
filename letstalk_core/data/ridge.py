"""Linear maps that are fitted and not trained."""

from __future__ import annotations

import numpy as np


def ridge(x: np.ndarray, y: np.ndarray, share: float) -> np.ndarray:
    """Weights [D,...] of the ridge regression from centred x [n,D] to centred y [n,...], solved on the smaller side.

    share: the penalty, of the variance of x.
    """
    strength = share * len(x) * max(float(x.var()), 1e-12)
    if x.shape[1] <= len(x):
        return np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + strength * np.eye(len(x)), y)
