"""Videos of a person who speaks, made of a photograph, and what can be wrong with them: for tests of preparation."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
import torch

from letstalk_core.data.people import show
from letstalk_core.pixels import images_to_pixels
from letstalk_core.video.writer import VideoWriter

RATE = 16000
TEXT = "Good morning! Photographs can speak. Every mouth follows the sound, now and then."


@functools.cache
def talk(person: int = 145, text: str = TEXT) -> tuple[np.ndarray, torch.Tensor]:
    """Frames uint8 [T,256,256,3] at 25 a second, and the sound [1,S] at 16 kHz. Needs espeak-ng."""
    speech = show.speak(text)
    frames = torch.cat(list(show.frames_of(show.choose_puppet(person, 0), speech, 0, 0.3)))
    return images_to_pixels(frames).numpy(), torch.from_numpy(speech.waveform)[None]


def write_video(path: Path, frames: np.ndarray, sound: torch.Tensor | None, fps: float = 25.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = None if sound is None else (sound, RATE)
    with VideoWriter(path, frames.shape[2], frames.shape[1], fps, audio, preset="ultrafast") as writer:
        writer.write(np.ascontiguousarray(frames))
    return path


def shifted(sound: torch.Tensor, frames: int) -> torch.Tensor:
    """The sound so many frames later (or earlier), as long as before."""
    return sound.roll(frames * RATE // 25, 1)


def blurred(frames: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def darkened(frames: np.ndarray, share: float) -> np.ndarray:
    return (frames * share).astype(np.uint8)


def pair(frames: np.ndarray) -> np.ndarray:
    """Two people beside each other."""
    return np.concatenate([frames, frames[:, :, ::-1]], 2)
