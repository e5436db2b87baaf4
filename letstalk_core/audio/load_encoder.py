"""The choice of an audio encoder by its name or file."""

from __future__ import annotations

from pathlib import Path

from .encoder import AudioEncoder
from .mel import MelEncoder
from .whisper import WhisperEncoder, load_whisper

BUILT_IN = {MelEncoder.name: MelEncoder, WhisperEncoder.name: load_whisper}  # those that need no file


def load_audio_encoder(name_or_path: str | Path) -> AudioEncoder:
    """Load an audio encoder by its name or file.

    "mel" gives MelEncoder (L 4, E 80), "whisper" WhisperEncoder (L 2, E 768); anything else is the path of a wav2vec2
    file or folder (L 12, E 768 for the base model). Its attributes .name, .blocks and .channels match LetsTalkConfig's
    audio_* fields. InputError where the path holds no wav2vec2 model.
    """
    if str(name_or_path) in BUILT_IN:
        return BUILT_IN[str(name_or_path)]()
    from .wav2vec2 import load_wav2vec2

    return load_wav2vec2(name_or_path)
