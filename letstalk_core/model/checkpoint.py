"""One self-describing safetensors file per model. conversion.py makes one of a checkpoint in the official layout.

Metadata: "format", "letstalk_config" (LetsTalkConfig as JSON) and, where an autoencoder is bundled,
"autoencoder_config" (its diffusers configuration as JSON). The tensors are under the prefixes "transformer.",
"audio_projection." and "autoencoder.".
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import LetsTalkConfig
from ..errors import InputError
from ..files import move_into_place
from .audio_projection import AudioProjection
from .transformer import LetsTalkTransformer

FORMAT = "letstalk-1"
CONFIG_KEY, AUTOENCODER_KEY = "letstalk_config", "autoencoder_config"
PARTS = {"transformer": LetsTalkTransformer, "audio_projection": AudioProjection}


class CheckpointError(InputError):
    """A file that is not the checkpoint it should be; the message is one sentence for the user."""


class LetsTalkModel(nn.Module):
    """A whole model: `config`, `transformer`, `audio_projection`, and the autoencoder bundled with it, if any.

    autoencoder_state and autoencoder_config (a state dict and a diffusers configuration) are data, not submodules:
    whoever needs the autoencoder builds it from them.
    """

    def __init__(
        self,
        config: LetsTalkConfig,
        autoencoder_state: dict[str, Tensor] | None = None,
        autoencoder_config: dict | None = None,
    ):
        super().__init__()
        if (autoencoder_state is None) != (autoencoder_config is None):
            raise ValueError("autoencoder_state and autoencoder_config go together: one of them is missing")
        self.config = config
        self.transformer = LetsTalkTransformer(config)
        self.audio_projection = AudioProjection(config)
        self.autoencoder_state, self.autoencoder_config = autoencoder_state, autoencoder_config


def save_checkpoint(
    path: str | Path, model: LetsTalkModel, *, dtype: torch.dtype | None = None, notes: Mapping[str, str] | None = None
) -> None:
    """Write a model to one file, whole or not at all; CheckpointError where it cannot be written.

    dtype: of the stored floating-point tensors (None: as they are). notes: further metadata, such as where the weights
    come from; load ignores it and describe_checkpoint shows it.
    """
    tensors = {f"{part}.{key}": value for part in PARTS for key, value in getattr(model, part).state_dict().items()}
    metadata = {**(notes or {}), "format": FORMAT, CONFIG_KEY: model.config.to_json()}
    if model.autoencoder_state is not None:
        tensors |= {f"autoencoder.{key}": value for key, value in model.autoencoder_state.items()}
        metadata[AUTOENCODER_KEY] = json.dumps(model.autoencoder_config, sort_keys=True)
    tensors = {key: _stored(value, dtype) for key, value in tensors.items()}
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, aside, metadata)
            move_into_place(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}); check the folder's space and permissions"
        ) from error


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
    return tensor.contiguous()


def load_checkpoint(path: str | Path, *, dtype: torch.dtype | None = torch.float32) -> LetsTalkModel:
    """The model in a file, on the CPU and in evaluation mode, with floating-point weights in dtype (None: as stored).

    Raises CheckpointError where the file is missing, damaged, of another architecture, or where its tensors are not
    exactly those of its configuration.
    """
    with _opened(path) as file:
        config, autoencoder_config = _read_metadata(path, file)
        # Copied, so that nothing stays mapped to a file which may be replaced while the model is in use.
        tensors = {key: _loaded(file.get_tensor(key), dtype) for key in file.keys()}  # noqa: SIM118
    parts = {name: _take(tensors, f"{name}.") for name in (*PARTS, "autoencoder")}
    if tensors:
        raise CheckpointError(f"{path}: unknown tensors {some_of(tensors)}")
    if bool(parts["autoencoder"]) != (autoencoder_config is not None):
        raise CheckpointError(
            f"{path}: the bundled autoencoder lacks its {'configuration' if parts['autoencoder'] else 'weights'}"
        )
    with torch.device("meta"):
        model = LetsTalkModel(config)
    model.autoencoder_state, model.autoencoder_config = parts["autoencoder"] or None, autoencoder_config
    for name in PARTS:
        fill_strictly(getattr(model, name), parts[name], f"{path}: {name}")
    return model.eval()


def _loaded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype=dtype if tensor.is_floating_point() else None, copy=True)


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the tensors under a prefix and return them without it."""
    return {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


def some_of(keys: Iterable[str]) -> str:
    """The first few of a set of keys and how many there are."""
    keys = sorted(keys)
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more ({len(keys)} in all)" if len(keys) > 4 else "")


def fill_strictly(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Give a module on the meta device its tensors; every key and shape must be the module's.

    Raises CheckpointError, starting with `where` and naming the first few missing and unexpected keys.
    """
    wanted = module.state_dict()
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing or extra:
        parts = [f"{word} {some_of(keys)}" for word, keys in (("missing", missing), ("unexpected", extra)) if keys]
        raise CheckpointError(f"{where}: {'; '.join(parts)}")
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{where}: {key} is {tuple(tensor.shape)}, the configuration needs {tuple(wanted[key].shape)}"
            )
    module.load_state_dict(tensors, assign=True)


@contextlib.contextmanager
def _opened(path: str | Path):
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
    return config, autoencoder


def describe_checkpoint(path: str | Path) -> str:
    """A few lines about a checkpoint: parameters of each part, stored types, what is bundled, notes, configuration.

    Reads headers only. Raises CheckpointError like load_checkpoint for a file that is not one.
    """
    with _opened(path) as file:
        config, autoencoder = _read_metadata(path, file)
        notes = {k: v for k, v in file.metadata().items() if k not in ("format", CONFIG_KEY, AUTOENCODER_KEY)}
        counts, types = dict.fromkeys((*PARTS, "autoencoder"), 0), set()
        for key in file.keys():  # noqa: SIM118
            part = file.get_slice(key)
            name = key.split(".")[0]
            counts[name] = counts.get(name, 0) + math.prod(part.get_shape())
            types.add(part.get_dtype())
    bundled = f"bundled, {autoencoder.get('_class_name', 'unnamed')}" if autoencoder else "not bundled"
    lines = [f"{path}: {os.path.getsize(path) / 1e6:.1f} MB, stored as {', '.join(sorted(types))}"]
    lines += [f"  {name}: {count / 1e6:.2f} M parameters" for name, count in counts.items() if count]
    lines += [f"  autoencoder: {config.autoencoder}, {bundled}"]
    lines += [f"  {key}: {value}" for key, value in sorted(notes.items())]
    lines += ["  configuration:"] + [f"    {key} = {value!r}" for key, value in json.loads(config.to_json()).items()]
    return "\n".join(lines)
