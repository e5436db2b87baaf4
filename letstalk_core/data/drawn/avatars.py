"""Drawn portraits: a random person (skin, hair, age, glasses, beard, style, background, light) from a seed.

`Avatar(seed)` chooses a person and paints what does not move; drawing.py draws the frames on it.
Geometry is in head units: origin in the middle of the face, x to the right, y down, half a face height = 1.
"""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import Canvas

SKIN = [
    (255, 224, 196), (250, 214, 184), (241, 194, 160), (232, 184, 148), (224, 172, 128), (208, 154, 110),
    (190, 132, 90), (168, 112, 74), (141, 92, 60), (115, 74, 48), (92, 58, 40), (74, 46, 33),
]  # fmt: skip
HAIR = [
    (28, 22, 20), (48, 34, 28), (74, 50, 34), (104, 70, 42), (138, 94, 54), (176, 132, 78), (214, 176, 112),
    (232, 204, 150), (150, 62, 34), (184, 88, 44), (120, 116, 112), (176, 174, 172), (222, 220, 216),
    (60, 84, 150), (150, 70, 130), (62, 120, 96),
]  # fmt: skip
EYES = [(74, 48, 30), (98, 66, 38), (60, 92, 124), (88, 130, 150), (78, 108, 72), (110, 112, 110), (40, 32, 30)]
EYE_ROW, MOUTH_ROW = 0.465, 0.70  # where the eyes and the mouth lie, in picture heights
HAIR_STYLES = ("bald", "short", "side", "fringe", "long", "curly", "bun", "spiky", "receding", "hat", "scarf", "bob")
STYLES = ("soft",) * 6 + ("flat",) * 3 + ("outlined",) * 4 + ("painted",) * 4 + ("grey", "sepia")

_LUMA = np.array([[0.299, 0.587, 0.114]])
COLOUR_MATRIX = {"grey": np.repeat(_LUMA, 3, 0), "sepia": np.array([[1.05], [0.93], [0.76]]) * _LUMA}


def _tone(colour, factor: float) -> tuple[float, float, float]:
    """A colour made darker (factor < 1) or mixed with white (factor > 1)."""
    c = np.asarray(colour, np.float32)
    c = c * factor if factor <= 1 else 255 - (255 - c) * (2 - factor)
    return tuple(float(v) for v in np.clip(c, 0, 255))


def _mirrored(right: list, middle: tuple[float, float] | None = None) -> list:
    """Points from left to right: the right half's mirror image, the middle, the right half."""
    return [(-x, y) for x, y in reversed(right)] + ([middle] if middle else []) + right


