"""Motion that a user asks for over time: keys of the controls, written as JSON or read off a driving video's face."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..config import CONTROLS
from ..errors import InputError
from .controls import AskedFor

Keys = tuple[tuple[float, float], ...]
EXAMPLE = '{"yaw": [[0, 0], [1.5, 12], [3, 0]], "smile": 0.5}'
COLOURS = (
    (220, 80, 60), (60, 140, 220), (60, 170, 90), (200, 150, 40), (150, 90, 200), (40, 170, 170), (220, 110, 170),
    (120, 120, 120),
)  # fmt: skip


@dataclass(frozen=True)
class Motion:
    """Keys of some of config.CONTROLS: (seconds, value), seconds from 0 on and rising.

    From key to key values change evenly; before the first and after the last they stay. InputError for a name that is
    no control, a value outside its range, NaN, and seconds that do not rise.
    """

    keys: Mapping[str, Keys] = field(default_factory=dict)

    def __post_init__(self):
        for name, keys in self.keys.items():
            if name not in CONTROLS:
                raise InputError(f"There is no control {name!r}; choose among {', '.join(CONTROLS)}.")
            least, most = CONTROLS[name]
            seconds = [key[0] for key in keys]
            if not keys or not all(map(math.isfinite, seconds)) or seconds[0] < 0:
                raise InputError(
                    f"The keys of {name} need seconds from 0 on, each with a value: [[0, 0], [1.5, {most:g}]]."
                )
            if any(later <= earlier for earlier, later in zip(seconds, seconds[1:], strict=False)):
                raise InputError(f"The seconds of the keys of {name} do not rise; put them in order, each once.")
            for at, value in keys:
                if not (math.isfinite(value) and least <= value <= most):
                    raise InputError(
                        f"The control {name} is {value:g} at {at:g} s; choose one between {least:g} and {most:g}."
                    )

    @classmethod
    def parse(cls, text: str) -> Motion:
        """Of JSON like EXAMPLE: for each control one value, or keys [seconds, value]; InputError for anything else."""
        try:
            found = json.loads(text)
            if not isinstance(found, dict):
                raise ValueError("it is no {...}")
            return cls({name: _keys(given) for name, given in found.items()})
        except InputError:  # it was JSON
            raise
        except (ValueError, TypeError) as error:
            raise InputError(f"The motion is not JSON like {EXAMPLE} ({error}).") from error

    @classmethod
    def of_tracks(cls, tracks: Mapping[str, np.ndarray], times: np.ndarray) -> Motion:
        """Of values [F] for the frames of a video, at times [F] in seconds, cut off at the controls' ranges."""
        keys = {}
        for name, track in tracks.items():
            inside = np.clip(track, *CONTROLS[name]).tolist()
            keys[name] = tuple(zip(np.asarray(times).tolist(), inside, strict=True))
        return cls(keys)

    def over(self, other: Motion | None) -> Motion:
        """This motion, and another one's for the controls that it does not lead."""
        return self if other is None else Motion({**other.keys, **self.keys})

    @property
    def seconds(self) -> float:
        """Of the last key."""
        return max((keys[-1][0] for keys in self.keys.values()), default=0.0)

    def tracks(self, frames: int, fps: float) -> dict[str, tuple[float, ...]]:
        """One value for each frame, at its middle, by the controls' names."""
        times = (np.arange(frames) + 0.5) / fps
        return {name: tuple(np.interp(times, *zip(*keys, strict=True)).tolist()) for name, keys in self.keys.items()}

    def added_to(self, asked: AskedFor, frames: int, fps: float) -> AskedFor:
        """What is asked for in a video of so many frames: this motion comes before all else."""
        return dataclasses.replace(asked, tracks={**asked.tracks, **self.tracks(frames, fps)})


def _keys(given) -> Keys:
    if isinstance(given, int | float):
        return ((0.0, float(given)),)
    return tuple((float(seconds), float(value)) for seconds, value in given)


def draw(motion: Motion, size: tuple[int, int] = (768, 320)) -> np.ndarray:
    """The curves of a motion as a picture uint8 [H,W,3] of (width, height), each over its control's range."""
    (width, height), length = size, max(motion.seconds, 1.0)
    picture = np.full((height, width, 3), 255, np.uint8)
    cv2.line(picture, (0, height // 2), (width, height // 2), (225, 225, 225), 1)
    times = np.linspace(0, length, 512)
    for row, (name, keys) in enumerate(motion.keys.items()):
        (least, most), colour = CONTROLS[name], COLOURS[list(CONTROLS).index(name)]
        values = np.interp(times, *zip(*keys, strict=True))
        x, y = times / length * (width - 1), (most - values) / (most - least) * (height - 17) + 8
        points = np.stack([x, y], 1).round().astype(np.int32)
        cv2.polylines(picture, [points], False, colour, 2, cv2.LINE_AA)
        label = f"{name} {least:g}..{most:g}"
        cv2.putText(picture, label, (8, 20 + 18 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    cv2.putText(
        picture,
        f"{length:.1f} s",
        (width - 64, height - 8),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.45,
        (90, 90, 90),
        1,
        cv2.LINE_AA,
    )
    return picture
