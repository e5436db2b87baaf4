"""One self-describing safetensors file per model. official.py makes one of a checkpoint in the official layout.

Metadata: "format", "letstalk_config" (LetsTalkConfig as JSON) and, where an autoencoder is bundled,
"autoencoder_config" (its diffusers configuration as JSON). The tensors are under the prefixes "transformer.",
"audio_projection." and "autoencoder.".
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..config import LetsTalkConfig
from ..errors import CheckpointError
from ..weights import fill_strictly, some_of, write_weights
from .audio_projection import AudioProjection
from .transformer import LetsTalkTransformer

FORMAT = "letstalk-1"
CONFIG_KEY, AUTOENCODER_KEY = "letstalk_config", "autoencoder_config"
PARTS = ("transformer", "audio_projection")  # of a model; a file may hold an autoencoder beside them
AUTOENCODER = "autoencoder"


class LetsTalkModel(nn.Module):
    """What is trained: `config`, `transformer` and `audio_projection`.

    hear_silence: gives features [L,E] of a frame without sound, by the audio encoder that a pipeline joins it with.
    """

    hear_silence: Callable[[], Tensor] | None = None

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config
        self.transformer = LetsTalkTransformer(config)
        self.audio_projection = AudioProjection(config)


@dataclass(frozen=True)
class BundledAutoencoder:
    """The autoencoder in a model's file, as data; picture/autoencoder.py builds it.

    config: diffusers' configuration; as it is loaded, its scaling_factor is the model's latent_scale.
    """

    config: dict
    weights: Mapping[str, Tensor]


def save_checkpoint(
    path: str | Path,
    model: LetsTalkModel,
    autoencoder: BundledAutoencoder | None = None,
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a model to one file, whole or not at all; InputError where it cannot be written.

    autoencoder: to be bundled with it. dtype: of the stored floating-point tensors (None: as they are). notes: further
    metadata, such as where the weights come from; load ignores it and describe_checkpoint shows it.
    """
    tensors = {f"{part}.{key}": value for part in PARTS for key, value in getattr(model, part).state_dict().items()}
    metadata = {**(notes or {}), "format": FORMAT, CONFIG_KEY: model.config.to_json()}
    if autoencoder is not None:
        tensors |= {f"{AUTOENCODER}.{key}": value for key, value in autoencoder.weights.items()}
        metadata[AUTOENCODER_KEY] = json.dumps(autoencoder.config, sort_keys=True)
    write_weights(path, {key: _as_type(value, dtype) for key, value in tensors.items()}, metadata)


def load_checkpoint(path: str | Path, *, dtype: torch.dtype | None = torch.float32) -> LetsTalkModel:
    """The model in a file, on the CPU and in evaluation mode, with floating-point weights in dtype (None: as stored).

    Raises CheckpointError where the file is missing, damaged, of another architecture, or where its tensors are not
    exactly those of its configuration.
    """
    with _opened(path) as file:
        config, _ = _read_metadata(path, file)
        tensors = {part: _read_part(file, part, dtype) for part in PARTS}
    tensors["audio_projection"] = _with_controls(tensors["audio_projection"])
    with torch.device("meta"):
        model = LetsTalkModel(config)
    for part in PARTS:
        fill_strictly(getattr(model, part), tensors[part], f"{path}: {part}")
    return model.eval()


def load_bundled_autoencoder(
    path: str | Path, *, dtype: torch.dtype | None = torch.float32
) -> BundledAutoencoder | None:
    """The autoencoder in a model's file, or None where it bundles none; raises what load_checkpoint raises."""
    with _opened(path) as file:
        model, config = _read_metadata(path, file)
        if config is None:
            return None
        config = {**config, "scaling_factor": model.latent_scale}
        return BundledAutoencoder(config, _read_part(file, AUTOENCODER, dtype))


