"""Features of Whisper tiny.en (arXiv 2212.04356), the ears of the bundled model: it has heard real people.

The pack brings the first two layers of its encoder, in which sounds are told apart (whisper_tiny_en.safetensors, MIT;
training/bundled/import_whisper.py makes the file).
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from torch import Tensor, nn

from .encoder import WholeRecording
from .loudness import SPEECH_LEVEL, LevelledEncoder
from .recording import SAMPLE_RATE

WEIGHTS = Path(__file__).resolve().parent / "whisper_tiny_en.safetensors"
LAYERS = 2  # of four
WIDTH, HEADS, MELS = 384, 6, 80
HOP, FFT = 160, 400  # samples: 10 and 25 ms
STEP = 2 * HOP  # samples between two of its outputs, the first of which is centred at a window's first sample
COLUMNS = 2  # L: outputs of a video frame, 20 ms apart at 25 fps
# Windows begin every CELL seconds of a recording, wherever one begins to read, and see CONTEXT more on either side.
CELL, CONTEXT = 6, 2
POSITIONS = (CELL + 2 * CONTEXT) * SAMPLE_RATE // STEP
# Whisper cuts off what lies 80 dB below a recording's loudest mel band. Speech at SPEECH_LEVEL has that band here:
# a constant keeps features local.
LOUDEST = 1.2  # log10 of power


@functools.lru_cache(maxsize=4)
def _mel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """(window [400], filters [201,80])."""
    import torchaudio  # training on prepared speech does without it

    filters = torchaudio.functional.melscale_fbanks(
        FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return torch.hann_window(FFT).to(device), filters.to(device)


def log_mel(samples: Tensor) -> Tensor:
    """Whisper's input [80,T] of samples [FFT + (T - 1) * HOP]; column i is centred at sample FFT / 2 + i * HOP."""
    window, filters = _mel_constants(samples.device)
    power = torch.fft.rfft(samples.unfold(-1, FFT, HOP) * window).abs().square()  # [T,201]
    logs = (power @ filters).clamp_min(1e-10).log10().clamp_min(LOUDEST - 8)
    return ((logs + 4) / 4).T


