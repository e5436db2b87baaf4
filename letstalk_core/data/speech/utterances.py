"""Utterances of neural voices, each spoken once and kept: some of these voices take half the time that they speak."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np

from .sentences import random_sentence
from .synthesis import Speech, Voice, synthesize

COUNT = {"kokoro": 16, "hibari": 600}  # utterances of each voice of an engine


class KeptUtterances:
    """The utterances of neural voices in a folder, made when first asked for; several processes may share it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, voice: Voice, number: int) -> Speech:
        """Utterance `number`, 0 .. COUNT[voice.engine] - 1, of a voice: always the same sentence, pace and samples."""
        name = f"{voice.engine}-{voice.language}-{voice.variant}-{number}"
        path = self.folder / f"{name}.npz"
        if path.exists():
            with np.load(path) as file:
                samples, phonemes = file["samples"], json.loads(str(file["phonemes"]))
            return Speech(samples.astype(np.float32) / 32767, tuple(map(tuple, phonemes)))
        rng = np.random.default_rng((number, zlib.crc32(name.encode())))
        rate = int(rng.integers(130, 201))
        speech = synthesize(random_sentence(rng, voice.language, voice.split), voice, rate, seed=number)
        peak = max(float(np.abs(speech.waveform).max(initial=0.0)), 1e-6)
        samples = np.round(speech.waveform * (0.9 / peak * 32767)).astype(np.int16)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        with open(unfinished, "wb") as file:
            np.savez(file, samples=samples, phonemes=json.dumps(speech.phonemes))
        unfinished.replace(path)
        return Speech(samples.astype(np.float32) / 32767, speech.phonemes)
