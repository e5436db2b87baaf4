"""Draws drawing.png and speaks speech.wav in assets/: inputs of the demo and of the workflows.

portrait.jpg and scene.jpg there are numbers 065 and 155 of the people in assets/people, whom no training sees: whole
photographs of two people who do not exist (faker-js/assets-person-portrait, made by Stable Diffusion 3, CC0-1.0).

Needs requirements-dev.txt.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import wavfile

REPOSITORY = Path(__file__).resolve().parent.parent
ASSETS = REPOSITORY / "assets"
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.data.drawn.avatars import Avatar  # noqa: E402
from letstalk_core.data.drawn.drawing import draw_frames  # noqa: E402
from letstalk_core.data.drawn.motion import COLUMN, CONTROLS  # noqa: E402
from letstalk_core.data.drawn.stills import HELD_OUT  # noqa: E402
from letstalk_core.data.speech.synthesis import SAMPLE_RATE, Speech, Voice, join, synthesize  # noqa: E402

PERSON = HELD_OUT + 526
VOICE = Voice("kokoro", "en-us", "jf_nezumi")  # held out
SENTENCES = (
    "Hello! I do not exist, and this is not my voice.",
    "Give me a portrait and a recording, and I will move my lips to every word.",
)


def example_speech() -> Speech:
    """What speech.wav says."""
    speech = join([synthesize(text, VOICE, 185, seed=1) for text in SENTENCES], [0.0, 0.0])
    return speech.crop(0.2, speech.phonemes[-1][1])  # the last one is silence


if __name__ == "__main__":
    controls = np.zeros(len(CONTROLS), np.float32)
    controls[COLUMN["smile"]] = 0.5
    Image.fromarray(draw_frames(Avatar((PERSON, 0), 512), controls)[0]).save(ASSETS / "drawing.png", optimize=True)
    waveform = example_speech().waveform
    samples = np.round(waveform * (0.7 * 32767 / np.abs(waveform).max())).astype(np.int16)
    wavfile.write(ASSETS / "speech.wav", SAMPLE_RATE, samples)
