"""Anti-aliased shapes in head units, drawn with OpenCV."""

from __future__ import annotations

import cv2
import numpy as np

_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 28)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 28)[:-1])], 1)
SHIFT = 4  # OpenCV's fractional bits: shapes move by sixteenths of a pixel
SURROUNDINGS = 0.05  # of a shape that is drawn inside, in the canvas's units


class Canvas:
    """Shapes in units of `scale` pixels around `origin`, on a picture [R, R, 3] and, if given, its alpha [R, R].

    Points are (x, y), colours RGB in 0..255.
    """

    def __init__(self, colour: np.ndarray, alpha: np.ndarray | None, origin: np.ndarray, scale: float):
        self.colour, self.alpha, self.origin, self.scale = colour, alpha, np.asarray(origin, np.float64), scale

    def _points(self, points) -> np.ndarray:
        pixels = np.asarray(points, np.float64) * self.scale + self.origin
        return np.round(pixels * (1 << SHIFT)).astype(np.int32).reshape(-1, 1, 2)

    def polygon(self, points, colour, outline=None) -> None:
        """A filled polygon of points [n, 2], with an outline in another colour if given."""
        fixed = [self._points(points)]
        cv2.fillPoly(self.colour, fixed, tuple(float(c) for c in colour), cv2.LINE_AA, SHIFT)
        if self.alpha is not None:
            cv2.fillPoly(self.alpha, fixed, 255, cv2.LINE_AA, SHIFT)
        if outline is not None:
            self.line([*points, points[0]], outline, 0.03)

    def smooth_polygon(self, points, colour, outline=None, smooth: bool = True, closed_ends: bool = False) -> None:
        """A polygon with corners cut twice (Chaikin); closed_ends keeps the first and last point."""
        p = np.asarray(points, np.float64)
        for _ in range(2 if smooth else 0):
            q = np.roll(p, -1, axis=0)
            cut = np.stack([0.75 * p + 0.25 * q, 0.25 * p + 0.75 * q], 1).reshape(-1, 2)
            p = np.concatenate([p[:1], cut[1:-2], p[-1:]]) if closed_ends else cut
        self.polygon(p, colour, outline)

    def ellipse(self, centre, axes, colour, outline=None) -> None:
        """A filled ellipse with half axes (x, y)."""
        self.polygon(_CIRCLE * axes + centre, colour, outline)

    def circle(self, centre, radius: float, colour, outline=None) -> None:
        self.ellipse(centre, (radius, radius), colour, outline)

    def line(self, points, colour, width: float) -> None:
        """An open line of a width in the canvas's units, thick enough to be seen."""
        thick = max(1, round(width * self.scale))
        cv2.polylines(
            self.colour, [self._points(points)], False, tuple(float(c) for c in colour), thick, cv2.LINE_AA, SHIFT
        )

    def inside(self, shape, draw) -> None:
        """Call draw(canvas) on a copy of the shape's surroundings and keep what falls inside the shape."""
        shape = np.asarray(shape)
        low = np.floor((shape.min(0) - SURROUNDINGS) * self.scale + self.origin).astype(int).clip(0)
        high = np.ceil((shape.max(0) + SURROUNDINGS) * self.scale + self.origin).astype(int)
        window = self.colour[low[1] : high[1], low[0] : high[0]]
        if window.size == 0:
            return
        part = Canvas(window.copy(), None, self.origin - low, self.scale)
        draw(part)
        mask = np.zeros(window.shape[:2], np.uint8)
        cv2.fillPoly(mask, [part._points(shape)], 255, cv2.LINE_AA, SHIFT)
        weight = mask[..., None].astype(np.uint16)
        window[:] = ((part.colour * weight + window * (255 - weight)) // 255).astype(np.uint8)
