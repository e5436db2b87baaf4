"""What a face does while somebody else in the picture speaks: it turns and looks there, and nods at times."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from ..audio.recording import SAMPLE_RATE, SampleReader, Sound
from ..config import CONTROLS
from ..diffusion.samplers import clip_generator
from .controls import AskedFor

HOP = SAMPLE_RATE // 100  # samples between two measurements of how loud it is
LOUDEST = 100  # measurements: in a second of the loudest somebody speaks, if ever
QUIETER, FAINT = 25.0, -55.0  # dB below loud speech, and below full scale, where nobody speaks
PAUSE = 0.6  # seconds of silence that belong to speech, half of them before it; and to take a turn
TURN, LOOK = 5.0, 0.45  # degrees of yaw, and gaze, towards who speaks
NOD, NOD_SECONDS, NOD_EVERY, NODS = 4.5, 0.7, 2.6, 0.6  # degrees down; one falls into this share of such slots


def speech_activity(sound: Sound, fps: float, frames: int) -> np.ndarray:
    """How much somebody speaks in each frame, float [frames] in 0..1, with soft beginnings and ends."""
    reader, power = SampleReader((piece[None], SAMPLE_RATE) for piece in sound.mono_16k()), []
    while (samples := reader.read(100 * HOP)[0]).numel():
        power.append(np.array([float(piece.square().mean()) for piece in samples.split(HOP)]))
    level = 10 * np.log10(np.concatenate(power) + 1e-12)
    loud = np.median(np.sort(level)[-LOUDEST:])  # of speech, also where there is little of it in much noise
    spoken = (level > max(loud - QUIETER, FAINT)).astype(float)
    width = round(PAUSE * 100)
    spoken = np.pad(spoken, width)  # numpy's "same" is as long as the longer of the two
    closed = np.convolve(spoken, np.ones(width), "same") > 0
    soft = np.convolve(closed, np.hanning(width) / np.hanning(width).sum(), "same")
    return np.interp((np.arange(frames) + 0.5) / fps * 100, np.arange(len(soft)) - width, soft, right=0.0)


def listening(
    asked: AskedFor, known: Sequence[str], seed: int, own: np.ndarray, others: Sequence[tuple[int, np.ndarray]],
    fps: float,
) -> AskedFor:  # fmt: skip
    """What is asked for of a face, with what it does while others speak, as far as a model knows these controls.

    own: how much it speaks itself in each frame [F]; others: for each other one the side that it is on, -1 left or
    1 right, and how much it speaks. All of it is as large as the head's motion is; tracks that are given stay.
    """
    size, frames = asked.head_motion or 0.0, len(own)
    heard = [(side, activity * (1 - own)) for side, activity in others]
    towards = size * sum(side * activity for side, activity in heard)
    nods = -size * NOD * _nods(seed, frames, fps) * np.clip(sum(activity for _, activity in heard), 0, 1)
    added = {"yaw": TURN * towards, "gaze_x": LOOK * towards, "pitch": nods}
    names = tuple(name for name in added if name in known and name not in asked.tracks)
    if not size or not names:
        return asked
    alone = asked.values(names, seed, 0, frames, fps).numpy().astype(float)
    tracks = {
        name: tuple(np.clip(column + added[name], *CONTROLS[name]).tolist())
        for name, column in zip(names, alone.T, strict=True)
    }
    return dataclasses.replace(asked, tracks={**asked.tracks, **tracks})


def _nods(seed: int, frames: int, fps: float) -> np.ndarray:
    """Where a head nods, [frames] in 0..1: two dips, the second one smaller; they follow from the seed."""
    nods, seconds = np.zeros(frames), (np.arange(frames) + 0.5) / fps
    for slot in range(math.ceil(frames / fps / NOD_EVERY)):
        place, chance = torch.rand(2, generator=clip_generator(seed, slot, "nod"), dtype=torch.float64).tolist()
        if chance < NODS:
            at = (seconds - (slot + 0.4 * place) * NOD_EVERY) / NOD_SECONDS
            for begin, depth in ((0, 1.0), (1, 0.6)):
                inside = np.clip(at - begin, 0, 1)
                nods = np.maximum(nods, depth * np.sin(math.pi * inside) ** 2)
    return nods
