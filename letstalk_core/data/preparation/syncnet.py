"""SyncNet (Chung and Zisserman, "Out of time", 2016): how sure it is that sound and mouth belong together.

The names of its layers are those of the published file, so that it loads. Its sound is 13 cepstral coefficients a
hundredth of a second, in the definition of python_speech_features, with which it was trained.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...audio.recording import SAMPLE_RATE
from ...weights import read_published

SIDE, FPS = 224, 25.0  # of its pictures
WINDOW, STEPS = 5, 20  # frames, and steps of coefficients, that are looked at at once
STEPS_OF_FRAME = 4
SHIFTS = 15  # frames, either way, that sound is tried at
WIDTH = 1024  # of the vectors that are compared
COEFFICIENTS, FILTERS, TRANSFORM = 13, 26, 512
FRAME, STEP = 400, 160  # samples
LIFTER = 22


class SyncNet(nn.Module):
    """sound [B,1,13,20] and mouths [B,3,5,224,224] (blue, green, red, 0..255) -> vectors [B,1024] each."""

    def __init__(self):
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer(nn.Conv2d(1, 64, 3, padding=1)), nn.MaxPool2d(1, 1),
            *_layer(nn.Conv2d(64, 192, 3, padding=1)), nn.MaxPool2d(3, (1, 2)),
            *_layer(nn.Conv2d(192, 384, 3, padding=1)), *_layer(nn.Conv2d(384, 256, 3, padding=1)),
            *_layer(nn.Conv2d(256, 256, 3, padding=1)), nn.MaxPool2d(3, 2), *_layer(nn.Conv2d(256, 512, (5, 4))),
        )  # fmt: skip
        shrink = dict(kernel_size=(1, 3, 3), stride=(1, 2, 2))
        self.netcnnlip = nn.Sequential(
            *_layer(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2))), nn.MaxPool3d(**shrink),
            *_layer(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))), nn.MaxPool3d(**shrink, padding=(0, 1, 1)),
            *(module for _ in range(3) for module in _layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)))),
            nn.MaxPool3d(**shrink), *_layer(nn.Conv3d(256, 512, (1, 6, 6))),
        )  # fmt: skip
        self.netfcaud, self.netfclip = (
            nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, WIDTH)) for _ in range(2)
        )

    def hear(self, sound: Tensor) -> Tensor:
        return self.netfcaud(self.netcnnaud(sound).flatten(1))

    def see(self, mouths: Tensor) -> Tensor:
        return self.netfclip(self.netcnnlip(mouths).flatten(1))


def _layer(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm3d if isinstance(convolution, nn.Conv3d) else nn.BatchNorm2d
    return convolution, norm(convolution.out_channels), nn.ReLU()


def load_syncnet(path: str | Path) -> SyncNet:
    """The network with the weights of a file; CheckpointError where it is another network's, or damaged."""
    return read_published(path, SyncNet(), "give syncnet_v2.model or what has its layers")


@torch.inference_mode()
def sync_scores(net: SyncNet, faces: np.ndarray, waveform: np.ndarray) -> tuple[float, float, int]:
    """(Sync-C, Sync-D, frames by which the sound comes later) of faces uint8 [F,224,224,3] at 25 frames a second and
    samples [S] at 16 kHz.

    Sync-D is the mean distance of pictures and sound at the shift where it is smallest, Sync-C how far the median of
    the shifts' distances lies above it. NaN, NaN, 0 for clips too short for one shift.
    """
    steps = cepstral_coefficients(waveform * 32768.0)
    count = min(len(faces), len(steps) // STEPS_OF_FRAME) - WINDOW
    if count < 1:
        return float("nan"), float("nan"), 0
    pictures = torch.from_numpy(np.ascontiguousarray(faces[..., ::-1])).permute(3, 0, 1, 2)  # [3,F,H,W]
    sound = torch.from_numpy(steps.T.astype(np.float32))  # [13,steps]
    seen, heard = [], []
    for i in range(count):
        seen.append(net.see(pictures[None, :, i : i + WINDOW].float()))
        low = i * STEPS_OF_FRAME
        heard.append(net.hear(sound[None, None, :, low : low + STEPS]))
    return shifted_scores(torch.cat(seen), torch.cat(heard))


def shifted_scores(seen: Tensor, heard: Tensor) -> tuple[float, float, int]:
    """Sync-C, Sync-D and the best shift of vectors [n,D] of pictures and of sound; see sync_scores."""
    padded = F.pad(heard, (0, 0, SHIFTS, SHIFTS))
    distances = torch.stack(
        [F.pairwise_distance(seen, padded[shift : shift + len(seen)]).mean() for shift in range(2 * SHIFTS + 1)]
    )
    least, best = distances.min(0)
    return float(distances.median() - least), float(least), int(best) - SHIFTS


def cepstral_coefficients(samples: np.ndarray) -> np.ndarray:
    """Of samples [S] at 16 kHz in -32768..32767: float64 [steps,13], one a hundredth of a second; the first is the
    logarithm of the energy."""
    emphasised = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    count = 1 + max(0, -(-(len(samples) - FRAME) // STEP))
    padded = np.pad(emphasised, (0, max(0, (count - 1) * STEP + FRAME - len(emphasised))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::STEP][:count]
    power = np.abs(np.fft.rfft(frames, TRANSFORM)) ** 2 / TRANSFORM
    least = np.finfo(float).eps
    energy, bands = (np.maximum(values, least) for values in (power.sum(1), power @ _mel_filters().T))
    index = np.arange(COEFFICIENTS)[:, None]
    cosines = np.sqrt(2 / FILTERS) * np.cos(np.pi * index * (2 * np.arange(FILTERS) + 1) / (2 * FILTERS))
    cosines[0] /= np.sqrt(2)
    found = np.log(bands) @ cosines.T * (1 + LIFTER / 2 * np.sin(np.pi * index[:, 0] / LIFTER))
    found[:, 0] = np.log(energy)
    return found


@functools.cache
def _mel_filters() -> np.ndarray:
    """Triangles [26,257] whose corners lie evenly on the mel scale, rounded down to whole bins."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, FILTERS + 2) / 2595) - 1)
    edges, bins = np.floor((TRANSFORM + 1) * hertz / SAMPLE_RATE), np.arange(TRANSFORM // 2 + 1)
    low, middle, high = (edges[i : i + FILTERS, None] for i in range(3))
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.clip(np.minimum(rising, falling), 0, None)
