"""The sound of a video in the making."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import numpy as np
import torch
from torch import Tensor

from ..audio.recording import SampleReader
from .file_format import FileFormat

SOUND_BITS = 96000  # bits a second, for each channel
# Layouts as they come in, by the number of channels; the file keeps mono, stereo and 5.1, others become stereo.
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_KEPT = (1, 2, 6)


class SoundTrack:
    """The sound of a file in the making: samples go in as the picture advances."""

    def __init__(self, container, reader: SampleReader, kind: FileFormat):
        self.reader, self.container = reader, container
        self.rate, self.position = reader.rate, 0  # samples written
        # Unusual layouts of more than eight channels are mixed to one.
        self.channels = reader.channels if reader.channels in _LAYOUTS else 1
        rate = min(kind.rates or (self.rate,), key=lambda candidate: abs(candidate - self.rate))
        layout = _LAYOUTS[self.channels] if self.channels in _KEPT else "stereo"
        self.stream = container.add_stream(kind.sound, rate=rate, layout=layout)
        self.stream.bit_rate = SOUND_BITS * len(self.stream.layout.channels)

    def write_until(self, seconds: Fraction) -> None:
        """Write the sound from where it is up to `seconds`."""
        missing = math.ceil(seconds * self.rate) - self.position
        while missing > 0:
            samples = self.reader.read(min(missing, self.rate))
            if samples.shape[1] == 0:
                return
            missing -= samples.shape[1]
            self._encode(samples if self.channels == self.reader.channels else samples.mean(dim=0, keepdim=True))

    def finish(self, seconds: Fraction, frame: Fraction) -> None:
        """End the sound at `seconds`, where the picture ends; silence fills in where more than a `frame` is missing."""
        self.write_until(seconds)
        missing = math.ceil(seconds * self.rate) - self.position
        # A sound shorter than a millisecond would round to nothing in the file's header.
        if missing > frame * self.rate or (missing > 0 and self.position < frame * self.rate):
            self._encode(torch.zeros(self.channels, missing))
        self.reader.read(1)  # beyond the end: a recording says there if it was changed while it was read
        self.container.mux(self.stream.encode(None))

    def _encode(self, samples: Tensor) -> None:
        packed = np.ascontiguousarray(samples.clamp(-1, 1).T.numpy()).reshape(1, -1)  # PyAV has eight planes at most
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=_LAYOUTS[self.channels])
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.position, Fraction(1, self.rate)
        self.position += samples.shape[1]
        self.container.mux(self.stream.encode(frame))
