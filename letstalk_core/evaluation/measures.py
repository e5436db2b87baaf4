"""Numbers from frames and readings; everything here is a pure function."""

from __future__ import annotations

import numpy as np

CLOSED_BELOW = 0.06  # lips that read as open by less than this above what the true closed ones read are closed
BLINK_ABOVE = 0.5  # an eyelid closure above this counts as closed


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two series [n]; 0 where either is constant."""
    if len(a) < 2 or a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def slope(a: np.ndarray, b: np.ndarray) -> float:
    """How far a series [n] moves where another [n] moves by one; 0 where that is constant."""
    return float(np.cov(a, b)[0, 1] / b.var(ddof=1)) if len(b) > 1 and b.std() > 1e-6 else 0.0


def lagged_correlation(a: np.ndarray, b: np.ndarray, most: int = 8) -> tuple[float, int]:
    """(best r, its lag in frames) over lags of up to `most`; a positive lag means that a comes later than b."""
    found = []
    for lag in range(-most, most + 1):
        x, y = (a[lag:], b[: len(b) - lag]) if lag >= 0 else (a[:lag], b[-lag:])
        found.append((correlation(x, y), lag))
    return max(found)


def border_jump(frames: np.ndarray, clip_frames: int) -> float:
    """Mean change between frames [F,H,W,3] at the borders of clips, over the mean change inside clips; NaN where there
    is no border, or where nothing moves."""
    steps = zip(frames[:-1], frames[1:], strict=True)  # two frames at a time: a video is large as float32
    change = np.array([np.abs(after.astype(np.float32) - before).mean() for before, after in steps], np.float32)
    at_border = (np.arange(1, len(frames)) % clip_frames) == 0
    if not at_border.any() or not change[~at_border].any():
        return float("nan")
    return float(change[at_border].mean() / change[~at_border].mean())


def bootstrap_interval(values: np.ndarray, draws: int = 2000, of=np.median) -> list[float]:
    """Between which the median (or another function of an axis) of values [n] lies in 95 of 100 draws of n of them,
    with replacement."""
    drawn = np.random.default_rng(0).choice(values, (draws, len(values)))
    return np.percentile(of(drawn, 1), (2.5, 97.5)).tolist()


def blinks_per_minute(closure: np.ndarray, fps: float) -> float:
    """Blinks a minute in eyelid closures [F] of 0..1: runs of frames with closed eyes."""
    closed = closure > BLINK_ABOVE
    return float((closed[1:] & ~closed[:-1]).sum() / (len(closure) / fps / 60))


def closed_share(opening: np.ndarray, closed: np.ndarray, rest: float) -> tuple[int, int]:
    """(frames with closed lips, frames) among those of m, b and p; opening [F] of 0..1, closed bool [F].

    rest: what the closed lips of that person read as, since a meter reads a moustache or thin lips as a little open.
    """
    return int((opening[closed] < rest + CLOSED_BELOW).sum()), int(closed.sum())


def masked_psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB of uint8 frames [F,H,W,3] inside mask [H,W]."""
    error = ((a[:, mask].astype(np.float32) - b[:, mask].astype(np.float32)) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def envelope(waveform: np.ndarray, sample_rate: int, frames: int, fps: float) -> np.ndarray:
    """Loudness of each frame [F]: the root mean square of its samples, of a mono waveform [S]."""
    edges = (np.arange(frames + 1) * sample_rate / fps).astype(int)
    values = [
        np.sqrt((waveform[a:b] ** 2).mean()) if b > a else 0.0 for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    return np.array(values, np.float32)
