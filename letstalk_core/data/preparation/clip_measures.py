"""Numbers of one clip that the filters judge: of its square, its faces and its sound. All are pure functions."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from ...audio.recording import SAMPLE_RATE, Recording
from ...picture.face import Face
from ...picture.similarity import apply
from ...video.listening import speech_activity

STEP = 5  # frames between two that are compared
SMALL = 64  # pixels of the side at which motion is measured: grain and the codec's noise are gone there
EXAMINED = 8  # frames of a clip whose sharpness is measured
JUDGED = 128  # pixels of the side at which it is, so that it does not depend on the size of the square
FRAME = 0.01  # seconds of a measurement of loudness
STEADY = 6.0  # dB between soft and loud moments, below which a sound is a hum or noise and not speech


def greys(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T,S,S,3] -> grey uint8 [T,S,S]."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def sharpness(grey: np.ndarray) -> float:
    """Median over a few of the frames of the standard deviation of the Laplacian, in grey levels at 128 pixels."""
    chosen = np.unique(np.linspace(0, len(grey) - 1, EXAMINED).round().astype(int))
    small = (cv2.resize(grey[number], (JUDGED, JUDGED), interpolation=cv2.INTER_AREA) for number in chosen)
    return float(np.median([cv2.Laplacian(picture, cv2.CV_32F).std() for picture in small]))


def brightness(grey: np.ndarray) -> float:
    """Mean grey level, 0..255."""
    return float(grey.mean())


def motion(grey: np.ndarray) -> float:
    """Mean change of a grey level within a fifth of a second, at 64 pixels; 0 for a still picture."""
    if len(grey) <= STEP:
        return 0.0
    small = np.stack([cv2.resize(one, (SMALL, SMALL), interpolation=cv2.INTER_AREA) for one in grey]).astype(np.float32)
    return float(np.abs(small[STEP:] - small[:-STEP]).mean())


def inside_share(faces: list[Face], square: np.ndarray, size: int, width: int, height: int) -> float:
    """The share of frames whose whole face, from the brows to the chin, lies in the picture and in the square [2,3]."""
    whole = 0
    for face in faces:
        places = apply(square, face.points)
        in_picture = (face.points >= 0).all() and (face.points <= (width, height)).all()
        whole += bool(in_picture and (places >= 0).all() and (places <= size).all())
    return whole / len(faces)


def speech_share(samples: torch.Tensor) -> float:
    """The share of a sound [n] at 16 kHz in which somebody speaks, by its loudness; a steady sound is no speech."""
    hop = round(FRAME * SAMPLE_RATE)
    if len(samples) < 20 * hop:
        return 0.0
    power = samples[: len(samples) // hop * hop].view(-1, hop).square().mean(1)
    low, high = np.percentile(10 * np.log10(power.numpy() + 1e-12), (5, 95))
    if high - low < STEADY:
        return 0.0
    fps = 25.0
    activity = speech_activity(Recording((samples, SAMPLE_RATE)), fps, max(int(len(samples) / SAMPLE_RATE * fps), 1))
    return float((activity > 0.5).mean())