def _smooth_field(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth random values [size, size] of about unit size."""
    return cv2.resize(
        rng.standard_normal((cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )


class Avatar:
    """One drawn person. The same seed and size give the same pictures.

    Args:
        seed: any non-negative integer, or a tuple of them.
        size: side of the rendered frames in pixels.
    """

    def __init__(self, seed, size: int = 128):
        rng = np.random.default_rng(seed)
        self.size = size
        self.resolution = 2 * size  # painted twice as large, then reduced: smooth edges and sub-pixel motion
        self._choose(rng)
        self.background = cv2.resize(self._paint_background(rng), (size, size), interpolation=cv2.INTER_AREA)
        self.head = self._paint_head(rng)
        if self.style not in ("flat", "outlined"):
            shade = self._light(rng)[..., None]
            self.head.colour[:] = np.clip(self.head.colour * shade, 0, 255).astype(np.uint8)

    def _choose(self, rng: np.random.Generator) -> None:
        """Draw everything that makes the person."""
        self.style = str(rng.choice(STYLES))
        self.age = rng.choice(["child", "adult", "adult", "adult", "old"])
        masculine = rng.random() < 0.5
        self.skin = tuple(np.clip(np.array(SKIN[rng.integers(len(SKIN))]) + rng.normal(0, 6, 3), 20, 255))
        if rng.random() < 0.03:  # blue, green or violet people also exist in drawings
            self.skin = tuple(rng.uniform(80, 220, 3))
        self.hair = HAIR[rng.integers(13)] if rng.random() < 0.93 else HAIR[13 + rng.integers(3)]
        if self.age == "old" and rng.random() < 0.8:
            self.hair = HAIR[10 + rng.integers(3)]
        self.hair_style = str(rng.choice(HAIR_STYLES))
        self.iris = EYES[rng.integers(len(EYES))]
        self.face_width = rng.uniform(0.70, 0.86)
        self.jaw = rng.uniform(0.06, 0.34)
        self.eye_x, self.eye_y = rng.uniform(0.29, 0.37), rng.uniform(-0.22, -0.06)
        self.eye_width = rng.uniform(0.145, 0.19) * (1.15 if self.age == "child" else 1)
        self.eye_height = self.eye_width * rng.uniform(0.5, 0.78)
        self.eye_slant = rng.normal(0, 0.05)
        self.lash = rng.uniform(0.010, 0.03) if masculine else rng.uniform(0.018, 0.045)
        self.brow_thick = rng.uniform(0.02, 0.05) * (1.35 if masculine else 0.9)
        self.brow_y = self.eye_y - rng.uniform(0.19, 0.28)
        self.brow_arch = rng.uniform(0.02, 0.08)
        self.nose_y = rng.uniform(0.19, 0.28)
        self.nose_kind = int(rng.integers(4))
        self.mouth_y = self.nose_y + rng.uniform(0.25, 0.32)
        # Give or take a pixel, eyes and mouths lie at the same places: then opening the mouth changes people alike.
        self.scale = self.resolution * (MOUTH_ROW - EYE_ROW) / (self.mouth_y - self.eye_y) * rng.normal(1, 0.01)
        middle = np.array([0, (self.mouth_y + self.eye_y) / 2]) * self.scale
        place = np.array([0.5, (MOUTH_ROW + EYE_ROW) / 2]) + rng.normal(0, 0.005, 2)
        self.centre = self.resolution * place - middle  # the origin, in pixels
        self.mouth_width = rng.uniform(0.25, 0.34)
        self.lip = rng.uniform(0.035, 0.075)
        self.mouth_open = rng.uniform(0.26, 0.34)  # full opening in head units
        lipstick = 0.0 if masculine else rng.random() * 0.8
        natural = np.array(_tone(self.skin, 0.80)) * np.array([1.05, 0.82, 0.82])
        red = np.array([rng.uniform(150, 210), rng.uniform(30, 80), rng.uniform(50, 100)])
        self.lip_colour = tuple(np.clip(natural * (1 - lipstick) + red * lipstick, 0, 255))
        self.lip_shadow, self.lip_dark = _tone(self.lip_colour, 0.86), _tone(self.lip_colour, 0.5)
        self.teeth_colour = _tone((250, 248, 240), rng.uniform(0.88, 1.0))
        self.beard = str(rng.choice(["none", "stubble", "full", "goatee", "moustache"])) if masculine else "none"
        if self.age == "child" or rng.random() < 0.35:
            self.beard = "none"
        self.glasses = str(rng.choice(["round", "square", "thin"])) if rng.random() < 0.28 else "none"
        self.glasses_colour = _tone((40, 36, 34), 1.0) if rng.random() < 0.6 else tuple(rng.uniform(20, 190, 3))
        self.outline = _tone(self.skin, 0.35) if self.style == "outlined" else None
        self.freckles = rng.random() < 0.12
        self.light_direction = rng.normal(0, 1, 2)

    # ---------------------------------------------------------------- what never moves

    def _light(self, rng: np.random.Generator) -> np.ndarray:
        """Brightness [R, R] of the light over the head, about 1."""
        y, x = np.mgrid[0 : self.resolution, 0 : self.resolution].astype(np.float32)
        x, y = (x - self.centre[0]) / self.scale, (y - self.centre[1]) / self.scale
        dx, dy = self.light_direction * 0.09
        shade = 1.0 + dx * x + dy * y - 0.05 * (x**2 + y**2) + 0.03
        if self.style == "painted":
            shade = shade + 0.035 * _smooth_field(rng, self.resolution, 14)
        return np.clip(shade, 0.55, 1.3).astype(np.float32)

    def _paint_background(self, rng: np.random.Generator) -> np.ndarray:
        size = self.resolution
        first, second = rng.uniform(30, 245, 3), rng.uniform(30, 245, 3)
        ramp = np.linspace(0, 1, size, dtype=np.float32)
        ramp = ramp[:, None] if rng.random() < 0.5 else ramp[None, :]
        kind = rng.choice(["plain", "ramp", "spots", "halves", "room"])
        picture = np.ones((size, size, 3), np.float32) * first
        if kind in ("ramp", "room"):
            picture = first + (0.7 * second + 0.3 * first - first) * np.broadcast_to(ramp, (size, size))[..., None]
        canvas = Canvas(np.clip(picture, 0, 255).astype(np.uint8), None, np.zeros(2), 1.0)
        if kind == "spots":
            for _ in range(rng.integers(4, 12)):
                colour = 0.6 * first + 0.4 * rng.uniform(0, 255, 3)
                canvas.circle(rng.uniform(0, size, 2), rng.uniform(0.04, 0.16) * size, colour)
        elif kind == "halves":
            cut = rng.uniform(0.3, 0.7) * size
            canvas.polygon(
                [(0, cut), (size, cut + rng.normal(0, 20)), (size, size), (0, size)], 0.5 * first + 0.5 * second
            )
        elif kind == "room":
            for _ in range(rng.integers(1, 4)):
                x, y, w, h = rng.uniform(0, 0.8, 4) * size
                colour = 0.5 * first + 0.5 * rng.uniform(0, 255, 3)
                canvas.polygon([(x, y), (x + w / 2, y), (x + w / 2, y + h / 2), (x, y + h / 2)], colour)
        if rng.random() < 0.5:
            sigma = rng.uniform(2, 10) * size / 256
            canvas.colour = cv2.GaussianBlur(canvas.colour, (0, 0), sigma)
        self._paint_body(Canvas(canvas.colour, None, self.centre, self.scale), rng)
        return canvas.colour

    def _paint_body(self, canvas: Canvas, rng: np.random.Generator) -> None:
        cloth = rng.uniform(20, 240, 3)
        shoulder, top = rng.uniform(1.15, 1.5), rng.uniform(1.3, 1.45)
        body = _mirrored([(0.35, top - 0.1), (shoulder * 0.75, top + 0.1), (shoulder, top + 0.35), (shoulder, 3)])
        canvas.smooth_polygon(body, cloth, closed_ends=True)
        if rng.random() < 0.5:
            canvas.polygon([(-0.4, top - 0.1), (0, top + 0.35), (0.4, top - 0.1)], _tone(cloth, rng.uniform(0.6, 1.5)))
        if self.outline:
            canvas.line(body, self.outline, 0.03)

    def face_outline(self, grow: float = 0.0) -> np.ndarray:
        """The face's edge as points [72, 2], larger by the share `grow`; wide above, narrower at the jaw."""
        a = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        y = np.sin(a)
        x = np.sign(np.cos(a)) * np.abs(np.cos(a)) ** 0.82 * self.face_width
        return np.stack([x * (1 - self.jaw * np.clip(y, 0, 1) ** 1.5), y], 1) * (1 + grow)

    def _paint_head(self, rng: np.random.Generator) -> Canvas:
        size = self.resolution
        canvas = Canvas(np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8), self.centre, self.scale)
        self._paint_hair_behind(canvas, rng)
        neck = 0.36 + 0.1 * (self.face_width - 0.7)
        throat = _mirrored([(neck * 0.9, 1.45), (neck, 1.25), (neck, 0.5)], middle=(0, 1.62))
        canvas.smooth_polygon(throat, _tone(self.skin, 0.84))
        for side in (-1, 1):
            ear = (side * self.face_width * 1.0, self.eye_y + 0.13)
            canvas.ellipse(ear, (0.10, 0.19), self.skin, self.outline)
            canvas.ellipse((ear[0] + side * 0.01, ear[1]), (0.055, 0.12), _tone(self.skin, 0.85))
            if rng.random() < 0.12:
                canvas.circle((ear[0], ear[1] + 0.23), 0.035, (235, 210, 120))
        canvas.polygon(self.face_outline(), self.skin, self.outline)
        if self.style != "flat":
            self._paint_relief(canvas, rng)
        self._paint_beard(canvas)
        self._paint_nose(canvas)
        self._paint_hair_front(canvas, rng)
        return canvas

    def _paint_relief(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Cheeks, eye sockets and wrinkles: soft, inside the face."""
        soft = Canvas(canvas.colour.copy(), None, canvas.origin, canvas.scale)
        blush = _tone(np.array(self.skin) * (1.03, 0.86, 0.84), 1.0)
        for side in (-1, 1):
            soft.circle((side * self.face_width * 0.58, self.nose_y + 0.05), 0.17, blush)
            soft.ellipse((side * self.eye_x, self.eye_y - 0.03), (self.eye_width * 1.3, 0.15), _tone(self.skin, 0.92))
        soft.ellipse((0, self.mouth_y + 0.24), (0.14, 0.05), _tone(self.skin, 0.9))
        soft.ellipse((0, -0.55), (0.4, 0.22), _tone(self.skin, 1.12))
        if self.age == "old":
            for side in (-1, 1):
                soft.line([(side * 0.2, self.nose_y), (side * 0.36, self.mouth_y + 0.05)], _tone(self.skin, 0.72), 0.03)
            for k in range(3):
                soft.line(
                    [(-0.3, -0.5 + 0.1 * k), (0, -0.53 + 0.1 * k), (0.3, -0.5 + 0.1 * k)], _tone(self.skin, 0.82), 0.02
                )
        blurred = cv2.GaussianBlur(soft.colour, (0, 0), 0.055 * self.scale)
        mask = Canvas(np.zeros_like(canvas.colour), None, canvas.origin, canvas.scale)
        mask.polygon(self.face_outline(-0.05), (255, 255, 255))
        weight = cv2.GaussianBlur(mask.colour, (0, 0), 0.02 * self.scale).astype(np.float32) / 255
        canvas.colour[:] = (blurred * weight + canvas.colour * (1 - weight)).astype(np.uint8)
        if self.freckles:
            for _ in range(24):
                at = (rng.uniform(-0.5, 0.5), self.nose_y + rng.normal(-0.05, 0.08))
                canvas.circle(at, 0.012, _tone(self.skin, 0.75))

    def _paint_nose(self, canvas: Canvas) -> None:
        dark, y = _tone(self.skin, 0.68), self.nose_y
        if self.nose_kind == 0:
            canvas.line([(-0.09, y - 0.02), (-0.05, y + 0.035), (0.05, y + 0.035), (0.09, y - 0.02)], dark, 0.025)
        elif self.nose_kind == 1:
            canvas.line([(0.03, self.eye_y + 0.08), (0.1, y), (0.02, y + 0.03)], dark, 0.025)
        elif self.nose_kind == 2:
            canvas.ellipse((0, y - 0.02), (0.11, 0.075), _tone(self.skin, 0.88))
            for side in (-1, 1):
                canvas.ellipse((side * 0.05, y + 0.025), (0.024, 0.014), _tone(self.skin, 0.5))
        else:
            canvas.polygon([(0, self.eye_y + 0.1), (0.11, y + 0.02), (0, y + 0.05)], _tone(self.skin, 0.82))
            canvas.line([(-0.1, y + 0.01), (0, y + 0.05), (0.11, y + 0.01)], dark, 0.02)

    def _paint_beard(self, canvas: Canvas) -> None:
        if self.beard == "none":
            return
        colour, y = _tone(self.hair, 0.95), self.mouth_y
        if self.beard == "stubble":
            colour = tuple(0.72 * np.array(self.skin) + 0.28 * np.array(self.hair))
        outline = self.face_outline(0.03)
        lower = outline[outline[:, 1] > 0.12]
        lower = lower[np.argsort(np.arctan2(lower[:, 0], lower[:, 1]))]  # along the jaw, from left to right
        if self.beard in ("stubble", "full"):
            inner = [(0.5, y - 0.1), (0.2, y - 0.12), (0, y - 0.13), (-0.2, y - 0.12), (-0.5, y - 0.1)]
            canvas.polygon(np.concatenate([lower, inner]), colour)
        elif self.beard == "goatee":
            canvas.smooth_polygon([(-0.22, y), (-0.2, 0.9), (0, 1.06), (0.2, 0.9), (0.22, y), (0, y - 0.02)], colour)
        if self.beard in ("full", "moustache", "goatee"):
            w = self.mouth_width
            canvas.smooth_polygon(
                [
                    (-w, y - 0.02),
                    (-w * 0.6, y - 0.13),
                    (0, y - 0.15),
                    (w * 0.6, y - 0.13),
                    (w, y - 0.02),
                    (0, y - 0.05),
                ],
                colour,
            )

    def _paint_hair_behind(self, canvas: Canvas, rng: np.random.Generator) -> None:
        w, dark = self.face_width, _tone(self.hair, 0.85)
        if self.hair_style == "long":
            length = rng.uniform(1.2, 1.7)
            fall = _mirrored([(w * 1.2, -0.7), (w * 1.35, 0.3), (w * 1.2, length)], middle=(0, -1.22))
            canvas.smooth_polygon(fall, dark, self.outline)
        elif self.hair_style in ("bob", "scarf"):
            length = rng.uniform(0.6, 0.95)
            fall = _mirrored([(w * 1.2, -0.7), (w * 1.32, 0.2), (w * 1.05, length)], middle=(0, -1.2))
            canvas.smooth_polygon(fall, dark, self.outline)
        elif self.hair_style == "curly":
            for a in np.linspace(-0.25 * np.pi, 1.25 * np.pi, 15):
                at = np.array([np.cos(a) * w * 1.12, -0.18 - np.sin(a) * 0.98])
                canvas.circle(at, rng.uniform(0.2, 0.3), dark)
        elif self.hair_style == "bun":
            canvas.circle((rng.normal(0, 0.1), -1.22), rng.uniform(0.22, 0.34), dark, self.outline)

    def _paint_hair_front(self, canvas: Canvas, rng: np.random.Generator) -> None:
        w, style, colour = self.face_width, self.hair_style, self.hair
        if style == "bald":
            return
        if style == "receding":
            for side in (-1, 1):
                strip = [
                    (side * w * 1.02, 0.0),
                    (side * w * 1.08, -0.45),
                    (side * w * 0.75, -0.85),
                    (side * w * 0.86, -0.4),
                ]
                canvas.smooth_polygon(strip, colour)
            return
        line = -0.62 + rng.normal(0, 0.05)  # the hair line
        if style == "hat":
            colour = tuple(rng.uniform(20, 235, 3))
            top = [(-w * 1.08, -0.5), (-w * 1.02, -1.0), (0, -1.38), (w * 1.02, -1.0), (w * 1.08, -0.5)]
            canvas.smooth_polygon([*top, (0, -0.56)], colour, self.outline)
            canvas.polygon(
                [(-w * 1.14, -0.68), (w * 1.14, -0.68), (w * 1.14, -0.44), (-w * 1.14, -0.44)], _tone(colour, 0.8)
            )
            return
        cap = _mirrored([(w * 0.8, -1.02), (w * 1.14, -0.55), (w * 1.06, -0.02)], middle=(0, -1.18))
        part = rng.uniform(-0.4, 0.4)
        fringe = {
            "fringe": [(w * 0.9, -0.38), (w * 0.4, -0.36), (0, -0.34), (-w * 0.4, -0.36), (-w * 0.9, -0.38)],
            "side": [(w * 0.9, -0.4), (w * 0.2, line), (-w * 0.4, line + 0.06), (-w * 0.92, -0.3)],
            "spiky": [(w * 0.92 - k * w * 0.263, line + (0.16 if k % 2 else -0.04)) for k in range(8)],
        }.get(style, [(w * 0.92, -0.35), (w * (0.5 + part), line + 0.05), (w * part, line - 0.1),
                      (w * (part - 0.5), line + 0.05), (-w * 0.92, -0.35)])  # fmt: skip
        if style == "scarf":
            colour = tuple(rng.uniform(30, 225, 3))
        canvas.smooth_polygon([*cap, *fringe], colour, self.outline, smooth=style != "spiky")
        if self.style in ("soft", "painted"):
            for k in range(3):
                x = w * (-0.5 + 0.45 * k)
                canvas.line([(x - 0.05, -1.0 + 0.06 * abs(k - 1)), (x, -0.82)], _tone(colour, 1.18), 0.03)

    def finish(self, frame: np.ndarray) -> np.ndarray:
        """A finished frame uint8 [size, size, 3] in the style's colours (grey or sepia; others leave it)."""
        matrix = COLOUR_MATRIX.get(self.style)
        return frame if matrix is None else cv2.transform(frame, matrix)

    def regions(self) -> np.ndarray:
        """Loss regions uint8 [size, size]: 1 in the mouth, 2 in the eyes, 0 elsewhere."""
        found = np.zeros((self.size, self.size), np.uint8)
        found[self.region("eyes")] = 2
        found[self.region("mouth")] = 1
        return found

    def region(self, name: str) -> np.ndarray:
        """The places bool [size, size] at which the "mouth" or the "eyes" may lie in a frame, head motion included."""
        if name == "mouth":
            low, high = (-self.mouth_width - 0.14, self.mouth_y - 0.22), (self.mouth_width + 0.14, self.mouth_y + 0.42)
        else:
            reach = self.eye_x + self.eye_width + 0.08
            low, high = (-reach, self.brow_y - 0.08), (reach, self.eye_y + 0.22)
        scale = self.size / self.resolution
        x0, y0 = (self.centre + np.array(low) * self.scale) * scale
        x1, y1 = (self.centre + np.array(high) * self.scale) * scale
        mask = np.zeros((self.size, self.size), bool)
        mask[max(0, int(y0)) : int(np.ceil(y1)), max(0, int(x0)) : int(np.ceil(x1))] = True
        return mask
