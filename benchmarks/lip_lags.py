"""How often is the sound of short clips said to be off their lips? Puppets who speak, in clips of several lengths.

    python benchmarks/lip_lags.py [PEOPLE]    # default: 10

Prints a table: of clips of so many frames with their own sound, the share whose lag is said to be more than 3 frames;
of those with somebody else's, the share that the filters of `prepare` reject; of those with their own sound 7 frames
late, the share that is found out. Needs espeak-ng.
"""

import sys
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.data.people import show  # noqa: E402
from letstalk_core.data.preparation.clip_steps import openings  # noqa: E402
from letstalk_core.data.preparation.ear_opening import load_ear  # noqa: E402
from letstalk_core.data.preparation.face_tracks import FaceTracker  # noqa: E402
from letstalk_core.data.preparation.lip_timing import compare_lips  # noqa: E402
from letstalk_core.data.preparation.preparation_settings import Thresholds  # noqa: E402
from letstalk_core.data.speech.sentences import random_sentence  # noqa: E402
from letstalk_core.pixels import images_to_pixels  # noqa: E402

LENGTHS, LATE, SENTENCES, FIRST_PERSON = (26, 32, 38, 50, 100), 7, 4, 30
LIMITS = Thresholds()


def spoken(person: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The mouth's opening as it is heard and as it is seen, [F] each."""
    speech = show.speak(" ".join(random_sentence(rng, "en-us") for _ in range(SENTENCES)))
    tracker, ear, faces = FaceTracker(), load_ear(), []
    for frames in show.frames_of(show.choose_puppet(person, 0), speech, person, 0.3):
        faces += [tracker.follow(pixels)[0] for pixels in images_to_pixels(frames).numpy()]
    heard = ear.opening(ear.encoder.encode(torch.from_numpy(speech.waveform), 16000))
    frames = min(len(heard), len(faces))
    return heard[:frames], openings(faces)[:frames]


def off(heard: np.ndarray, seen: np.ndarray) -> bool:
    _, lag = compare_lips(heard, seen)
    return lag is not None and abs(lag) > LIMITS.lips_lag


def main(people: int) -> None:
    rng = np.random.default_rng(5)
    tracks = [spoken(FIRST_PERSON + number, rng) for number in range(people)]
    print(
        "| frames | clips | own sound, said to be off | another's, rejected | 7 frames late, found |\n"
        + "|---" * 5
        + "|"
    )
    for length in LENGTHS:
        own, other, late = [], [], []
        for (heard, seen), (another, _) in zip(tracks, [*tracks[1:], tracks[0]], strict=True):
            for start in range(0, len(seen) - length + 1, length // 2):
                part, clip = slice(start, start + length), seen[start : start + length]
                own.append(off(heard[part], clip))
                if start + length <= len(another):
                    other.append(off(another[part], clip) or compare_lips(another[part], clip)[0] < LIMITS.lips_r)
                if start >= LATE:
                    late.append(off(heard[start - LATE : start + length - LATE], clip))
        print(f"| {length} | {len(own)} | {np.mean(own):.1%} | {np.mean(other):.0%} | {np.mean(late):.0%} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