class WhisperLayers(nn.Module):
    """Log mels [B,80,2 * POSITIONS] -> the outputs of the first layers of Whisper's encoder, [B,POSITIONS,E].

    Of PyTorch's own layers: transformers' model takes three seconds and 200 MB to import.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.register_buffer("positions", _sinusoids(), persistent=False)
        layer = functools.partial(
            nn.TransformerEncoderLayer, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList(layer(WIDTH, HEADS, 4 * WIDTH) for _ in range(LAYERS))

    def forward(self, mel: Tensor) -> Tensor:
        hidden = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).mT + self.positions
        outputs = []
        for layer in self.layers:
            hidden = layer(hidden)
            outputs.append(hidden)
        return torch.cat(outputs, dim=-1)


class WhisperEncoder(LevelledEncoder):
    """Features of WhisperLayers, which are `.model`, for recordings at the level of speech.

    L: two moments of a frame, a quarter of it before and after its middle; E: the outputs of the two layers in a row,
    about zero mean and unit variance for speech.
    """

    name, blocks, channels = "whisper", COLUMNS, LAYERS * WIDTH
    settings = f"tiny.en, {LAYERS} layers, {CELL} + {CONTEXT} s, speech at {SPEECH_LEVEL} LUFS"

    def __init__(self, model: nn.Module, mean: Tensor, deviation: Tensor):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.mean, self.deviation = mean, deviation  # [E] of the outputs, on the CPU

    def _cells(self, low: int, high: int, fps: Fraction) -> tuple[int, int]:
        """(first, stop) of the cells that hold frames low .. high - 1."""
        return math.floor(low / fps / CELL), math.ceil(high / fps / CELL)

    def reach(self, low: int, high: int, whole: WholeRecording) -> tuple[int, int]:
        first, stop = self._cells(low, high, whole.fps)
        around = CONTEXT * SAMPLE_RATE + FFT // 2
        return first * CELL * SAMPLE_RATE - around, stop * CELL * SAMPLE_RATE + around

    def encode_window(self, samples: Tensor, low: int, high: int, whole: WholeRecording) -> Tensor:
        (gain,) = whole.statistics
        return self.hear(log_mel(gain * samples), low, high, whole.fps)

    @torch.no_grad()
    def hear(self, mel: Tensor, low: int, high: int, fps: Fraction) -> Tensor:
        """Features [high - low, L, E] on the CPU of frames low .. high - 1, from the log_mel [80,T] of the cells that
        hold them and CONTEXT seconds on either side."""
        first, stop = self._cells(low, high, fps)
        columns = CELL * SAMPLE_RATE // HOP
        outputs = [
            self._outputs(mel[:, i * columns : i * columns + 2 * POSITIONS]) for i in range(stop - first)
        ]  # [301,E] each: of both ends of a cell
        moments = (torch.arange(low * COLUMNS, high * COLUMNS, dtype=torch.float64) + 0.5) / COLUMNS / float(fps)
        which = (moments / CELL).floor().long().clamp(first, stop - 1)
        places = (moments - which * CELL) * SAMPLE_RATE / STEP
        left = places.floor().long().clamp(max=CELL * SAMPLE_RATE // STEP - 1)
        share = (places - left).float()[:, None]
        flat, at = torch.cat(outputs), (which - first) * len(outputs[0]) + left
        features = (torch.lerp(flat[at], flat[at + 1], share) - self.mean) / self.deviation
        return features.unflatten(0, (high - low, COLUMNS))

    def _outputs(self, mel: Tensor) -> Tensor:
        """The layers' outputs at the ends of a cell and every STEP between, [301,E] on the CPU, of the log_mel [80,T]
        of the cell and CONTEXT seconds on either side."""
        inside = slice(CONTEXT * SAMPLE_RATE // STEP, (CONTEXT + CELL) * SAMPLE_RATE // STEP + 1)
        return self.model(mel[None].to(self.model.conv1.weight))[0, inside].float().cpu()


def load_whisper() -> WhisperEncoder:
    """The encoder that comes with the pack."""
    return build_whisper(load_file(WEIGHTS))


def build_whisper(weights: dict[str, Tensor]) -> WhisperEncoder:
    """The encoder of weights by transformers' names, without positions, and of `mean` and `deviation` [E]."""
    weights = {key: value.float() for key, value in weights.items()}
    mean, deviation = weights.pop("mean"), weights.pop("deviation")
    for i in range(LAYERS):
        _rename_layer(weights, f"layers.{i}")
    model = WhisperLayers()
    model.load_state_dict(weights)
    return WhisperEncoder(model, mean, deviation)


def _rename_layer(weights: dict[str, Tensor], layer: str) -> None:
    """Give a layer's weights the names that PyTorch has for them."""
    names = {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2", "fc1": "linear1", "fc2": "linear2"}
    weights[f"{layer}.self_attn.k_proj.bias"] = torch.zeros(WIDTH)  # Whisper has none
    for kind in ("weight", "bias"):
        for old, new in names.items():
            weights[f"{layer}.{new}.{kind}"] = weights.pop(f"{layer}.{old}.{kind}")
        parts = [weights.pop(f"{layer}.self_attn.{name}_proj.{kind}") for name in "qkv"]
        weights[f"{layer}.self_attn.in_proj_{kind}"] = torch.cat(parts)


def _sinusoids() -> Tensor:
    """Whisper's positions [POSITIONS,WIDTH]: all sines, then all cosines, of wavelengths up to 10,000 * 2 pi."""
    rates = torch.exp(-math.log(10000) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))
    angles = torch.arange(POSITIONS)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
