"""Remakes the pictures of README and docs from the bundled model: python docs/make_pictures.py

demo.webp is the demo, frame for frame; demo.png some of its frames; people.png drawn people of the training data;
puppets.jpg twelve photographs as they are and at their controls' extremes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from letstalk_core import LetsTalkPipeline, SamplingSettings  # noqa: E402
from letstalk_core.audio.recording import read_audio  # noqa: E402
from letstalk_core.data.drawn.avatars import Avatar  # noqa: E402
from letstalk_core.data.drawn.drawing import draw_frames  # noqa: E402
from letstalk_core.data.drawn.motion import rest_controls  # noqa: E402
from letstalk_core.data.people.portraits import load_person  # noqa: E402
from letstalk_core.data.people.puppet import COLUMN, CONTROLS, Puppet  # noqa: E402
from letstalk_core.evaluation.report import contact_sheet, generate_frames  # noqa: E402
from letstalk_core.picture.picture_file import read_image  # noqa: E402
from letstalk_core.pixels import pictures_to_pixels  # noqa: E402

ASSETS = HERE.parent / "assets"
# Smiling, bearded, with glasses, turned, old, dark, in hats and scarves; those ending in 5 are held out.
TWELVE = (101, 112, 195, 37, 77, 5, 71, 107, 14, 122, 65, 145)
EXTREMES = (
    {}, {"open": 0.35, "width": 0.6, "teeth": 0.5}, {"open": 1.0, "teeth": 0.3},
    {"open": 0.3, "width": -0.8, "round": 1.0},
    {"open": 0.12, "teeth": 0.95, "tuck": 1.0}, {"open": 0.2, "smile": 1.0, "teeth": 0.5, "width": 0.6}, {"blink": 1.0},
    {"gaze_x": 1.0, "brow": 1.0, "widen": 1.0}, {"squint": 1.0, "smile": -0.6, "cheeks": 1.0}, {"yaw": 0.43},
    {"yaw": -0.43, "open": 0.6}, {"pitch": 0.27}, {"pitch": -0.27, "jaw": 1.0, "open": 0.3}, {"roll": 0.3},
    {"size": -0.2, "shift_x": 0.8, "open": 0.5}, {"size": 0.2, "shift_x": -0.4},
)  # fmt: skip


def demo_frames() -> np.ndarray:
    pipeline = LetsTalkPipeline.load(device="cpu")
    waveform, rate = read_audio(ASSETS / "speech.wav")
    portrait = pipeline.crop(read_image(ASSETS / "portrait.png")).image
    return generate_frames(pipeline, portrait, waveform.mean(0).numpy(), rate, SamplingSettings())


def puppet_sheet() -> Image.Image:
    """A row a person: the photograph, closed lips, then EXTREMES."""
    controls = np.zeros((len(EXTREMES), len(CONTROLS)), np.float32)
    for row, values in zip(controls, EXTREMES, strict=True):
        for name, value in values.items():
            row[COLUMN[name]] = value
    rows = []
    for number in TWELVE:
        puppet = Puppet(load_person(number), np.random.default_rng(number))
        frames = torch.cat([puppet.render(controls[:1], natural=True), puppet.render(controls)])
        rows.append(torch.nn.functional.interpolate(frames, (104, 104), mode="area"))
    sheet = rearrange(pictures_to_pixels(torch.stack(rows)), "people poses c h w -> (people h) (poses w) c")
    return Image.fromarray(sheet.numpy())


if __name__ == "__main__":
    puppet_sheet().save(HERE / "puppets.jpg", quality=84)
    people = [draw_frames(Avatar((seed, 0), 128), rest_controls(np.random.default_rng(seed)))[0] for seed in range(30)]
    contact_sheet(HERE / "people.png", [np.stack(people[i : i + 10]) for i in range(0, 30, 10)], columns=10)
    frames = demo_frames()  # from here on the bundled model is needed
    pictures = [Image.fromarray(frame).resize((256, 256), Image.Resampling.BICUBIC) for frame in frames]
    pictures[0].save(
        HERE / "demo.webp", save_all=True, append_images=pictures[1:], duration=40, loop=0, quality=60, method=4
    )
    contact_sheet(HERE / "demo.png", [frames[10:34], frames[60:84], frames[110:134]], columns=10)
