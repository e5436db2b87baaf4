"""The Fréchet distance of two sets of features, each taken as a Gaussian, and between what it lies.

The distance is |mean a - mean b|^2 + Tr(A + B - 2 (A B)^(1/2)) of the means and the covariances A and B. FID, FVD and
E-FID are this distance of different features. The trace of the root is computed as the sum of the singular values of
Xa Xb^T, where Xa^T Xa = A: no root of a matrix, no complex numbers, and as many rows as there are features to look at.
That makes a bootstrap cheap; torchmetrics' own finds the eigenvalues of a DxD matrix each time (tests compare them).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError

DRAWS = 100  # of the bootstrap


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of features [n,D] and [m,D], at least 2 rows each; 0 for identical sets, never below."""
    if min(len(a), len(b)) < 2:
        raise InputError(f"A Fréchet distance of {len(a)} and {len(b)} features has no meaning; give more clips.")
    a, b = (np.asarray(features, np.float64) for features in (a, b))
    roots = [_root(features) for features in (a, b)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(float((root**2).sum()) for root in roots) - 2 * float(shared)
    return max(0.0, float(((a.mean(0) - b.mean(0)) ** 2).sum()) + spread)


def _root(features: np.ndarray) -> np.ndarray:
    """X with X^T X = the covariance of features [n,D], of at most D rows."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return centred if len(centred) <= centred.shape[1] else np.linalg.qr(centred, "r")


def frechet_interval(a: Sequence[np.ndarray], b: Sequence[np.ndarray], draws: int = DRAWS) -> list[float]:
    """Between what the distance of the features of clips, a list of [n,D] a side, lies in 95 of 100 cases.

    Clips are drawn with replacement, the same of both sides; the interval is 1.96 standard deviations of the draws on
    either side of the distance itself, from 0 on. Not their percentiles: a set with clips in it twice has less spread
    and lies further from everything, so that the draws lie above the distance.
    """
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        chosen = rng.integers(len(a), size=len(a))
        found.append(frechet_distance(*(np.concatenate([side[i] for i in chosen]) for side in (a, b))))
    value = frechet_distance(np.concatenate(a), np.concatenate(b))
    reach = 1.96 * float(np.std(found, ddof=1))
    return [max(0.0, value - reach), value + reach]
