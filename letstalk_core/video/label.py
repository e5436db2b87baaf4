"""A label that people see: a line of text in the lower left corner of every frame."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import InputError
from .reader import is_transparent, iter_video_frames, probe
from .writer import VideoWriter

LEAST, SHARE = 14, 22  # pixels that letters are high, with what hangs below; a larger picture's height in letters
SHADE = 0.6  # of black behind the letters, so that they can be read on everything
# Beside the letters of English, which Pillow has: where these systems have more of them.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc", "YuGothM.ttc", "malgun.ttf"),
    *("Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf"),
)


class Label:
    """Draws `text` into frames of one size, always the same pixels at the same place.

    InputError where the text is empty, too long for that width, or has characters that no font here has.
    """

    def __init__(self, text: str, width: int, height: int):
        text, size = " ".join(text.split()), max(LEAST, min(width, height) // SHARE)
        if not text:
            raise InputError("The label is empty; give it a text, or leave it out.")
        font = _font_for(text, size)
        around, margin = size // 3, size // 2
        long = round(font.getlength(text)) + 2 * around
        if long + margin > width or 2 * size + margin > height:
            fits = max(0, int(len(text) * (width - margin - 2 * around) / (long - 2 * around)))
            raise InputError(
                f"The label takes {long + margin} pixels, and the picture is {width}x{height}; shorten it to about "
                f"{fits} characters."
            )
        box = Image.new("L", (long, size + 2 * around))
        ImageDraw.Draw(box).text((around, around), text, fill=255, font=font)
        letters = torch.from_numpy(np.asarray(box, np.float32) / 255)[..., None]
        top = height - margin - box.height
        self.rows, self.columns = slice(top, top + box.height), slice(margin, margin + long)
        self._kept, self._added = (1 - SHADE) * (1 - letters), 255 * letters
        self.digest = hashlib.sha256(letters.numpy().tobytes()).hexdigest()

    def draw(self, frames: Tensor) -> Tensor:
        """The frames uint8 [n,H,W,3 or 4], on the CPU, with the label drawn into them."""
        place = frames[:, self.rows, self.columns]
        if frames.shape[-1] == 3:
            place.copy_((place * self._kept + self._added).round())
            return frames
        seen = place[..., 3:] * self._kept  # of the frame's own alpha, behind the label
        alpha = 255 * (1 - self._kept) + seen
        place[..., :3] = ((place[..., :3] * seen + 255 * self._added) / alpha).round()
        place[..., 3:] = alpha.round()
        return frames


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that has all characters of a text."""
    missing = ""
    for name in (None, *FONTS):
        try:
            font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
        except OSError:  # not on this system
            continue
        nothing = bytes(font.getmask("\uffff"))  # what it draws for characters that it lacks
        lacking = "".join(each for each in dict.fromkeys(text) if each != " " and bytes(font.getmask(each)) == nothing)
        if not lacking:
            return font
        missing = lacking if not missing else min(missing, lacking, key=len)
    raise InputError(
        f"The label has characters that no font here can draw ({missing}); use others, or install a font that has "
        "them, such as Noto Sans CJK."
    )


def label_video(source: Path, target: Path, text: str, source_type: str, advance: Callable[[int, int], None]) -> None:
    """Write a video anew with a label in its frames, which have to be encoded again; its sound is kept.

    advance is called with (frames made, frames in all) and cancels by raising. InputError as of Label and VideoWriter.
    """
    transparent = is_transparent(source)
    info, frames = probe(source), iter_video_frames(source, transparent)
    first = next(frames, None)
    if first is None:
        raise InputError(f"{source} has no frames to draw a label into; choose a video with pictures.")
    height, width = first.shape[:2]
    label, sound = Label(text, width, height), source if info.audio_samples else None
    with VideoWriter(
        target, width, height, info.fps, sound, source_type=source_type, transparent=transparent
    ) as writer:
        for frame in chain([first], frames):
            writer.write(label.draw(torch.from_numpy(frame)[None]))
            advance(writer.frames, info.frames)
