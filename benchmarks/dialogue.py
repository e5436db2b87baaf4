"""Two people in one picture, each with a sound of its own: whose mouth follows which sound.

    python benchmarks/dialogue.py [--pictures A B] [--conversations 6] [--sheet FILE.png]

Two held-out people stand side by side and speak held-out sentences, in turns or both at once. Prints JSON, for either
case the median, least and most over all faces of "own", the r of a mouth's opening in the picture with the opening of
the same face when it speaks its sound alone, of "other", with the opening that the other's sound alone gives, and of
"silent", the deviation of the opening while the other one speaks over that while it speaks itself. --pictures: instead
of people of assets/people. --sheet: frames of the first conversation. Needs espeak-ng and requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.audio.recording import SAMPLE_RATE, Recording
from letstalk_core.data.speech.spoken_clips import clip_rng, speech_clip
from letstalk_core.evaluation.held_out import SPEAKING
from letstalk_core.evaluation.measures import correlation
from letstalk_core.evaluation.meter import READINGS, load_meter
from letstalk_core.evaluation.report import METER, contact_sheet
from letstalk_core.files import ASSETS
from letstalk_core.picture.picture_file import read_image
from letstalk_core.picture.similarity import cut
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.render.job import Speaker, VideoJob
from letstalk_core.render.render import paste_into
from letstalk_core.video.clips import SamplingSettings

PEOPLE = (("005", "015"), ("025", "035"), ("045", "055"), ("065", "075"), ("085", "095"), ("105", "115"))  # held out
TURN_SECONDS, TURNS = 3.0, 4
OPEN = READINGS.index("open")


def side_by_side(files) -> np.ndarray:
    """Two pictures as one [H,W,3] in 0..1, so near to each other that the squares around the faces overlap."""
    left, right = (read_image(file) for file in files)
    width = left.shape[1]
    left, right, seam = left[:, width // 8 :], right[:, : -width // 8], width // 16
    ramp = np.linspace(0, 1, seam)[None, :, None]
    middle = left[:, -seam:] * (1 - ramp) + right[:, :seam] * ramp
    return np.concatenate([left[:, :-seam], middle, right[:, seam:]], 1).astype(np.float32)


def voices(number: int, at_once: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two sounds [S] at 16 kHz, and bool [2,TURNS], who speaks in which turn."""
    speaks = np.array([[1, 0] * (TURNS // 2), [0, 1] * (TURNS // 2)]) > 0
    speaks |= at_once
    clips = (speech_clip(clip_rng(seed), "heldout", TURNS * TURN_SECONDS) for seed in itertools.count(1000 * number))
    spoken = (sound for sound, mouth in clips if mouth[:, 0].std() > SPEAKING)  # a few are noise alone
    sounds = np.stack(list(itertools.islice(spoken, 2))).reshape(2, TURNS, -1) * speaks[..., None]
    return sounds.reshape(2, -1).astype(np.float32), speaks


def faces_of(job: VideoJob) -> tuple[list[np.ndarray], np.ndarray]:
    """Each speaker's square of a finished video, uint8 [F,S,S,3], and the video."""
    whole = []
    for frames, _ in job.chunks(job.encode(), 0, job.frames, None, lambda *_: None):
        whole += [pixels.numpy() for pixels in job.pixels(frames)]
    whole = np.concatenate(whole)
    side = job.pipeline.config.image_size
    squares = [np.stack([cut(frame, s.portrait.square, side) for frame in whole]) for s in job.speakers]
    return squares, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs=2)
    parser.add_argument("--conversations", type=int, default=6)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    pipeline, meter = LetsTalkPipeline.load(device="cpu"), load_meter(METER)
    found = {"in turns": [], "at once": []}
    for number in range(arguments.conversations):
        files = arguments.pictures or [ASSETS / "people" / f"{name}.jpg" for name in PEOPLE[number % len(PEOPLE)]]
        picture = side_by_side(files)
        portraits = [pipeline.crop(picture, face) for face in ("left", "right")]
        pastes = [paste_into(pipeline, picture, portrait, portraits) for portrait in portraits]
        for kind, rows in found.items():
            sounds, speaks = voices(number, kind == "at once")
            speakers = [
                Speaker(portrait, Recording((torch.from_numpy(sound), SAMPLE_RATE)), SamplingSettings(seed=who), paste)
                for who, (portrait, sound, paste) in enumerate(zip(portraits, sounds, pastes, strict=True))
            ]
            made, whole = faces_of(VideoJob(pipeline, tuple(speakers)))
            alone = [faces_of(VideoJob(pipeline, (speaker,)))[0][0] for speaker in speakers]
            rows += measured(meter, made, alone, np.repeat(speaks, len(whole) // TURNS, 1))
            if arguments.sheet and number == 0:
                contact_sheet(arguments.sheet.with_stem(f"{arguments.sheet.stem}_{kind.replace(' ', '_')}"), [whole])
    print(json.dumps({kind: summary(rows) for kind, rows in found.items()}, indent=2))


def measured(meter, made: list[np.ndarray], alone: list[np.ndarray], speaks: np.ndarray) -> list[dict[str, float]]:
    """For each face: r with its own and with the other's sound alone, and what moves while it listens."""
    read, read_alone = [meter.read(frames)[:, OPEN] for frames in made], [meter.read(f)[:, OPEN] for f in alone]
    rows = []
    for who, opening in enumerate(read):
        own = speaks[who][: len(opening)]
        row = {"own": correlation(opening, read_alone[who]), "other": correlation(opening, read_alone[1 - who])}
        if not own.all():
            row["silent"] = float(opening[~own].std() / opening[own].std())
        rows.append(row)
    return rows


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": round(float(np.median([row[name] for row in rows])), 3),
            "least": round(min(row[name] for row in rows), 3),
            "most": round(max(row[name] for row in rows), 3),
        }
        for name in rows[0]
    }


if __name__ == "__main__":
    main()
