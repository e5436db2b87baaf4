"""The frames of an avatar: eyes, brows, mouth and glasses drawn on its head, the head turned as the controls say."""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

from .avatars import Avatar
from .canvas import Canvas
from .motion import COLUMN

_ARC = np.linspace(-1, 1, 13)


def _arc(half: float, y_edge: float, y_middle: float, power: float) -> np.ndarray:
    """A curve [13, 2] from (-half, y_edge) over (0, y_middle) to (half, y_edge)."""
    points = np.empty((13, 2))
    points[:, 0] = _ARC * half
    points[:, 1] = y_edge + (y_middle - y_edge) * (1 - np.abs(_ARC) ** power)
    return points


def draw_eyes(a: Avatar, canvas: Canvas, c: dict[str, float]) -> None:
    """Eyeballs turned by gaze_x and gaze_y, behind upper lids that come down with `blink`; c: controls by name."""
    for side in (-1, 1):
        centre = np.array([side * a.eye_x, a.eye_y])
        w, h = a.eye_width, a.eye_height
        lower = _arc(w, 0, 0.62 * h, 2.2)
        top = (0.62 - 1.62 * (1 - c["blink"])) * h  # the upper lid comes down to the lower one
        upper = _arc(w, 0, top, 2.2)
        slant = np.array([[1, side * a.eye_slant * 4], [0, 1]])
        upper, lower = upper @ slant + centre, lower @ slant + centre
        shape = np.concatenate([upper, lower[::-1]])
        if c["blink"] < 0.93:
            gaze = np.array([c["gaze_x"] * 0.38 * w, c["gaze_y"] * 0.25 * h])

            def ball(part: Canvas, centre=centre, gaze=gaze, h=h, shape=shape) -> None:
                part.polygon(shape, (246, 245, 242))
                part.circle(centre + gaze, 0.80 * h, a.iris)
                part.circle(centre + gaze, 0.40 * h, (18, 16, 16))
                part.circle(centre + gaze + (0.22 * h, -0.28 * h), 0.17 * h, (255, 255, 255))

            canvas.inside(shape, ball)
        canvas.line(upper, (34, 26, 24) if a.lash > 0.02 else a.lip_dark, a.lash)


def draw_brows(a: Avatar, canvas: Canvas, c: dict[str, float]) -> None:
    """Eyebrows, raised by the control `brow`."""
    dark = tuple(0.82 * np.array(a.hair)) if a.hair_style not in ("scarf", "hat") else (60, 45, 38)
    y = a.brow_y - 0.07 * c["brow"]
    for side in (-1, 1):
        x0, x1 = side * (a.eye_x - a.eye_width * 0.95), side * (a.eye_x + a.eye_width * 1.15)
        t = np.linspace(0, 1, 9)
        centre = np.stack([x0 + (x1 - x0) * t, y - a.brow_arch * np.sin(np.pi * (0.25 + 0.75 * t)) + 0.05 * t**2], 1)
        half = a.brow_thick * (1 - 0.6 * t)[:, None] * np.array([[0, 1]])
        canvas.polygon(np.concatenate([centre - half, (centre + half)[::-1]]), dark)


class MouthShape(NamedTuple):
    """Lengths of a mouth in head units: the opening, half the width of the lips and of the opening, how far the lips
    are apart above and below the middle, the height of the corners, and how thick the lips are."""

    opening: float
    half: float
    inner: float
    up: float
    down: float
    corner: float
    lip_up: float
    lip_down: float


def mouth_shape(a: Avatar, c: dict[str, float]) -> MouthShape:
    opening = max(0.0, c["open"]) * a.mouth_open
    half = a.mouth_width * (1 + 0.20 * c["width"] - 0.38 * c["round"] + 0.10 * c["smile"])
    up, down = 0.30 * opening, 0.70 * opening
    corner = -0.05 * c["smile"] + 0.15 * opening
    lip_up, lip_down = a.lip * (1 + 0.35 * c["round"]), a.lip * (1.25 + 0.35 * c["round"])
    lip_down *= 1 - 0.55 * c["teeth"] * (1 - min(1.0, 3 * c["open"]))  # f and v: the lower lip tucks under the teeth
    inner = half * (0.72 + 0.14 * min(1.0, 2 * c["open"]))
    return MouthShape(opening, half, inner, up, down, corner, lip_up, lip_down)


