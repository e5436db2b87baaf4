"""wav2vec2 (arXiv 2006.11477) features at the video's frame rate, the paper's audio encoder (Section 3.1).

The convolutional features are interpolated to one per video frame before the transformer layers, and the outputs of all
layers are kept. (ComfyUI's own wav2vec2 node resamples after the transformer, which gives other features.)
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError
from ..weights import fill_strictly
from .encoder import AudioEncoder, Samples, WholeRecording, layer_outputs
from .recording import Recording

_STATISTICS_SAMPLES = 80000  # samples that are measured at a time


class Wav2Vec2Encoder(AudioEncoder):
    """Features of transformers' Wav2Vec2Model, which is `.model`. A plain module without its own `device`.

    L is the number of transformer layers (12 in the base model) and E their width (768). What a model takes from the
    whole recording (the waveform's mean and deviation, and in base models those of the first convolution's channels) is
    measured once, so that windows differ from one pass only in what attention sees: context_seconds on either side.
    """

    name = "wav2vec2"
    context_seconds = 5.0

    def __init__(self, model: nn.Module, normalize: bool = True):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.normalize = normalize  # the preprocessor's do_normalize: zero mean, unit variance over the recording
        self.settings = f"{normalize} {model.config.to_json_string(use_diff=False)}"
        self.blocks, self.channels = model.config.num_hidden_layers, model.config.hidden_size
        self.stride = math.prod(model.config.conv_stride)  # samples between two convolutional features: 320
        strides = [math.prod(model.config.conv_stride[:layer]) for layer in range(len(model.config.conv_stride))]
        self.field = 1 + sum(
            (k - 1) * step for k, step in zip(model.config.conv_kernel, strides)
        )  # samples that one of them is computed from: 400

    @torch.no_grad()
    def measure(self, recording: Recording, fps: float) -> WholeRecording:
        """AudioEncoder.measure with four statistics: mean and deviation [] of the waveform (0 and 1 where it is not to
        be normalised), and those [C] of the first convolution's output for the normalised waveform."""
        whole, samples = super().measure(recording, fps), Samples(recording.mono_16k())
        first = self.model.feature_extractor.conv_layers[0]
        weight, (kernel,), (step,) = first.conv.weight.float(), first.conv.kernel_size, first.conv.stride
        sums, channel_sums, outputs = torch.zeros(2).double(), torch.zeros(2, len(weight)).double(), 0
        for start in range(0, whole.samples, _STATISTICS_SAMPLES):
            stop = min(start + _STATISTICS_SAMPLES, whole.samples)
            window = samples.take(start, min(stop + kernel - step, whole.samples))
            own = window[: stop - start].double()
            sums += torch.stack([own.sum(), own.square().sum()])
            if self._normalises_channels() and len(window) >= kernel:
                raw = nn.functional.conv1d(window[None, None].to(weight.device), weight, stride=step)[0].double().cpu()
                channel_sums += torch.stack([raw.sum(-1), raw.square().sum(-1)])
                outputs += raw.shape[-1]
        mean, deviation = _mean_and_deviation(sums, whole.samples, 1e-7) if self.normalize else (0.0, 1.0)
        raw_mean, raw_deviation = _mean_and_deviation(channel_sums, max(1, outputs), 0)
        total = weight.double().cpu().sum((1, 2))
        bias = 0 if first.conv.bias is None else first.conv.bias.double().cpu()
        statistics = (torch.as_tensor(mean), torch.as_tensor(deviation))
        statistics += ((raw_mean - mean * total) / deviation + bias, raw_deviation / deviation)
        return dataclasses.replace(whole, statistics=statistics)

    def _normalises_channels(self) -> bool:
        return self.model.config.feat_extract_norm == "group"  # over time, in the first layer

    def _positions(self, low: int, high: int, whole: WholeRecording) -> Tensor:
        """The places of frames low .. high - 1 among the convolutional features, float64 [n] (align_corners)."""
        last = max(0, (whole.samples - self.field) // self.stride)
        return torch.arange(low, high, dtype=torch.float64) * last / max(1, whole.frames - 1)

    def reach(self, low: int, high: int, whole: WholeRecording) -> tuple[int, int]:
        positions = self._positions(low, high, whole)
        return self.stride * int(positions[0]), self.stride * math.ceil(positions[-1]) + self.field

    def encode_window(self, samples: Tensor, low: int, high: int, whole: WholeRecording) -> Tensor:
        weight = next(self.model.parameters())
        mean, deviation, channel_mean, channel_deviation = whole.statistics
        hidden = ((samples.double() - mean) / deviation).float()
        hidden[max(0, whole.samples - self.reach(low, high, whole)[0]) :] = 0  # less than 25 ms of sound: then silence
        hidden = hidden[None, None].to(weight.device, weight.dtype)
        for number, layer in enumerate(self.model.feature_extractor.conv_layers):
            if number == 0 and self._normalises_channels():
                hidden = layer.conv(hidden).float()
                spread = (channel_deviation.square() + layer.layer_norm.eps).sqrt()
                scale = layer.layer_norm.weight / spread.to(weight.device)
                hidden = (hidden - channel_mean.to(hidden)[:, None]) * scale[:, None] + layer.layer_norm.bias[:, None]
                hidden = layer.activation(hidden.to(weight.dtype))
            else:
                hidden = layer(hidden)
        positions = self._positions(low, high, whole)
        positions = positions - positions[0].floor()
        left = positions.floor().long()
        share = (positions - left).float().to(hidden.device)
        right = (left + 1).clamp(max=hidden.shape[-1] - 1)
        at_frames = hidden[0, :, left].float() * (1 - share) + hidden[0, :, right].float() * share  # [C, n]
        return self.transform(at_frames.T[None].to(weight.dtype)).cpu()

    def transform(self, convolved: Tensor) -> Tensor:
        """Convolutional features [1, n, C] at the video's rate -> the outputs of all layers [n, L, E]."""
        hidden, _ = self.model.feature_projection(convolved)  # [1, n, E]
        with layer_outputs(self.model.encoder.layers) as outputs:
            last = self.model.encoder(hidden)[0]
        outputs[-1] = last  # larger models normalise it once more
        return torch.stack(outputs, dim=2)[0].float()


def _mean_and_deviation(sums: Tensor, count: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation [...] of `count` values from their sum and sum of squares [2, ...]; eps: added variance."""
    mean = sums[0] / count
    return mean, (sums[1] / count - mean.square()).clamp_min(0).add(eps).sqrt()


def load_wav2vec2(path: str | Path) -> Wav2Vec2Encoder:
    """Load a wav2vec2 model: a transformers folder (config.json, model.safetensors) or a single .safetensors file.

    A file without a config.json beside it is read as the base model (12 layers of 768), its size taken from the
    weights. Weights of fine-tuned models (keys that start with "wav2vec2.") work too. InputError for anything else.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"There is no audio encoder at {path}; give 'mel', or the wav2vec2-base-960h folder or .safetensors file."
        )
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"The folder {path} has no model.safetensors; download that file of wav2vec2-base-960h into it."
        )
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a safetensors file ({error}); download it again.") from error
    weights = {key.removeprefix("wav2vec2."): value for key, value in weights.items()}
    if "feature_projection.projection.weight" not in weights:
        raise InputError(f"{file} does not hold a wav2vec2 model; use the weights of wav2vec2-base-960h.")
    return Wav2Vec2Encoder(_build(file, weights), _normalize_flag(file.parent))


