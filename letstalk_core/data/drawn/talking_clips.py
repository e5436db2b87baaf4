"""Talking clips of drawn portraits: frames, the speech they speak, and every control that is known about them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...audio.load_encoder import load_audio_encoder
from ...audio.recording import SAMPLE_RATE
from ..arrays import open_array
from ..speech.spoken_clips import speech_clip
from ..stored_clips import CONTEXT
from .avatars import Avatar
from .drawing import draw_frames
from .motion import COLUMN, CONTROLS, control_track, rest_controls
from .stills import HELD_OUT

SPEECH_SECONDS = 2.4  # seconds of speech for each clip; the clip is a part of it, so that it begins in mid-speech


@dataclass(frozen=True)
class TalkingClip:
    """One drawn person who speaks one stretch of speech."""

    avatar: Avatar
    portrait: np.ndarray  # uint8 [size, size, 3]
    controls: np.ndarray  # float32 [F, 15], columns motion.CONTROLS; the head begins where the portrait has it
    closed: np.ndarray  # bool [F]: the frame's centre lies in an m, b or p
    waveform: np.ndarray  # float32 [S], 16 kHz

    def frames(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Draw frames start .. start + count - 1 (None: to the end), uint8 [count, size, size, 3]."""
        return draw_frames(self.avatar, self.controls[start : None if count is None else start + count])


def talking_clip(seed: int, seconds: float = SPEECH_SECONDS, size: int = 128, split: str = "train") -> TalkingClip:
    """Make clip number `seed`, each of a new person; "heldout" people, voices and sentences are never trained on."""
    identity = seed + (HELD_OUT if split == "heldout" else 0)
    avatar = Avatar((identity, 0), size)
    rng = np.random.default_rng((identity, 2))
    waveform, mouth = speech_clip(rng, split, seconds)
    controls = control_track(rng, mouth)
    rest = rest_controls(rng)
    # The clip's head begins where the portrait has it, and the portrait keeps its own expression.
    for name in ("yaw", "pitch", "roll", "shift_x", "shift_y"):
        controls[:, COLUMN[name]] += rest[COLUMN[name]] - controls[0, COLUMN[name]]
    rest[COLUMN["smile"]] = controls[0, COLUMN["smile"]]
    return TalkingClip(avatar, draw_frames(avatar, rest)[0], controls, mouth[:, 5] > 0.5, waveform)


def read_count(path: Path) -> int:
    """The number that write_count left in a file; 0 where there is none."""
    return int(path.read_text()) if path.exists() else 0


def write_count(path: Path, count: int) -> None:
    """Write a number into a file, whole or not at all."""
    aside = path.with_suffix(".part")
    aside.write_text(str(count))
    os.replace(aside, path)


class ClipStore:
    """Many short clips in one folder, rendered once: memory-mapped arrays, one row a clip.

    frames uint8 [n, T, size, size, 3]; portraits uint8 [n, size, size, 3]; features float16
    [n, T + 2 * CONTEXT, L, E]; controls float32 [n, T + 2 * CONTEXT, 15]; regions uint8 [n, size, size] (1 mouth,
    2 eyes); starts bool [n], whether the clip begins where the speech begins. InputError where the folder holds others.
    """

    def __init__(self, folder: Path, count: int, length: int, size: int = 128, encoder: str = "whisper"):
        self._encoder = load_audio_encoder(encoder)
        self.folder, self.count, self.length, self.size = folder, count, length, size
        around = length + 2 * CONTEXT
        folder.mkdir(parents=True, exist_ok=True)
        self.frames = self._array("frames", (length, size, size, 3), np.uint8)
        self.portraits = self._array("portraits", (size, size, 3), np.uint8)
        self.features = self._array("features", (around, self._encoder.blocks, self._encoder.channels), np.float16)
        self.controls = self._array("controls", (around, len(CONTROLS)), np.float32)
        self.regions = self._array("regions", (size, size), np.uint8)
        self.starts = self._array("starts", (), np.bool_)

    def _array(self, name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
        """The array in a file of the folder, made if it is missing."""
        return open_array(self.folder / f"{name}.npy", (self.count, *shape), dtype)

    @property
    def done(self) -> int:
        """How many clips are rendered."""
        return read_count(self.folder / "done")

    def render(self, report_every: int = 50) -> None:
        """Render the clips that are missing; safe to stop and call again."""
        for i in range(self.done, self.count):
            self._render_one(i)
            if (i + 1) % report_every == 0 or i + 1 == self.count:
                self.frames.flush()
                write_count(self.folder / "done", i + 1)

    def _render_one(self, i: int) -> None:
        clip = talking_clip(i, SPEECH_SECONDS, self.size)
        total = len(clip.controls)
        rng = np.random.default_rng((i, 3))
        # Half of the clips begin where the speech begins, as a video does: they can follow the portrait itself.
        start = 0 if rng.random() < 0.5 else int(rng.integers(1, total - self.length + 1))
        around = np.clip(np.arange(start - CONTEXT, start + self.length + CONTEXT), 0, total - 1)
        features = self._encoder.encode(torch.from_numpy(clip.waveform), SAMPLE_RATE).numpy()
        self.frames[i] = clip.frames(start, self.length)
        self.portraits[i] = clip.portrait
        self.features[i] = features[around]
        self.controls[i] = clip.controls[around]
        self.regions[i] = clip.avatar.regions()
        self.starts[i] = start == 0

    def asked(self, index: int, around: slice, names: tuple[str, ...]) -> np.ndarray:
        known = {"eyelids": self.controls[index, around, COLUMN["blink"]]}
        unknown = np.full(around.stop - around.start, np.nan, np.float32)
        return np.stack([known.get(name, unknown) for name in names], 1) if names else unknown[:, None][:, :0]

    def pixels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.frames[index].transpose(0, 3, 1, 2), self.portraits[index].transpose(2, 0, 1)
