"""Spoken clips in one small file, for machines without synthesisers: what Whisper hears as pictures, and the mouths.

A log-mel spectrogram is a grey picture of 80 rows; as a JPEG it takes between one and two kilobytes a second.

    python -m letstalk_core.data.speech.packed FILE --clips 1000 --utterances FOLDER
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...audio.encoder import Samples
from ...audio.load_encoder import load_audio_encoder
from ...audio.recording import SAMPLE_RATE, Recording
from ...audio.whisper import LOUDEST, WhisperEncoder, log_mel
from ...errors import InputError
from .spoken_clips import FPS, SECONDS, clip_rng, speech_clip
from .utterances import KeptUtterances

LEAST, MOST = (LOUDEST - 8 + 4) / 4, 1.6  # of log_mel: silence, and louder than any clip
QUALITY = 70  # of the JPEG: at 60 the projection's window hears it with 0.7 % of error, at 80 with 0.2
MOUTH_LEAST, MOUTH_MOST = -1.0, 1.0


class PackedSpeech:
    """The clips of a file that `pack` wrote: `count` of them, [F,7] mouths each. InputError for another file."""

    def __init__(self, path: Path):
        try:
            with np.load(path, allow_pickle=False) as file:
                self._pictures, self._ends, self._mouths = file["pictures"], file["ends"], file["mouths"]
                self.fps = Fraction(str(file["fps"]))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path} is not a file of packed speech ({error}).") from None
        self.count, self.frames = self._mouths.shape[:2]

    def mel(self, index: int) -> Tensor:
        """log_mel [80,T] from CONTEXT seconds before the clip to CONTEXT seconds after its last cell."""
        jpeg = self._pictures[self._ends[index - 1] if index else 0 : self._ends[index]]
        picture = cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)
        return LEAST + (MOST - LEAST) / 255 * torch.from_numpy(picture).float()

    def features(self, index: int, encoder: WhisperEncoder) -> Tensor:
        """[F,L,E]."""
        return encoder.hear(self.mel(index), 0, self.frames, self.fps)

    def mouth(self, index: int) -> np.ndarray:
        """float32 [F,7], visemes.MOUTH."""
        return MOUTH_LEAST + (MOUTH_MOST - MOUTH_LEAST) / 255 * self._mouths[index].astype(np.float32)


def pack(path: Path, clips: list[tuple[np.ndarray, np.ndarray]], fps: float) -> None:
    """Write clips of one length: the picture of what is heard (picture_of) and the mouth [F,7] of each."""
    pictures = [picture for picture, _ in clips]
    mouths = np.stack([mouth for _, mouth in clips])
    scaled = (mouths - MOUTH_LEAST) / (MOUTH_MOST - MOUTH_LEAST)
    aside = path.with_suffix(".part")
    with open(aside, "wb") as file:
        np.savez_compressed(
            file, pictures=np.concatenate(pictures), ends=np.cumsum([len(picture) for picture in pictures]),
            mouths=np.round(255 * scaled.clip(0, 1)).astype(np.uint8), fps=str(Fraction(fps)),
        )  # fmt: skip
    os.replace(aside, path)


def picture_of(mel: Tensor) -> np.ndarray:
    """JPEG, uint8 [n], of a log_mel [80,T]."""
    grey = ((mel - LEAST) * (255 / (MOST - LEAST))).round().clamp(0, 255).byte().numpy()
    return cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].ravel()


def mel_of(waveform: np.ndarray, encoder: WhisperEncoder, fps: float) -> Tensor:
    """What an encoder hears of mono samples [S] at 16 kHz, as PackedSpeech.mel has it."""
    recording = Recording((torch.from_numpy(waveform)[None], SAMPLE_RATE))
    whole = encoder.measure(recording, fps)
    samples = Samples(recording.mono_16k()).take(*encoder.reach(0, whole.frames, whole))
    return log_mel(whole.statistics[0] * samples)


@functools.cache
def _means(utterances: Path) -> tuple[WhisperEncoder, KeptUtterances]:
    """Once a process."""
    return load_audio_encoder("whisper"), KeptUtterances(utterances)


def spoken_clip(index: int, utterances: Path) -> tuple[np.ndarray, np.ndarray]:
    """A clip of SpokenPairs by its number, as `pack` takes it."""
    encoder, kept = _means(utterances)
    waveform, mouth = speech_clip(clip_rng(index), "train", SECONDS, utterances=kept)
    return picture_of(mel_of(waveform, encoder, FPS)), mouth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--utterances", type=Path, required=True, help="of the neural voices; made where missing")
    arguments = parser.parse_args()
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawned, torch.set_num_threads, (1,)) as pool:
        made = pool.map(functools.partial(spoken_clip, utterances=arguments.utterances), range(arguments.clips))
        clips = list(tqdm(made, total=arguments.clips, desc="speech", mininterval=10))
    pack(arguments.file, clips, FPS)


if __name__ == "__main__":
    main()
