"""How far faces move of what the true ones do, stage by stage: where a mouth that opens too little loses it.

    python benchmarks/movements.py WORK [--model FILE] [--pairs 6] [--sheet FILE.png]

WORK: of an autoencoder's training (train_portrait_autoencoder), with its teacher. Held-out people who speak are decoded
from the latents of their own frames and from what the teacher tells of their motion; --model: a model is asked for that
motion and hears the speech. Prints JSON, for each stage and each of the judge's readings the medians over the pairs of
"extent", the slope on the reading of the true frames (1: as far), and "r" with the truth; "psnr" in dB. --sheet: rows
of true frames over those of each stage, for four pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.data.people.geometry import SIZE
from letstalk_core.evaluation import measures
from letstalk_core.evaluation.held_out import Pair, held_out_pairs
from letstalk_core.evaluation.meter import READINGS, load_meter
from letstalk_core.evaluation.report import METER, STILL, contact_sheet, generate_frames
from letstalk_core.picture.autoencoder import Autoencoder, load_autoencoder
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.pixels import images_to_pixels, pixels_to_images
from letstalk_core.training.bundled.teacher import Teacher
from letstalk_core.training.bundled.train_portrait_autoencoder import teacher_beside
from letstalk_core.video.clips import SamplingSettings
from letstalk_core.video.controls import AskedFor

SECONDS = 2.0


@torch.inference_mode()
def decoded(autoencoder: Autoencoder, teacher: Teacher, pair: Pair, true_frames: np.ndarray) -> dict[str, np.ndarray]:
    """Frames uint8 [F,S,S,3] from their own latents, and from what the teacher tells."""
    portrait, performance = pair.portrait[None], pair.performance
    latents, seen = autoencoder.encode(pixels_to_images(true_frames)), autoencoder.look_at(portrait)
    start, scale = autoencoder.encode(portrait), autoencoder.latent_scale
    motion, rest = (torch.from_numpy(np.float32(part)) for part in (performance.motion, performance.rest))
    controls = torch.stack([motion, rest.expand_as(motion)], 1)
    told = start + scale * teacher(start.expand(len(motion), -1, -1, -1) / scale, controls)
    return {
        name: images_to_pixels(autoencoder.decode(one, seen)).numpy()
        for name, one in (("own latents", latents), ("told", told))
    }


def generated(pipeline: LetsTalkPipeline, pair: Pair) -> np.ndarray:
    asked = AskedFor(tracks=pair.asked(pipeline.config.departures.controls))
    return generate_frames(pipeline, pair.portrait, pair.waveform, 16000, SamplingSettings(asked=asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    path = arguments.work / "autoencoder.safetensors"
    autoencoder, teacher, meter = load_autoencoder(path), Teacher.load(teacher_beside(path)), load_meter(METER)
    pipeline = LetsTalkPipeline.load(arguments.model, "cpu") if arguments.model else None
    found, rows = defaultdict(lambda: defaultdict(list)), []
    for number, pair in enumerate(tqdm(held_out_pairs(arguments.pairs, SECONDS, SIZE), total=arguments.pairs)):
        true_frames = pair.frames()
        stages = decoded(autoencoder, teacher, pair, true_frames)
        if pipeline:
            stages["model"] = generated(pipeline, pair)
        true_read, everywhere = meter.read(true_frames), np.ones((SIZE, SIZE), bool)
        for stage, frames in stages.items():
            read = meter.read(frames)
            for i, name in enumerate(READINGS):
                if pair.track(name).std() > STILL:
                    found[stage][f"{name} extent"].append(measures.slope(read[:, i], true_read[:, i]))
                    found[stage][f"{name} r"].append(measures.correlation(read[:, i], pair.track(name)))
            found[stage]["psnr"].append(measures.masked_psnr(frames, true_frames, everywhere))
        if number < 4:
            rows += [frames[:, ::2, ::2] for frames in (true_frames, *stages.values())]
    medians = {
        stage: {name: round(float(np.median(values)), 3) for name, values in of.items()} for stage, of in found.items()
    }
    print(json.dumps(medians, indent=2))
    if arguments.sheet:
        contact_sheet(arguments.sheet, rows)


if __name__ == "__main__":
    main()
