"""Draws portrait.png and speaks speech.wav, the inputs of the demo. Needs flite (apt-get install flite)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from letstalk_core.data.avatars import Avatar  # noqa: E402
from letstalk_core.data.motion import COLUMN, CONTROLS  # noqa: E402
from letstalk_core.data.pictures import HELD_OUT  # noqa: E402

PERSON = HELD_OUT + 526
TEXT = (
    "Hello! I am a drawing, and this is my voice. Give me a portrait and a recording, "
    "and I will move my lips to every word."
)

if __name__ == "__main__":
    controls = np.zeros(len(CONTROLS), np.float32)
    controls[COLUMN["smile"]] = 0.5
    frame = Avatar((PERSON, 0), 512).render(controls)[0]
    Image.fromarray(frame).save(HERE / "portrait.png", optimize=True)
    subprocess.run(["flite", "-voice", "slt", "-t", TEXT, "-o", str(HERE / "speech.wav")], check=True)
