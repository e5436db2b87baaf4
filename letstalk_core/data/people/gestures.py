"""What a puppet does from frame to frame: the drawings' motion, and what faces of flesh do besides."""

from __future__ import annotations

import numpy as np

from ..drawn import motion as drawn
from ..drawn.motion import smooth_noise
from ..speech.visemes import MOUTH
from .puppet import COLUMN, CONTROLS

# How far heads move, as a factor on the drawings' small motion, and how many do so. Real footage has them all.
HEADS = ((0.6, 2.0, 0.65), (2.0, 5.0, 0.25), (5.0, 9.0, 0.10))  # from, to, share
LIMITS = {"yaw": 0.44, "pitch": 0.28, "roll": 0.3, "shift_x": 1.0, "shift_y": 0.7, "size": 0.2}
TUCK = MOUTH.index("tuck")


def head_size(rng: np.random.Generator) -> float:
    """How far a head moves: mostly a little, sometimes far."""
    low, high, _ = HEADS[int(rng.choice(len(HEADS), p=[share for *_, share in HEADS]))]
    return float(rng.uniform(low, high))


def control_track(rng: np.random.Generator, mouth: np.ndarray, head: float | None = None) -> np.ndarray:
    """The whole motion [F, 21] (puppet.CONTROLS) of a clip that speaks `mouth` [F, >= 7] (speech.visemes.MOUTH).

    head: size of the head's motion; None for a random one.
    """
    frames = len(mouth)
    head = head_size(rng) if head is None else head
    track = np.zeros((frames, len(CONTROLS)), np.float32)
    track[:, : len(drawn.CONTROLS)] = drawn.control_track(rng, mouth, head)
    track[:, COLUMN["tuck"]] = mouth[:, TUCK]
    lively = rng.uniform(0.2, 1.0)
    track[:, COLUMN["widen"]] = np.clip(
        lively * 0.4 * smooth_noise(rng, frames, 30) + 0.3 * track[:, COLUMN["brow"]], 0, 1
    )
    track[:, COLUMN["squint"]] = np.clip(
        lively * 0.4 * smooth_noise(rng, frames, 35) + 0.4 * track[:, COLUMN["smile"]], 0, 1
    )
    track[:, COLUMN["jaw"]] = 0.12 * lively * smooth_noise(rng, frames, 12)
    track[:, COLUMN["cheeks"]] = np.clip(rng.normal(0, 0.1) + 0.15 * smooth_noise(rng, frames, 20), -0.3, 0.6)
    track[:, COLUMN["size"]] = head * 0.012 * smooth_noise(rng, frames, 40)
    for name, limit in LIMITS.items():  # softly, so that a head never stands at its limit
        track[:, COLUMN[name]] = limit * np.tanh(track[:, COLUMN[name]] / limit)
    return track


def rest_controls(rng: np.random.Generator) -> np.ndarray:
    """One frame of controls [21] as a portrait shows it: nearly as photographed, lips sometimes apart."""
    rest = np.zeros(len(CONTROLS), np.float32)
    rest[: len(drawn.CONTROLS)] = drawn.rest_controls(rng)
    return rest


def random_mouths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Unconnected shapes [count, 7] (speech.visemes.MOUTH), rare ones included."""
    mouth = np.zeros((count, len(MOUTH)))
    mouth[:, 0] = rng.beta(0.7, 1.3, count) * (rng.random(count) > 0.2)
    mouth[:, 1] = rng.uniform(-1, 1, count)
    mouth[:, 2:5] = rng.beta(0.5, 1.2, (count, 3))
    tucked = rng.random(count) < 0.08
    mouth[tucked, :5] = np.stack(
        [np.full(count, 0.12), mouth[:, 1] * 0.2, mouth[:, 2] * 0, np.full(count, 0.95), mouth[:, 4] * 0], 1
    )[tucked]
    mouth[:, TUCK] = tucked
    return mouth


def random_controls(rng: np.random.Generator, count: int) -> np.ndarray:
    """Unconnected poses [count, 21] that cover what a face can do, far turns and rare shapes included."""
    mouth = random_mouths(rng, count)
    poses = np.stack([control_track(rng, mouth[i : i + 1])[0] for i in range(count)])
    poses[:, COLUMN["blink"]] = np.where(rng.random(count) < 0.35, rng.beta(0.8, 0.6, count), 0)
    poses[:, COLUMN["gaze_x"] : COLUMN["gaze_y"] + 1] = np.clip(rng.normal(0, 0.45, (count, 2)), -1, 1)
    for name in ("brow", "smile", "cheeks", "jaw", "widen", "squint"):
        poses[:, COLUMN[name]] = np.clip(
            poses[:, COLUMN[name]] + rng.normal(0, 0.35, count) * (rng.random(count) < 0.4), -0.6, 1
        )
    return poses.astype(np.float32)
