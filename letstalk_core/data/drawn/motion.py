"""What a drawn portrait does from frame to frame: mouth shapes from speech, blinks, brows, gaze and head motion."""

from __future__ import annotations

import numpy as np

from ...video.controls import BLINK_SHAPE

# Columns of a control track [F, 15]. The mouth's come from the speech (data/speech/visemes.py); head angles are in
# radians, shifts in units of half a face height.
CONTROLS = (
    "open", "width", "round", "teeth", "tongue",
    "blink", "brow", "gaze_x", "gaze_y", "yaw", "pitch", "roll", "shift_x", "shift_y", "smile",
)  # fmt: skip
COLUMN = {name: i for i, name in enumerate(CONTROLS)}
MOUTH_COLUMNS = 5  # the first ones of a control track
FPS = 25.0  # of every track
BLINKS_PER_MINUTE = 20.0


def smooth_noise(rng: np.random.Generator, frames: int, period: float) -> np.ndarray:
    """Slow random motion [F] of roughly unit size that changes direction about every `period` frames."""
    knots = int(np.ceil(frames / period)) + 4
    values = rng.standard_normal(knots)
    position = rng.uniform(0, 1) + np.arange(frames) / period
    index = position.astype(int)
    t = (position - index)[:, None]
    weights = np.concatenate(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )  # cubic B-spline: continuous speed and acceleration
    return (weights / 6 * values[index[:, None] + np.arange(4)]).sum(1) * 1.4


def blink_track(rng: np.random.Generator, frames: int, per_minute: float) -> np.ndarray:
    """Eyelid closure [F] in 0..1 with blinks at random times, never closer than 0.8 s."""
    track = np.zeros(frames + len(BLINK_SHAPE), np.float32)
    mean_gap = 60 * FPS / per_minute
    at = rng.uniform(0, mean_gap)
    while at < frames:
        i = int(at)
        track[i : i + len(BLINK_SHAPE)] = np.maximum(track[i : i + len(BLINK_SHAPE)], BLINK_SHAPE)
        at += 0.8 * FPS + rng.exponential(mean_gap - 0.8 * FPS)
    return track[:frames]


def gaze_track(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Gaze [F, 2] in -1..1: fixations of about a second joined by jumps of two frames, mostly at the viewer."""
    track, i = np.zeros((frames, 2), np.float32), 0
    target = np.zeros(2)
    while i < frames:
        hold = int(rng.uniform(12, 60))
        track[i : i + hold] = target
        i += hold
        target = rng.normal(0, 0.35, 2) * (rng.random() < 0.6)
    kernel = np.array([0.25, 0.5, 0.25])
    padded = np.pad(track, ((1, 1), (0, 0)), mode="edge")
    return np.clip(sum(k * padded[j : j + frames] for j, k in enumerate(kernel)), -1, 1).astype(np.float32)


def control_track(rng: np.random.Generator, mouth: np.ndarray, head: float = 1.0) -> np.ndarray:
    """The whole motion [F, 15] of a clip that speaks `mouth` [F, >= 5] (open, width, round, teeth, tongue).

    head: size of the head's motion. It is small by default: a shift of a few pixels changes latents more than speech
    does, and a small model then learns it before it learns to speak.
    """
    frames = len(mouth)
    track = np.zeros((frames, len(CONTROLS)), np.float32)
    track[:, :MOUTH_COLUMNS] = mouth[:, :MOUTH_COLUMNS]
    track[:, COLUMN["blink"]] = blink_track(rng, frames, BLINKS_PER_MINUTE)
    track[:, COLUMN["gaze_x"] : COLUMN["gaze_y"] + 1] = gaze_track(rng, frames)

    # Heads nod and brows rise a little with the stressed (wide open) parts of speech.
    accent = np.convolve(mouth[:, 0], np.ones(9) / 9, mode="same")[:frames]
    lively = rng.uniform(0.4, 1.2)
    track[:, COLUMN["brow"]] = np.clip(0.35 * smooth_noise(rng, frames, 18) + 0.7 * lively * (accent - 0.2), -1, 1)
    for name, size, period in (
        ("yaw", 0.05, 24), ("pitch", 0.035, 20), ("roll", 0.016, 26), ("shift_x", 0.011, 28), ("shift_y", 0.01, 26),
    ):  # fmt: skip
        track[:, COLUMN[name]] = head * lively * size * smooth_noise(rng, frames, period)
    track[:, COLUMN["pitch"]] += 0.03 * lively * (accent - 0.2)
    track[:, COLUMN["smile"]] = np.clip(rng.normal(0, 0.3) + 0.15 * smooth_noise(rng, frames, 40), -0.6, 1)
    return track


def rest_controls(rng: np.random.Generator) -> np.ndarray:
    """One frame of controls [15] as a portrait shows it: mouth mostly closed, eyes open, head nearly straight."""
    mouth = np.zeros((1, MOUTH_COLUMNS), np.float32)
    if rng.random() < 0.35:  # some portraits smile with teeth or stand with lips apart
        mouth[0] = [rng.uniform(0.05, 0.6), rng.uniform(-0.3, 0.8), rng.uniform(0, 0.4), rng.random(), 0]
    rest = control_track(rng, mouth, head=2.0)[0]
    # Pictures that people bring are framed a pixel or two off (picture/face.py).
    rest[COLUMN["shift_x"] : COLUMN["shift_y"] + 1] += rng.normal(0, 0.025, 2)
    rest[COLUMN["blink"]] = 0.3 * max(0.0, rng.normal(-0.5, 0.5))
    return rest
