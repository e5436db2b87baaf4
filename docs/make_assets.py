"""Draws portrait.png and scene.png and speaks speech.wav in assets/: the inputs of the demo and of the workflows.

Needs flite (apt-get install flite).
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

REPOSITORY = Path(__file__).resolve().parent.parent
ASSETS = REPOSITORY / "assets"
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.data.drawn.avatars import Avatar  # noqa: E402
from letstalk_core.data.drawn.drawing import draw_frames  # noqa: E402
from letstalk_core.data.drawn.motion import COLUMN, CONTROLS  # noqa: E402
from letstalk_core.data.drawn.stills import HELD_OUT  # noqa: E402

PERSON = HELD_OUT + 526
TEXT = (
    "Hello! I am a drawing, and this is my voice. Give me a portrait and a recording, "
    "and I will move my lips to every word."
)


def scene(portrait: Image.Image) -> Image.Image:
    """The portrait in a frame on a wall, 960x576: a picture in which the face is a small part."""
    scale, left, top, side = 2, 304, 64, 352
    canvas = Image.new("RGB", (960 * scale, 576 * scale), (226, 214, 190))
    draw = ImageDraw.Draw(canvas)

    def box(x0, y0, x1, y1, colour):
        draw.rectangle([x0 * scale, y0 * scale, x1 * scale - 1, y1 * scale - 1], fill=colour)

    for x in range(0, 960, 48):
        box(x, 0, x + 24, 470, (220, 207, 182))  # wallpaper
    box(0, 470, 960, 480, (150, 118, 86))
    box(0, 480, 960, 576, (120, 84, 60))
    for border, colour in ((34, (92, 60, 38)), (26, (150, 104, 62)), (10, (240, 232, 214))):
        box(left - border, top - border, left + side + border, top + side + border, colour)
    box(110, 380, 190, 480, (178, 92, 70))
    for x, y, radius in ((150, 230, 46), (120, 280, 40), (182, 284, 40), (150, 320, 50)):  # a plant
        rise = 1.1 * radius
        draw.ellipse(
            [(x - radius) * scale, (y - rise) * scale, (x + radius) * scale, (y + rise) * scale], fill=(84, 130, 88)
        )
    box(812, 230, 820, 480, (70, 70, 76))
    draw.polygon([(x * scale, y * scale) for x, y in ((760, 232), (872, 232), (846, 140), (786, 140))], (238, 196, 110))
    box(784, 470, 848, 480, (70, 70, 76))
    canvas = canvas.resize((960, 576), Image.Resampling.LANCZOS)
    canvas.paste(portrait.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return canvas


if __name__ == "__main__":
    controls = np.zeros(len(CONTROLS), np.float32)
    controls[COLUMN["smile"]] = 0.5
    frame = Image.fromarray(draw_frames(Avatar((PERSON, 0), 512), controls)[0])
    frame.save(ASSETS / "portrait.png", optimize=True)
    scene(frame).save(ASSETS / "scene.png", optimize=True)
    subprocess.run(["flite", "-voice", "slt", "-t", TEXT, "-o", str(ASSETS / "speech.wav")], check=True)
