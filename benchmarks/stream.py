"""What a live stream costs against a recording that is there as a whole: mouths, borders of clips, and lateness.

    python benchmarks/stream.py [PAIRS]

Held-out people (default: 12) speak held-out sentences, whose sound comes in pieces of 20 ms. Medians over the people:
r of the mouth as the judge of `evaluate` reads it against the true one, how much more a border of clips jumps than
other frames do, and, as medians over the clips, the seconds that one takes to compute and by how much its first frame
is late: the clip itself, what is waited for after it, and the computing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.evaluation.held_out import Pair, held_out_pairs
from letstalk_core.evaluation.measures import border_jump, correlation
from letstalk_core.evaluation.meter import READINGS, load_meter
from letstalk_core.evaluation.report import METER, generate_frames, whole_portrait
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.video.clips import SamplingSettings
from letstalk_core.video.controls import AskedFor

RATE = 16000
PIECE = RATE // 50  # samples
SECONDS = 4.0  # of each pair
MOUTH = ("open", "width", "round")
WAYS = ((16, 0.12), (16, 0.08), (16, 0.48), (12, 0.12), (8, 0.12), (4, 0.12))  # frames of a clip, lookahead in seconds


def streamed(pipeline: LetsTalkPipeline, pair: Pair, clip_frames: int, lookahead: float) -> tuple[np.ndarray, list]:
    """Frames uint8 [F,H,W,3], and the seconds that each clip took."""
    took, frames, began = [], [], [0.0]

    def arriving() -> Iterator[torch.Tensor]:
        for piece in torch.from_numpy(pair.waveform).split(PIECE):
            began[0] = time.perf_counter()
            yield piece

    portrait = whole_portrait(pair.portrait)
    for made in pipeline.stream(portrait, arriving(), RATE, settings_of(pair), clip_frames, lookahead):
        took.append(time.perf_counter() - began[0])
        frames.append(made.numpy())
    return np.concatenate(frames), took[:-1]  # the last clip may be short


def settings_of(pair: Pair) -> SamplingSettings:
    """Head and lids as the model's own, so that a stream could be asked for them, too."""
    return SamplingSettings(asked=AskedFor(head_motion=0.0 if pair.still else 1.0))


def main() -> None:
    pipeline, meter = LetsTalkPipeline.load(), load_meter(METER)
    size = pipeline.config.image_size
    pairs = list(held_out_pairs(int(sys.argv[1]) if len(sys.argv) > 1 else 12, SECONDS, size))
    print(f"| way | {' | '.join(MOUTH)} | border jump | s a clip | late, s |\n|---|---|---|---|---|---|---|")
    for way in (None, *WAYS):
        rows, times = [], []
        for pair in pairs:
            if way is None:
                portrait, clip = pair.portrait, pipeline.config.transformer.clip_frames
                frames = generate_frames(pipeline, portrait, pair.waveform, RATE, settings_of(pair))
            else:
                clip = way[0]
                frames, took = streamed(pipeline, pair, *way)
                times += took
            read = meter.read(frames)
            found = [correlation(read[:, READINGS.index(name)], pair.track(name)) for name in MOUTH]
            rows.append([*found, border_jump(frames, clip)])
        name = "a recording" if way is None else f"{way[0]} frames, {way[1]:g} s ahead"
        cells = [f"{value:.2f}" for value in np.nanmedian(rows, axis=0)]
        if times:
            seconds = float(np.median(times))
            cells += [f"{seconds:.2f}", f"{way[0] / pipeline.config.fps + way[1] + seconds:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
