"""Remakes the pictures of README and docs from the bundled model: python docs/make_pictures.py

demo.webp is the demo, frame for frame; demo.png some of its frames; people.png drawn people of the training data.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from letstalk_core import LetsTalkPipeline, SamplingSettings  # noqa: E402
from letstalk_core.audio.recording import read_audio  # noqa: E402
from letstalk_core.data.drawn.avatars import Avatar  # noqa: E402
from letstalk_core.data.drawn.drawing import draw_frames  # noqa: E402
from letstalk_core.data.drawn.motion import rest_controls  # noqa: E402
from letstalk_core.evaluation.report import contact_sheet, generate_frames  # noqa: E402
from letstalk_core.picture.portrait import read_image  # noqa: E402

ASSETS = HERE.parent / "assets"


def demo_frames() -> np.ndarray:
    pipeline = LetsTalkPipeline.load(device="cpu")
    waveform, rate = read_audio(ASSETS / "speech.wav")
    portrait = pipeline.crop(read_image(ASSETS / "portrait.png")).image
    return generate_frames(pipeline, portrait, waveform.mean(0).numpy(), rate, SamplingSettings())


if __name__ == "__main__":
    people = [draw_frames(Avatar((seed, 0), 128), rest_controls(np.random.default_rng(seed)))[0] for seed in range(30)]
    contact_sheet(HERE / "people.png", [np.stack(people[i : i + 10]) for i in range(0, 30, 10)], columns=10)
    frames = demo_frames()  # from here on the bundled model is needed
    pictures = [Image.fromarray(frame).resize((256, 256), Image.Resampling.BICUBIC) for frame in frames]
    pictures[0].save(
        HERE / "demo.webp", save_all=True, append_images=pictures[1:], duration=40, loop=0, quality=60, method=4
    )
    contact_sheet(HERE / "demo.png", [frames[10:34], frames[60:84], frames[110:134]], columns=10)