def _with_controls(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An audio projection of version 1 or 2 was always told of the eyelids, and of nothing else."""
    renamed = {re.sub(r"^blink\.", "control.", key): value for key, value in weights.items()}
    if "blink.0.weight" in weights:
        always = weights["blink.0.weight"]  # [hidden, W]
        renamed["control.0.weight"] = torch.stack([always, torch.zeros_like(always)], -1).flatten(1)
    return renamed


def _read_part(file, part: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors under a part's prefix, copied, so that nothing stays mapped to a file which may be replaced."""
    keys = [key for key in file.keys() if _part_of(key) == part]  # noqa: SIM118 (not a dict)
    return {key.removeprefix(f"{part}."): _as_type(file.get_tensor(key), dtype).clone() for key in keys}


def _part_of(key: str) -> str:
    return key.partition(".")[0]


def _as_type(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(dtype=dtype if tensor.is_floating_point() else None)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator:
    """The safetensors file at path, or a CheckpointError that says what it is instead."""
    check_readable(path)
    with open(path, "rb") as raw:
        start = raw.read(9)
    if len(start) < 9 or start[8:9] != b"{":
        torch_file = start[:2] == b"PK" or start[:1] == b"\x80"
        hint = "a PyTorch checkpoint, which the convert command turns into one" if torch_file else "it may be damaged"
        raise CheckpointError(f"{path}: not a safetensors file ({hint})")
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except SafetensorError:
        raise CheckpointError(f"{path}: the safetensors file is truncated or damaged; get it again") from None
    with handle as file:
        yield file


def check_readable(path: str | Path) -> None:
    """Raises CheckpointError unless path is a file with something in it."""
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}")
    if os.path.getsize(path) == 0:
        raise CheckpointError(f"{path}: the file is empty")


def _read_metadata(path: str | Path, file) -> tuple[LetsTalkConfig, dict | None]:
    """The model's configuration and that of the autoencoder beside it; all tensors must belong to one of them."""
    metadata = file.metadata() or {}
    if CONFIG_KEY not in metadata:
        raise CheckpointError(f"{path}: no LetsTalk configuration in it, so it is a model of another architecture")
    if metadata.get("format", "").startswith("letstalk-lora"):
        raise CheckpointError(f"{path}: a LoRA, not a whole model; give it beside the model that it was trained on")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: its format is {metadata.get('format')!r}, this version reads {FORMAT!r}")
    try:
        config = LetsTalkConfig.from_json(metadata[CONFIG_KEY])
        autoencoder = json.loads(metadata[AUTOENCODER_KEY]) if AUTOENCODER_KEY in metadata else None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    keys = list(file.keys())
    if unknown := [key for key in keys if _part_of(key) not in (*PARTS, AUTOENCODER)]:
        raise CheckpointError(f"{path}: unknown tensors {some_of(unknown)}")
    has_weights = any(_part_of(key) == AUTOENCODER for key in keys)
    if has_weights != (autoencoder is not None):
        raise CheckpointError(
            f"{path}: the bundled autoencoder lacks its {'configuration' if has_weights else 'weights'}"
        )
    return config, autoencoder


def describe_checkpoint(path: str | Path) -> str:
    """A few lines about a checkpoint: parameters of each part, stored types, what is bundled, notes, configuration.

    Reads headers only. Raises CheckpointError like load_checkpoint for a file that is not one.
    """
    with _opened(path) as file:
        config, autoencoder = _read_metadata(path, file)
        notes = {k: v for k, v in file.metadata().items() if k not in ("format", CONFIG_KEY, AUTOENCODER_KEY)}
        counts, types = dict.fromkeys((*PARTS, AUTOENCODER), 0), set()
        for key in file.keys():  # noqa: SIM118
            part = file.get_slice(key)
            counts[_part_of(key)] += math.prod(part.get_shape())
            types.add(part.get_dtype())
    bundled = f"bundled, {autoencoder.get('_class_name', 'unnamed')}" if autoencoder else "not bundled"
    lines = [f"{path}: {os.path.getsize(path) / 1e6:.1f} MB, stored as {', '.join(sorted(types))}"]
    lines += [f"  {name}: {count / 1e6:.2f} M parameters" for name, count in counts.items() if count]
    lines += [f"  autoencoder: {config.autoencoder}, {bundled}"]
    lines += [f"  {key}: {value}" for key, value in sorted(notes.items())]
    lines += ["  configuration:"] + [f"    {key} = {value!r}" for key, value in sorted(config.flat().items())]
    return "\n".join(lines)
