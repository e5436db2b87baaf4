"""Where eyes, nose and mouth are in a drawing, for networks that look for them."""

from __future__ import annotations

import numpy as np

from .avatars import Avatar
from .drawing import mouth_shape, pose_maps
from .motion import COLUMN


def drawn_points(avatar: Avatar, controls: np.ndarray) -> np.ndarray:
    """Points float32 [17,2] in pixels of the drawing of controls [15], found where its pose took them.

    Of each eye both corners, the middles of the upper and the lower lid, and the iris; the nose; of the mouth both
    corners, then from the top down the upper lip's upper and lower edge and the lower lip's.
    """
    c, a = {name: float(controls[i]) for name, i in COLUMN.items()}, avatar
    mouth = mouth_shape(a, c)
    lid = (0.62 - 1.62 * (1 - c["blink"])) * a.eye_height
    gaze = (c["gaze_x"] * 0.38 * a.eye_width, c["gaze_y"] * 0.25 * a.eye_height)
    own = []
    for side in (-1, 1):
        for x, y in ((-a.eye_width, 0), (a.eye_width, 0), (0, lid), (0, 0.62 * a.eye_height), gaze):
            own.append((side * a.eye_x + x, a.eye_y + y))
    own += [(0, a.nose_y), (-mouth.half, a.mouth_y + mouth.corner), (mouth.half, a.mouth_y + mouth.corner)]
    own += [(0, a.mouth_y + y) for y in (-mouth.up - mouth.lip_up, -mouth.up, mouth.down, mouth.down + mouth.lip_down)]
    maps = np.stack(pose_maps(a, c), -1)
    places = [np.square(maps - painted).sum(-1).argmin() for painted in np.array(own) * a.scale + a.centre]
    rows, columns = np.unravel_index(places, maps.shape[:2])
    return ((np.stack([columns, rows], 1) + 0.5) * (a.size / a.resolution)).astype(np.float32)
