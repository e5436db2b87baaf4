"""How a picture was taken: light, colours, focus, noise and JPEG; and pictures that are painted or drawn."""

from __future__ import annotations

import cv2
import numpy as np

PLAIN = 0.25  # share of pictures that stay as they are
PAINTED = 0.12  # share of the others that become paintings or comics


def random_look(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another look of a picture, uint8 [H,W,3]; the generator decides on everything."""
    if rng.random() < PLAIN:
        return picture
    if rng.random() < PAINTED:
        picture = (painting, comic)[int(rng.integers(2))](picture, rng)
    picture = exposed(picture, rng)
    if rng.random() < 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(1, 9), picture.shape[:2] + (3 if rng.random() < 0.5 else 1,))
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        quality = int(rng.integers(35, 95))
        _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(picture)


def exposed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, contrast, saturation and white balance; sometimes black and white, sepia, or light from one side."""
    x = (picture / 255.0) ** rng.uniform(0.7, 1.4)
    x = (x - x.mean()) * rng.uniform(0.75, 1.2) + x.mean() * rng.uniform(0.8, 1.15)
    grey = x.mean(2, keepdims=True)
    kind = rng.random()
    x = grey + (x - grey) * (0.0 if kind < 0.07 else rng.uniform(0.5, 1.35))
    x = x * rng.uniform(0.86, 1.14, 3) if kind >= 0.04 else x
    if kind > 0.96:
        x = x * np.array([1.08, 0.98, 0.8])
    if rng.random() < 0.3:
        angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.35)
        height, width = picture.shape[:2]
        down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        x = x * (1 + strength * (np.cos(angle) * across + np.sin(angle) * down))[..., None]
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def painting(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brush strokes: smoothed along edges, on a canvas."""
    smooth = cv2.stylization(picture, sigma_s=float(rng.uniform(10, 45)), sigma_r=float(rng.uniform(0.2, 0.45)))
    canvas = cv2.GaussianBlur(rng.normal(0, 1, picture.shape[:2]), (0, 0), rng.uniform(0.7, 1.5))
    return np.clip(smooth + canvas[..., None] * rng.uniform(0, 14), 0, 255).astype(np.uint8)


def comic(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat colours with dark outlines."""
    flat = picture
    for _ in range(3):
        flat = cv2.bilateralFilter(flat, 7, 35, 5)
    levels = rng.uniform(7, 14)
    flat = np.round(flat / 255 * levels) / levels
    grey = cv2.medianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 5)
    lines = cv2.adaptiveThreshold(grey, 1, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, 9, rng.uniform(3, 6))
    lines = cv2.GaussianBlur(lines.astype(np.float32), (0, 0), 0.6)
    return (np.clip(flat * (1 - rng.uniform(0.5, 1) * (1 - lines))[..., None], 0, 1) * 255).astype(np.uint8)
