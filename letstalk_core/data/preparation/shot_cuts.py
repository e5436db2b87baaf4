"""Where a video cuts to another picture, by PySceneDetect."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np

from ...errors import InputError

THRESHOLD = 27.0  # mean change of hue, saturation and value from frame to frame: PySceneDetect's own default
COMPARED = 144  # pixels of the shorter side at which frames are compared


class ShotCuts:
    """Told the frames of a video one after the other, says which of them begin another shot."""

    def __init__(self, rate: Fraction):
        try:
            from scenedetect import ContentDetector, FrameTimecode
        except ImportError:
            raise InputError(
                "Cuts are found by PySceneDetect; install it with: pip install scenedetect-headless"
            ) from None
        # A length of 0: every change counts at once, so that no frame need be held back until later ones are seen.
        self._detector, self._moment = ContentDetector(THRESHOLD, min_scene_len=0), FrameTimecode
        self._rate, self._number = float(rate), 0

    def begins(self, pixels: np.ndarray) -> bool:
        """Whether this frame uint8 [H,W,3] begins another shot than the one before it."""
        scale = COMPARED / min(pixels.shape[:2])
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
        moment = self._moment(self._number, self._rate)
        self._number += 1
        return bool(self._detector.process_frame(moment, np.ascontiguousarray(small[..., ::-1])))
