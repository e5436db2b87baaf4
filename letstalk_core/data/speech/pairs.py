"""Many spoken clips as what an audio projection learns from: features and mouths, made once and kept in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...audio.load_encoder import load_audio_encoder
from ...audio.recording import SAMPLE_RATE
from ..arrays import BlockStore
from .packed import PackedSpeech
from .spoken_clips import FPS, MOUTH, SECONDS, clip_rng, speech_clip
from .utterances import KeptUtterances

FRAMES = round(SECONDS * FPS)
BLOCK = 50


class SpokenPairs(BlockStore):
    """`count` clips: features float16 [count,F,L,E] and mouths float16 [count,F,7], memory-mapped.

    Args:
        folder: of the arrays, and of a mark for each finished block.
        encoder: of the features, as load_audio_encoder takes it.
        first: number of the first clip; a number decides on everything in a clip.
        split: "train" or "heldout".
        utterances: folder of the neural voices' utterances.
        block: how many clips are made at a time.

    InputError where the folder holds another number of clips.
    """

    kind = "speech"
    kept = (*BlockStore.kept, "encoder", "utterances", "first", "split")

    def __init__(
        self, folder: Path, count: int, encoder: str, utterances: Path, first: int = 0, split: str = "train",
        block: int = BLOCK,
    ):  # fmt: skip
        super().__init__(folder, count, block)
        self.encoder, self.utterances, self.first, self.split = encoder, utterances, first, split
        self._encoder, self._spoken = load_audio_encoder(encoder), KeptUtterances(utterances)
        self.features = self.array("features", (FRAMES, self._encoder.blocks, self._encoder.channels), np.float16)
        self.mouths = self.array("mouths", (FRAMES, len(MOUTH)), np.float16)

    def make_row(self, index: int, device: str = "cpu") -> None:
        waveform, mouth = speech_clip(clip_rng(self.first + index), self.split, SECONDS, utterances=self._spoken)
        self.features[index] = self._encoder.encode(torch.from_numpy(waveform), SAMPLE_RATE, FPS).numpy()
        self.mouths[index] = mouth


class PackedPairs(BlockStore):
    """All clips of a packed file (packed.py) in the same arrays."""

    kind = "speech"
    kept = ("folder", "packed", "encoder", "block")

    def __init__(self, folder: Path, packed: Path, encoder: str, block: int = BLOCK):
        self.packed, self.encoder = packed, encoder
        self._speech, self._encoder = PackedSpeech(packed), load_audio_encoder(encoder)
        super().__init__(folder, self._speech.count, block)
        frames = self._speech.frames
        self.features = self.array("features", (frames, self._encoder.blocks, self._encoder.channels), np.float16)
        self.mouths = self.array("mouths", (frames, len(MOUTH)), np.float16)

    def make_row(self, index: int, device: str = "cpu") -> None:
        self.features[index] = self._speech.features(index, self._encoder).numpy()
        self.mouths[index] = self._speech.mouth(index)
