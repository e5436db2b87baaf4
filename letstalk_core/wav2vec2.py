"""wav2vec2 features at the video's frame rate, the paper's audio encoder (section 3.1).

The convolutional features are interpolated to one per video frame before the transformer layers, and the outputs of all
layers are kept. (ComfyUI's own wav2vec2 node resamples after the transformer, which gives other features.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .audio import SAMPLE_RATE, exact_fps, frame_count, to_mono_16k
from .errors import InputError

# Attention over a recording costs the square of its length: beyond LONG_SECONDS it goes in parts with context around.
LONG_SECONDS, PART_SECONDS, CONTEXT_SECONDS = 60, 50, 5


class Wav2Vec2Encoder(nn.Module):
    """encode() around transformers' Wav2Vec2Model, which is `.model`. A plain module without its own `device`."""

    name = "wav2vec2"

    def __init__(self, model: nn.Module, normalize: bool = True):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.normalize = normalize  # the preprocessor's do_normalize: zero mean, unit variance over the recording
        self.blocks, self.channels = model.config.num_hidden_layers, model.config.hidden_size

    @torch.no_grad()
    def encode(
        self, waveform: Tensor, sample_rate: int, fps: float = 25.0, callback: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """[channels, S] or [S] -> float32 features [F, L, E] on the waveform's device, F = frame_count(S, rate, fps).

        L is the number of transformer layers (12 in the base model) and E their width (768). Recordings longer than
        LONG_SECONDS are encoded in parts of PART_SECONDS with CONTEXT_SECONDS on either side, so that memory stays
        bounded; up to that length the result is exactly that of one pass. callback(frames done, frames) after each
        part; it cancels by raising.
        """
        frames = frame_count(waveform.shape[-1], sample_rate, fps)
        mono = to_mono_16k(waveform, sample_rate)
        if self.normalize:
            mono = (mono - mono.mean()) / (mono.var(unbiased=False) + 1e-7).sqrt()
        per_second = exact_fps(fps)
        if frames <= LONG_SECONDS * per_second:
            return self._encode_part(mono, frames).to(waveform.device)
        part, context = round(PART_SECONDS * per_second), round(CONTEXT_SECONDS * per_second)
        results = []
        for begin in range(0, frames, part):
            end = min(begin + part, frames)
            low, high = max(begin - context, 0), min(end + context, frames)
            first, last = (int(Fraction(frame * SAMPLE_RATE) / per_second) for frame in (low, high))
            features = self._encode_part(mono[first : last if high < frames else None], high - low)
            results.append(features[begin - low : end - low].to(waveform.device))
            if callback:
                callback(end, frames)
        return torch.cat(results)

    def _encode_part(self, mono: Tensor, frames: int) -> Tensor:
        """Normalised samples [S] at 16 kHz -> [frames, L, E]."""
        weight = next(self.model.parameters())
        shortest = SAMPLE_RATE // 40  # 25 ms: below it the convolutions give no feature at all
        mono = nn.functional.pad(mono, (0, max(shortest - len(mono), 0))).to(weight.device, weight.dtype)
        convolved = self.model.feature_extractor(mono[None])  # [1, C, T], about 50 a second
        convolved = nn.functional.interpolate(convolved.float(), size=frames, mode="linear", align_corners=True)
        hidden, _ = self.model.feature_projection(convolved.transpose(1, 2).to(weight.dtype))  # [1, F, E]
        outputs: list[Tensor] = []

        def keep(_module, _inputs, output):  # transformers 5 returns no hidden states here, so hooks collect them
            outputs.append(output[0] if isinstance(output, tuple) else output)

        hooks = [layer.register_forward_hook(keep) for layer in self.model.encoder.layers]
        try:
            outputs[-1:] = [self.model.encoder(hidden)[0]]  # replaces the last: larger models normalise it once more
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(outputs, dim=2)[0].float()


def load_wav2vec2(path: str | Path) -> Wav2Vec2Encoder:
    """A transformers folder (config.json beside model.safetensors) or a single .safetensors file of a wav2vec2 model.

    A file without a config.json beside it is read as the base model (12 layers of 768), its size taken from the
    weights. Weights of fine-tuned models (keys that start with "wav2vec2.") work too. InputError otherwise.
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
    weights = {key: value.float() for key, value in weights.items() if key in own}  # heads for text or speakers go
    if "masked_spec_embed" in own:  # of training only, and not in every file
        weights.setdefault("masked_spec_embed", own["masked_spec_embed"])
    missing = sorted(set(own) - set(weights))
    wrong = sorted(key for key in weights if weights[key].shape != own[key].shape)
    if missing or wrong:
        example = (missing or wrong)[0]
        raise InputError(
            f"{file} is not a whole wav2vec2 model of its configuration: {len(missing)} tensors are missing and "
            f"{len(wrong)} have another shape, the first {example}; download the model again with its config.json."
        )
    model.load_state_dict(weights)
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
    from transformers import Wav2Vec2Config

    layers = {int(key.split(".")[2]) for key in weights if key.startswith("encoder.layers.")}
    hidden = weights["feature_projection.projection.weight"].shape[0]
    layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in weights  # of the large models
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
    file = folder / "preprocessor_config.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("do_normalize", True))
    except (OSError, ValueError, AttributeError):
        return True
