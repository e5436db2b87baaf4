"""Draws drawing.png and speaks speech.wav and dialogue.flac in assets/: inputs of the demo and of the workflows.

The photographs there are of four of the people in assets/people, whom no training sees: whole pictures of people who do
not exist (faker-js/assets-person-portrait, made by Stable Diffusion 3, CC0-1.0). portrait.jpg is number 065, scene.jpg
155, two.jpg 085 beside 125.

Needs requirements-dev.txt.
"""

import sys
from pathlib import Path

import av
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
from letstalk_core.data.speech.augment import change_speed_pitch  # noqa: E402
from letstalk_core.data.speech.synthesis import SAMPLE_RATE, Speech, Voice, join, synthesize  # noqa: E402

PERSON = HELD_OUT + 526
VOICE = Voice("kokoro", "en-us", "jf_nezumi")  # held out
SENTENCES = (
    "Hello! I do not exist, and this is not my voice.",
    "Give me a portrait and a recording, and I will move my lips to every word.",
)
DIALOGUE = (
    "Have you heard? Now two of us can talk.",
    "Yes! And each one listens to the other.",
    "Nobody has to hold the camera.",
)
LOWER = 0.8  # the second speaker's voice, by speed and pitch: no other held-out one sounds like it


def example_speech() -> Speech:
    """What speech.wav says."""
    speech = join([synthesize(text, VOICE, 185, seed=1) for text in SENTENCES], [0.0, 0.0])
    return speech.crop(0.2, speech.phonemes[-1][1])  # the last one is silence


def write_flac(path: Path, waveforms: np.ndarray) -> None:
    """Of float32 [2,S] at SAMPLE_RATE."""
    samples = np.round(waveforms * (0.7 * 32767 / np.abs(waveforms).max())).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = SAMPLE_RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])


def example_dialogue() -> np.ndarray:
    """What dialogue.flac says: float32 [2,S], left and right in turns."""
    spoken = [synthesize(text, VOICE, 185, seed=2) for text in DIALOGUE]
    spoken[1] = change_speed_pitch(synthesize(DIALOGUE[1], VOICE, 185 / LOWER, seed=2), LOWER)
    silent = [np.zeros_like(speech.waveform) for speech in spoken]
    waveforms = [speech.waveform for speech in spoken]
    left, right = [waveforms[0], silent[1], waveforms[2]], [silent[0], waveforms[1], silent[2]]
    return np.stack([np.concatenate(left), np.concatenate(right)])


if __name__ == "__main__":
    controls = np.zeros(len(CONTROLS), np.float32)
    controls[COLUMN["smile"]] = 0.5
    Image.fromarray(draw_frames(Avatar((PERSON, 0), 512), controls)[0]).save(ASSETS / "drawing.png", optimize=True)
    waveform = example_speech().waveform
    samples = np.round(waveform * (0.7 * 32767 / np.abs(waveform).max())).astype(np.int16)
    wavfile.write(ASSETS / "speech.wav", SAMPLE_RATE, samples)
    write_flac(ASSETS / "dialogue.flac", example_dialogue())
