"""Many spoken clips as what an audio projection learns from: features and mouths, made once and kept in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...audio.load_encoder import load_audio_encoder
from ...audio.recording import SAMPLE_RATE
from ..arrays import make_blocks, open_array
from .spoken_clips import FPS, MOUTH, speech_clip
from .utterances import KeptUtterances

SECONDS = 8.0  # length of a clip
FRAMES = round(SECONDS * FPS)
BLOCK = 50


class SpokenPairs:
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

    def __init__(
        self, folder: Path, count: int, encoder: str, utterances: Path, first: int = 0, split: str = "train",
        block: int = BLOCK,
    ):  # fmt: skip
        self.folder, self.count, self.encoder, self.utterances = folder, count, encoder, utterances
        self.first, self.split, self.block = first, split, block
        folder.mkdir(parents=True, exist_ok=True)
        self._encoder = load_audio_encoder(encoder)
        self.features = open_array(
            folder / "features.npy", (count, FRAMES, self._encoder.blocks, self._encoder.channels), np.float16
        )
        self.mouths = open_array(folder / "mouths.npy", (count, FRAMES, len(MOUTH)), np.float16)

    def make(self, workers: int = 1) -> SpokenPairs:
        """Make the clips that are missing, in `workers` processes; safe to stop and call again. Returns itself."""
        missing = [i for i in range(0, self.count, self.block) if not self._mark(i).exists()]
        make_blocks(self.make_block, missing, workers, "speech")
        return self

    def make_block(self, start: int) -> None:
        """Make clips start .. start + block - 1 and mark them as made."""
        utterances = KeptUtterances(self.utterances)
        for i in range(start, min(start + self.block, self.count)):
            rng = np.random.default_rng((self.first + i, 4))
            waveform, mouth = speech_clip(rng, self.split, SECONDS, utterances=utterances)
            self.features[i] = self._encoder.encode(torch.from_numpy(waveform), SAMPLE_RATE, FPS).numpy()
            self.mouths[i] = mouth
        self.features.flush()
        self.mouths.flush()
        self._mark(start).touch()

    def _mark(self, start: int) -> Path:
        return self.folder / f"{start}.done"

    def __getstate__(self) -> dict:
        """For a worker process, which opens the arrays itself."""
        names = ("folder", "count", "encoder", "utterances", "first", "split", "block")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
