"""Whether a sound is of the mouth that is seen: the mouth opening that the ear hears against the one that is measured.

Both are series of one clip, a value a frame. Where the sound is another's they have little in common; where it lies off
the picture, their quick changes have most in common at another lag.
"""

from __future__ import annotations

import numpy as np

MOST_LAG = 12  # frames of either sign at which the two are compared
OVERLAP = 3  # no more than one in so many frames of a clip: what is left of a short one agrees by chance
QUICK = 10  # frames; changes within so many tell the lag, slower ones are of phrases and agree at many lags
NEAR, CLEARER = 2, 0.1  # a lag of more frames is believed where it agrees by so much more than all smaller ones
CLEAR = 0.3  # correlation of the quick changes from which on their lag is believed


def compare_lips(heard: np.ndarray, seen: np.ndarray) -> tuple[float, int | None]:
    """(r, lag) of two openings [F]: the largest correlation over lags of up to MOST_LAG frames, or a third of a short
    clip, and the lag at which their quick changes agree best (clearly so, where it is a large one).

    A positive lag means that the sound comes later than the mouth; None where they do not agree clearly anywhere.
    """
    r, _ = _best(heard, seen)
    heard, seen = _quick(heard), _quick(seen)
    clear, lag = _best(heard, seen)
    near, near_lag = _best(heard, seen, NEAR)
    if clear - near < CLEARER:  # of many far lags one agrees by chance in a short clip
        clear, lag = near, near_lag
    return r, lag if clear >= CLEAR else None


def _best(heard: np.ndarray, seen: np.ndarray, most: int = MOST_LAG) -> tuple[float, int]:
    found, most = [], min(most, len(heard) // OVERLAP)
    for lag in range(-most, most + 1):
        x, y = (heard[lag:], seen[: len(seen) - lag]) if lag >= 0 else (heard[:lag], seen[-lag:])
        found.append((correlation(x, y), -abs(lag), lag))
    r, _, lag = max(found)
    return r, lag


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two series [n]; 0 where either is constant, or they are shorter than half a second."""
    if len(a) < MOST_LAG or a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _quick(values: np.ndarray) -> np.ndarray:
    values, kernel = np.asarray(values, float), np.hanning(2 * QUICK + 3)[1:-1]
    around = np.pad(values, QUICK, mode="reflect" if len(values) > QUICK else "edge")
    return values - np.convolve(around, kernel / kernel.sum(), "valid")