def _build(file: Path, weights: dict[str, Tensor]) -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config_file = file.parent / "config.json"
    config = Wav2Vec2Config(**_read_config(config_file)) if config_file.is_file() else _guess_config(weights)
    config._attn_implementation = "eager"  # the same numbers on every version of transformers
    model = Wav2Vec2Model(config)
    # torch's weight norm was renamed; files of either time load into models of either time
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    own = model.state_dict()
    for new, old in names.items():
        for source, target in ((new, old), (old, new)):
            key = f"encoder.pos_conv_embed.conv.{source}"
            if key in weights and key not in own:
                weights[f"encoder.pos_conv_embed.conv.{target}"] = weights.pop(key)
    # Heads for text or speakers go. Copied, so that nothing stays mapped to a file which may be replaced.
    weights = {key: value.to(torch.float32, copy=True) for key, value in weights.items() if key in own}
    if "masked_spec_embed" in own:  # for training only, and not in every file
        weights.setdefault("masked_spec_embed", own["masked_spec_embed"])
    advice = "download the model again with its config.json"
    fill_strictly(model, weights, f"{file} is not a whole wav2vec2 model of its configuration", advice)
    return model


def _read_config(file: Path) -> dict:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not readable JSON ({error}); download it again.") from error
    if values.get("model_type") != "wav2vec2":
        raise InputError(f"{file} describes a {values.get('model_type')!r} model, not wav2vec2; choose another folder.")
    return values


def _guess_config(weights: dict[str, Tensor]):
    """The configuration that the names and shapes of the weights show."""
    from transformers import Wav2Vec2Config

    layers = {int(key.split(".")[2]) for key in weights if key.startswith("encoder.layers.")}
    hidden = weights["feature_projection.projection.weight"].shape[0]
    layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in weights  # the large models have it
    inner = weights.get("encoder.layers.0.feed_forward.intermediate_dense.weight")
    return Wav2Vec2Config(
        num_hidden_layers=len(layers),
        hidden_size=hidden,
        intermediate_size=hidden * 4 if inner is None else inner.shape[0],
        num_attention_heads=max(hidden // 64, 1),
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in weights,
        feat_extract_norm="layer" if layer_norm else "group",
        do_stable_layer_norm=layer_norm,
    )


def _normalize_flag(folder: Path) -> bool:
    """do_normalize of the folder's preprocessor_config.json; True where it does not say."""
    file = folder / "preprocessor_config.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("do_normalize", True))
    except (OSError, ValueError, AttributeError):
        return True
