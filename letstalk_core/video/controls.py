"""What a model is asked for beside its audio, frame by frame: tracks of a user's own, blinks, head motion, expression.

Everything drawn at random follows from the seed and the frame's number alone, so that a part of a video equals the same
part of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import CONTROLS
from ..defaults import BLINKS, MOST_BLINKS, MOST_HEAD_MOTION
from ..diffusion.samplers import clip_generator
from ..errors import InputError

# Eyelid closure from frame to frame at 25 fps: closing is faster than opening.
BLINK_SHAPE = (0.35, 0.9, 1.0, 1.0, 0.75, 0.4, 0.12)
# Of a head at motion 1: deviation in degrees, and seconds from one turn to the next; and so the brows.
HEAD = {"yaw": (3.5, 1.6), "pitch": (2.0, 1.2), "roll": (1.6, 2.0), "brows": (0.15, 0.8)}
GAZE, FIXATION, ASIDE = 0.3, 1.2, 0.5  # deviation of a look aside, seconds from look to look, share of those aside


@dataclass(frozen=True)
class AskedFor:
    """What a face should do, as far as the model knows how; what is drawn at random follows from the seed.

    blinks: a minute, 0 to 60. head_motion: of head, brows and gaze, 0 still, 1 as people do, to 2. None of either
    leaves it to the model. expression: -1 sad to 1 smiling, beside what the portrait has. tracks: of config.CONTROLS,
    each one value for the whole video or one for each of its frames; they come before the three others. Raises
    InputError for values outside their range, NaN, and names that are no controls.
    """

    blinks: float | None = BLINKS
    head_motion: float | None = 1.0
    expression: float = 0.0
    tracks: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self):
        _check("number of blinks a minute", self.blinks, 0, MOST_BLINKS)
        _check("head motion", self.head_motion, 0, MOST_HEAD_MOTION)
        _check("expression", self.expression, -1, 1)
        tracks = {}
        for name, values in self.tracks.items():
            if name not in CONTROLS:
                raise InputError(f"There is no control {name!r}; choose among {', '.join(CONTROLS)}.")
            one = not hasattr(values, "__len__")
            tracks[name] = float(values) if one else tuple(map(float, values))
            for value in (tracks[name],) if one else tracks[name]:
                _check(f"control {name}", value, *CONTROLS[name])
        object.__setattr__(self, "tracks", tracks)

    def check(self, known: tuple[str, ...], frames: int) -> None:
        """Raises InputError where a model that knows these controls, or a recording of so many frames, does not fit."""
        for name, values in self.tracks.items():
            if isinstance(values, tuple) and len(values) != frames:
                raise InputError(
                    f"The track of {name} has {len(values)} values, but the video has {frames} frames; give one for "
                    "each, or a single one."
                )
        asked = list(self.tracks)
        # What everybody has by default, a model need not know.
        asked += ["eyelids"] if self.blinks not in (None, BLINKS) else []
        asked += ["yaw", "pitch", "roll"] if self.head_motion not in (None, 1.0) else []
        asked += ["smile"] if self.expression else []
        if unknown := [name for name in asked if name not in known]:
            raise InputError(
                f"This model can't be asked for {', '.join(unknown)}; it knows {', '.join(known) or 'no controls'}."
            )

    def values(self, known: tuple[str, ...], seed: int, start: int, count: int, fps: float) -> Tensor:
        """What frames start .. start + count - 1 are asked for, [count, n] as `known` names it; NaN where nothing is.

        Frames before the video and beyond its end are asked for what its first and its last one are.
        """
        columns = [self._track(name, seed, start, count, fps) for name in known]
        return torch.stack(columns, 1)

    def _track(self, name: str, seed: int, start: int, count: int, fps: float) -> Tensor:
        if name in self.tracks:
            values = self.tracks[name]
            track = values if isinstance(values, tuple) else (values,)
            return torch.tensor([track[min(max(frame, 0), len(track) - 1)] for frame in range(start, start + count)])
        if name == "eyelids" and self.blinks is not None:
            return blink_schedule(seed, start, count, fps, self.blinks)
        if name == "smile":
            return torch.full((count,), float(self.expression))
        if name == "eyelids" or self.head_motion is None:
            return torch.full((count,), float("nan"))
        most = CONTROLS[name][1]
        if name in HEAD:
            deviation, period = HEAD[name]
            swing = deviation * smooth_noise(seed, name, start, count, period * fps)
        else:
            swing = looks(seed, name, start, count, fps)
        return most * torch.tanh(self.head_motion * swing / most)


def _check(what: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (math.isfinite(value) and least <= value <= most):
        raise InputError(f"The {what} is {value:g}; choose one between {least:g} and {most:g}.")


def blink_schedule(seed: int, start: int, count: int, fps: float, per_minute: float = BLINKS) -> Tensor:
    """Eyelid closure [count] in 0..1 of frames start .. start + count - 1; each depends on the seed alone.

    One blink falls somewhere in each slot of 60 / per_minute seconds.
    """
    closure = torch.zeros(count)
    if per_minute == 0:
        return closure
    slot_frames = 60 / per_minute * fps
    frames = torch.arange(start, start + count, dtype=torch.float64)
    shape = torch.tensor((0.0, *BLINK_SHAPE, 0.0))
    for slot in range(max(0, int(start / slot_frames) - 1), int((start + count) / slot_frames) + 1):
        place = torch.rand((), generator=clip_generator(seed, slot, "blink"), dtype=torch.float64)
        begin = (slot + 0.1 + 0.7 * place) * slot_frames
        at = ((frames - begin) * 25 / fps).clamp(0, len(shape) - 1)
        low = at.floor().long().clamp(max=len(shape) - 2)
        share = (at - low).float()
        closure = torch.maximum(closure, shape[low] * (1 - share) + shape[low + 1] * share)
    return closure


def looks(seed: int, name: str, start: int, count: int, fps: float) -> Tensor:
    """Gaze [count] that rests, mostly on the viewer, and jumps within two frames at 25 fps; each frame depends on the
    seed alone."""
    at = torch.arange(start, start + count, dtype=torch.float64) / (FIXATION * fps)
    first, last = math.floor(start / (FIXATION * fps)) - 1, int(at[-1]) + 1
    begins, targets = [], []
    for slot in range(first, last + 1):
        place, aside = torch.rand(2, generator=clip_generator(seed, slot, "look"), dtype=torch.float64)
        to = torch.randn((), generator=clip_generator(seed, slot, name), dtype=torch.float64)
        begins.append(slot + 0.6 * place)
        targets.append(GAZE * to if aside < ASIDE else 0 * to)
    begins, targets = torch.stack(begins), torch.stack(targets)
    latest = torch.searchsorted(begins, at, right=True) - 1
    done = ((at - begins[latest]) * FIXATION * 12.5).clamp(0, 1)  # of its jump; the one before it is over
    return torch.lerp(targets[(latest - 1).clamp(min=0)], targets[latest], done).float()


def smooth_noise(seed: int, name: str, start: int, count: int, period: float) -> Tensor:
    """Slow random motion [count] of roughly unit deviation, a cubic B-spline with a knot every `period` frames."""
    at = torch.arange(start, start + count, dtype=torch.float64) / period
    first = math.floor(start / period) - 1
    knots = torch.stack(
        [
            torch.randn((), generator=clip_generator(seed, knot, name), dtype=torch.float64)
            for knot in range(first, math.floor((start + count - 1) / period) + 3)
        ]
    )
    below = at.floor()
    t, index = (at - below)[:, None], below.long() - 1 - first
    weights = torch.cat([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    return (1.4 * (weights * knots[index[:, None] + torch.arange(4)]).sum(1)).float()
