"""Every measure of videos against the real clips that they should equal, with intervals and what was not computed."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from ..data.preparation.syncnet import FPS as SYNCNET_FPS
from . import measures
from .clip_judges import Judges
from .clip_sets import RATES_ALIKE, ClipSet
from .feature_networks import Networks
from .frechet import frechet_distance, frechet_interval
from .measure_table import FRECHET, MEASURES
from .report import evenly_spaced

SHEET_CLIPS = 6


def compare(clips: ClipSet, networks: Networks) -> tuple[dict, list[np.ndarray]]:
    """All measures of all rows of a set, ready for JSON, and some frames of the first clips, the real ones first.

    "rows": by row and measure {"value", "interval" (95 %), "clips"}; "each_clip": the numbers by row and clip;
    "not_computed": why, by measure. Clips are read or made one at a time, and only their features are kept.
    """
    judges, sheet = Judges(networks), []
    numbers: dict[str, dict[str, dict]] = {row: {} for row in clips.rows}
    made: dict[str, list[dict]] = {row: [] for row in clips.rows}
    real, frames, silent = [], 0, 0
    for clip in tqdm(clips.clips(), total=len(clips.names), desc="clips", disable=None):
        seen = judges.look(clip)
        real.append(judges.features(clip.real, seen.square))
        for row, video in clip.made.items():
            numbers[row][clip.name] = judges.numbers(row, seen, clips.clip_frames)
            made[row].append(real[-1] if video is clip.real else judges.features(video, seen.square))
        frames, silent = frames + len(clip.real), silent + (clip.waveform is None)
        if len(real) <= SHEET_CLIPS:
            sheet += [evenly_spaced(video) for video in (clip.real, *clip.made.values())]
    rows = {row: _summary(numbers[row], made[row], real) for row in clips.rows}
    about = {
        "clips": len(clips.names),
        "frames": frames,
        "fps": clips.fps,
        "size": list(clips.size),
        "resized": clips.resized,
        "clip_frames": clips.clip_frames,
    }
    missing = _not_computed(rows, networks, clips.fps, silent)
    return {**about, "rows": rows, "not_computed": missing, "each_clip": _finite(numbers)}, sheet


def _summary(numbers: dict[str, dict], made: list[dict], real: list[dict]) -> dict[str, dict]:
    """{"value", "interval", "clips"} by measure: means over the clips, and Fréchet distances of all of them."""
    found = {}
    for name in MEASURES:
        if name in FRECHET and name in made[0]:
            sides = [[each[name] for each in side] for side in (made, real)]
            value = frechet_distance(*map(np.concatenate, sides))
            found[name] = {"value": value, "interval": frechet_interval(*sides), "clips": len(made)}
            continue
        values = np.array([row[name] for row in numbers.values() if name in row], float)
        values = values[np.isfinite(values)]
        if len(values):
            interval = measures.bootstrap_interval(values, of=np.mean)
            found[name] = {"value": float(values.mean()), "interval": interval, "clips": len(values)}
    return found


def _not_computed(rows: dict[str, dict], networks: Networks, fps: float, silent: int) -> dict[str, str]:
    """Why a measure is in no row, by its name."""
    reasons = {}
    for name, measure in MEASURES.items():
        if any(name in row for row in rows.values()):
            continue
        if measure.network and getattr(networks, measure.network) is None:
            reasons[name] = f"needs FILE (--{measure.network})"
        elif measure.network == "syncnet" and abs(fps - SYNCNET_FPS) >= RATES_ALIKE:
            reasons[name] = f"needs {SYNCNET_FPS:g} frames a second, not {fps:g}"
        elif measure.network == "syncnet" and silent:
            reasons[name] = "needs clips with sound"
        else:
            reasons[name] = "has no meaning for these clips"
    return reasons


def _finite(numbers: dict[str, dict[str, dict]]) -> dict:
    """Without NaN, which JSON does not have: None."""
    return {
        row: {
            clip: {name: value if np.isfinite(value) else None for name, value in each.items()}
            for clip, each in clips.items()
        }
        for row, clips in numbers.items()
    }
