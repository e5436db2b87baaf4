"""How far a model does what it is asked for: lids, a turn of the head, a smile, each moved up and down on its own.

    python benchmarks/controls.py [--model FILE] [--pairs 24] [--sheet FILE.png]

Held-out people speak while one control is led through its range twice in three seconds and the head is otherwise still.
Prints JSON, for each control the medians over the people of "r", what the judge reads against what was asked for, of
"extent", the slope of the judge's reading on that of the true frames (1: as far), and of "r_of_true_frames", which is
the judge's own. --sheet: true frames over generated ones, of each control for two people.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.data.people.actors import ASKED
from letstalk_core.data.people.puppet import COLUMN
from letstalk_core.evaluation import measures
from letstalk_core.evaluation.held_out import Pair, held_out_pairs
from letstalk_core.evaluation.meter import READINGS, load_meter
from letstalk_core.evaluation.report import METER, contact_sheet, generate_frames
from letstalk_core.pipeline import BUNDLED_MODEL, LetsTalkPipeline
from letstalk_core.video.clips import SamplingSettings
from letstalk_core.video.controls import AskedFor

SECONDS, TIMES = 3.0, 2
RANGES = {"eyelids": (0.0, 1.0), "yaw": (-12.0, 12.0), "smile": (0.0, 0.8)}  # of config.CONTROLS, degrees for yaw


def led(name: str, frames: int) -> np.ndarray:
    """A control that begins at rest (0) and goes through its range TIMES times, [F]."""
    least, most = RANGES[name]
    phase = 2 * np.pi * TIMES * np.arange(frames) / frames
    return most * np.sin(phase) if least < 0 else most * (1 - np.cos(phase)) / 2


def true_frames(pair: Pair, name: str, track: np.ndarray) -> np.ndarray:
    """The puppet that does it, uint8 [F,S,S,3]."""
    performance, (own, units, relative) = pair.performance, ASKED[name]
    motion = np.repeat(performance.rest[None], len(track), 0)
    for spoken in ("open", "width", "round", "teeth", "tongue", "tuck"):
        motion[:, COLUMN[spoken]] = performance.motion[:, COLUMN[spoken]]
    motion[:, COLUMN[own]] = track / units + (performance.rest[COLUMN[own]] if relative else 0)
    return replace(pair, performance=replace(performance, motion=motion)).frames()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    pipeline, meter = LetsTalkPipeline.load(arguments.model, "cpu"), load_meter(METER)
    found, rows = defaultdict(lambda: defaultdict(list)), []
    pairs = held_out_pairs(arguments.pairs, SECONDS, pipeline.config.image_size)
    for number, pair in enumerate(tqdm(pairs, total=arguments.pairs)):
        for name in RANGES:
            track = led(name, len(pair.closed))
            real = true_frames(pair, name, track)
            asked = AskedFor(blinks=0, head_motion=0, tracks={name: tuple(track.tolist())})
            made = generate_frames(pipeline, pair.portrait, pair.waveform, 16000, SamplingSettings(asked=asked))
            column = READINGS.index(ASKED[name][0])
            read, read_true = meter.read(made)[:, column], meter.read(real)[:, column]
            found[name]["r"].append(measures.correlation(read, track))
            found[name]["extent"].append(measures.slope(read, read_true))
            found[name]["r_of_true_frames"].append(measures.correlation(read_true, track))
            if number < 2:
                rows += [real, made]
    medians = {
        name: {what: round(float(np.median(values)), 3) for what, values in of.items()} for name, of in found.items()
    }
    print(json.dumps(medians, indent=2))
    if arguments.sheet:
        contact_sheet(arguments.sheet, rows)


if __name__ == "__main__":
    main()
