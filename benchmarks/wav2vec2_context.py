"""How much context on both sides a window of wav2vec2 needs: windows of 30 s against one pass over two minutes.

    python benchmarks/wav2vec2_context.py RECORDING...

A model of wav2vec2-base's size with random weights; the recordings are joined and repeated to two minutes. Prints JSON:
for each length of context the relative error (norm of the difference over norm) of the first and the last layer, and of
the worst frame of any layer; beside them the error of one pass against transformers' own forward.
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import Wav2Vec2Config, Wav2Vec2Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.audio import encoder as audio_encoder
from letstalk_core.audio.recording import SAMPLE_RATE, Recording
from letstalk_core.audio.wav2vec2 import Wav2Vec2Encoder

SECONDS = 120


def errors(result: torch.Tensor, truth: torch.Tensor) -> dict:
    layers = (result - truth).norm(dim=(0, 2)) / truth.norm(dim=(0, 2))
    frames = (result - truth).norm(dim=2) / truth.norm(dim=2)
    return {
        name: float(f"{value:.2g}")
        for name, value in (("first_layer", layers[0]), ("last_layer", layers[-1]), ("worst_frame", frames.max()))
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    config = Wav2Vec2Config()
    config._attn_implementation = "eager"
    encoder = Wav2Vec2Encoder(Wav2Vec2Model(config))
    sound = torch.cat([torch.cat(list(Recording(path).mono_16k())) for path in sys.argv[1:]])
    sound = sound.repeat(-(-SECONDS * SAMPLE_RATE // len(sound)))[: SECONDS * SAMPLE_RATE]

    audio_encoder.ONE_PASS_SECONDS = SECONDS
    whole = encoder.encode(sound, SAMPLE_RATE)
    normal = ((sound - sound.mean()) / (sound.var(unbiased=False) + 1e-7).sqrt())[None]
    with torch.inference_mode():
        convolved = encoder.model.feature_extractor(normal)
        convolved = F.interpolate(convolved, size=len(whole), mode="linear", align_corners=True)
        plain = encoder.transform(convolved.transpose(1, 2))
    result = {"one pass against transformers": errors(whole, plain)}
    audio_encoder.ONE_PASS_SECONDS = 0
    for seconds in (0, 1, 2, 3, 5, 10, 20, 30, 60, SECONDS):
        encoder.context_seconds = seconds
        result[f"{seconds} s"] = errors(encoder.encode(sound, SAMPLE_RATE), whole)
    print(json.dumps(result, indent=2))
