"""Draws the registry's icon.jpg (square) and banner.jpg (21:9) from photographs in assets/: python docs/make_icon.py

The photographs are of people who do not exist (CC0-1.0). Needs requirements-dev.txt.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.io import wavfile

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent / "assets"
INK, SOUND, PAPER = (24, 26, 32), (255, 176, 64), (240, 240, 244)
ICON, TILE = 400, 270
FACES = (5, 105, 115, 145, 35, 155)
NEAR = (113, 10, 593, 490)  # of portrait.jpg: the head, with room for the sound below


def bars(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], count: int) -> None:
    """The example's sound, as `count` bars from left to right in a box."""
    _, samples = wavfile.read(ASSETS / "speech.wav")
    loud = [np.abs(part.astype(float)).mean() for part in np.array_split(samples, count)]
    left, top, right, bottom = box
    step, middle = (right - left) / count, (top + bottom) / 2
    for index, level in enumerate(np.array(loud) / max(loud)):
        half = max(step / 4, level * (bottom - top) / 2)
        x = left + step * (index + 0.5)
        draw.rounded_rectangle((x - step / 4, middle - half, x + step / 4, middle + half), step / 4, fill=SOUND)


def icon() -> Image.Image:
    picture = (
        Image.open(ASSETS / "portrait.jpg").convert("RGB").crop(NEAR).resize((ICON, ICON), Image.Resampling.LANCZOS)
    )
    shade = Image.new("L", (1, ICON), 0)
    shade.putdata([max(0, round(255 * (y - 0.72 * ICON) / (0.2 * ICON))) for y in range(ICON)])
    picture.paste(INK, mask=shade.resize((ICON, ICON)))
    bars(ImageDraw.Draw(picture), (30, 322, ICON - 30, 392), 17)
    return picture


def banner() -> Image.Image:
    picture = Image.new("RGB", (TILE * 14 // 3, TILE * 2), INK)
    for index, number in enumerate(FACES):
        face = Image.open(ASSETS / "people" / f"{number:03d}.jpg").resize((TILE, TILE), Image.Resampling.LANCZOS)
        picture.paste(face, (picture.width - TILE * (3 - index % 3), TILE * (index // 3)))
    draw = ImageDraw.Draw(picture)
    draw.text((40, 120), "LetsTalk", PAPER, ImageFont.load_default(84))
    bars(draw, (44, 240, 400, 340), 23)
    draw.text((44, 372), "one portrait, one recording:\na talking video", PAPER, ImageFont.load_default(26))
    return picture


if __name__ == "__main__":
    icon().save(HERE / "icon.jpg", quality=85, optimize=True)
    banner().save(HERE / "banner.jpg", quality=75, optimize=True)