def draw_mouth(a: Avatar, canvas: Canvas, c: dict[str, float]) -> None:
    """Lips around an opening whose height and width come from the controls; teeth and tongue show inside."""
    opening, half, inner, up, down, corner, lip_up, lip_down = mouth_shape(a, c)
    origin = np.array([0, a.mouth_y])
    upper = _arc(inner, corner, -up, 2.4) + origin
    lower = _arc(inner, corner, down, 2.4) + origin
    top = _arc(half, corner, -up - lip_up, 1.8) + origin
    top[6] += (0, 0.25 * lip_up)  # the cupid's bow
    bottom = _arc(half, corner, down + lip_down, 2.0) + origin
    canvas.polygon(np.concatenate([top, upper[::-1]]), a.lip_shadow)
    canvas.polygon(np.concatenate([upper if opening < 0.01 else lower, bottom[::-1]]), a.lip_colour)
    if opening > 0.012:
        hole = np.concatenate([upper, lower[::-1]])

        def inside(part: Canvas) -> None:
            part.polygon(hole, (72, 22, 26))
            if c["tongue"] > 0.02 or opening > 0.1:
                height = (0.25 + 0.35 * c["tongue"]) * opening
                part.ellipse(origin + (0, down), (inner * 0.62, height), (196, 92, 96))
            bite = (0.18 + 0.30 * c["teeth"]) * (opening + 0.03)
            part.polygon(np.concatenate([upper - (0, 0.05), (upper + (0, bite))[::-1]]), a.teeth_colour)

        canvas.inside(hole, inside)
    else:
        canvas.line(_arc(half * 0.92, corner, 0, 2.2) + origin, a.lip_dark, 0.018)
    if a.outline:
        canvas.line(np.concatenate([top, bottom[::-1], top[:1]]), a.outline, 0.018)


def draw_glasses(a: Avatar, canvas: Canvas) -> None:
    """The frame of the glasses, which moves with the head alone."""
    width = 0.022 if a.glasses == "thin" else 0.04
    w, h = a.eye_width * 1.45, a.eye_width * (1.3 if a.glasses == "round" else 1.0)
    t = np.linspace(0, 2 * np.pi, 25)
    power = 1.0 if a.glasses == "round" else 0.55
    for side in (-1, 1):
        x = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** power * w + side * a.eye_x
        y = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power * h + a.eye_y + 0.03
        canvas.line(np.stack([x, y], 1), a.glasses_colour, width)
        canvas.line(
            [(side * (a.eye_x + w), a.eye_y), (side * a.face_width * 0.98, a.eye_y - 0.03)], a.glasses_colour, width
        )
    gap = a.eye_x - w
    canvas.line([(-gap, a.eye_y), (0, a.eye_y - 0.04), (gap, a.eye_y)], a.glasses_colour, width)


@functools.lru_cache(4)
def _grids(resolution: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A coarse grid of pixel positions, and the positions of all pixels on that grid."""
    coarse = np.linspace(0, resolution - 1, 33, dtype=np.float32)
    fine = np.linspace(0, 32, resolution, dtype=np.float32)
    return tuple(np.meshgrid(coarse, coarse)), tuple(np.meshgrid(fine, fine))


def pose_maps(a: Avatar, c: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Maps x and y, float32 [R, R], as cv2.remap takes them: the place in the painted head that each pixel shows."""
    (x, y), fine = _grids(a.resolution)
    x, y = (x - a.centre[0]) / a.scale - c["shift_x"], (y - a.centre[1]) / a.scale - c["shift_y"]
    cos, sin = np.cos(c["roll"]), np.sin(c["roll"])
    y = y - 0.9  # heads tilt about the neck
    x, y = cos * x + sin * y, cos * y - sin * x + 0.9
    depth = np.sqrt(
        np.clip(1.25 - (x / 1.1) ** 2 - (y / 1.25) ** 2, 0.03, None)
    )  # a turned head moves most in the middle
    x = x - 0.55 * c["yaw"] * depth
    y = y + 0.45 * c["pitch"] * depth
    below = np.clip((y - a.mouth_y) / (1 - a.mouth_y), 0, 1.4)  # the jaw drops with the opening
    y = y - 0.10 * c["open"] * below * below * (3 - 2 * np.clip(below, 0, 1)) * (np.abs(x) < 1.2)
    maps = np.stack([x * a.scale + a.centre[0], y * a.scale + a.centre[1]], -1).astype(np.float32)
    full = cv2.remap(maps, *fine, cv2.INTER_LINEAR)  # smooth maps: computed coarse, then enlarged corner to corner
    return full[..., 0], full[..., 1]


def draw_frame(a: Avatar, controls: np.ndarray) -> np.ndarray:
    """One frame uint8 [size, size, 3] (RGB) for one row of a control track."""
    c = {name: float(controls[i]) for name, i in COLUMN.items()}
    canvas = Canvas(a.head.colour.copy(), None, a.centre, a.scale)
    draw_eyes(a, canvas, c)
    draw_brows(a, canvas, c)
    draw_mouth(a, canvas, c)
    if a.glasses != "none":
        draw_glasses(a, canvas)
    # Shapes drawn on black with soft edges are already multiplied by their alpha, so reducing and adding is exact.
    head = cv2.remap(cv2.merge([canvas.colour, a.head.alpha]), *pose_maps(a, c), cv2.INTER_LINEAR)
    head = cv2.resize(head, (a.size, a.size), interpolation=cv2.INTER_AREA)
    behind = cv2.multiply(a.background, cv2.cvtColor(255 - head[..., 3], cv2.COLOR_GRAY2RGB), scale=1 / 255)
    return a.finish(cv2.add(behind, head[..., :3]))


def draw_frames(avatar: Avatar, controls: np.ndarray) -> np.ndarray:
    """Frames uint8 [F, size, size, 3] (RGB) for a control track [F, 15] (motion.py), or one row of it."""
    return np.stack([draw_frame(avatar, row) for row in np.atleast_2d(controls)])
