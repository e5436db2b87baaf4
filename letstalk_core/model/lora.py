"""LoRA: small additions to a model's linear layers, trained with peft and applied without it.

A LoRA file is one safetensors file: for each adapted layer `NAME.lora_A` [rank,in] and `NAME.lora_B` [out,rank], whose
product times alpha / rank is added to the layer's weight. Metadata: "format", "rank", "alpha", "letstalk_config" (that
of the model it was trained on, as JSON) and "base_digest" (of that model's weights).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import InputError
from ..weights import some_of, write_weights
from .checkpoint import CONFIG_KEY, LetsTalkModel, check_readable
from .checkpoint import FORMAT as CHECKPOINT_FORMAT

FORMAT = "letstalk-lora-1"
STRENGTHS = (-10.0, 10.0)
# Linears of every attention, by the last part of their names, whichever fusion scheme they belong to.
ATTENTION = ("qkv", "out", "mix", "query", "key", "value")
ADAPTER, BASE = "default", ".base_layer"  # peft's names
A, B = ".lora_A", ".lora_B"


def lora_targets(model: LetsTalkModel) -> list[str]:
    """Names of the linear layers that a LoRA adapts: those of every attention and of the audio projection."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (name.startswith("audio_projection.") or name.rpartition(".")[2] in ATTENTION)
    ]


def add_lora(model: LetsTalkModel, rank: int, alpha: float) -> list[str]:
    """Put trainable adapters, float32, into a model and freeze everything else; returns the names of adapted layers.

    A new adapter adds exactly nothing; torch's global generator draws its first half. Call it on the model as it was
    loaded, before it is cast: the digest of its weights is kept for save_lora. Raises InputError for a rank or alpha
    that make no sense and where peft is missing, ValueError where the model has adapters already.
    """
    if rank < 1 or not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"A LoRA needs a rank of 1 or more and an alpha above 0, not rank {rank} and alpha {alpha}.")
    if _adapters(model):
        raise ValueError("the model has adapters already")
    model.lora_base_digest = base_digest(model)
    return inject_adapters(model, rank, alpha)


def inject_adapters(model: LetsTalkModel, rank: int, alpha: float) -> list[str]:
    """What add_lora does to a model's layers, also where it is on the meta device. InputError where peft is missing."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError(f"Training a LoRA needs peft ({error}); install it with: pip install peft") from error
    targets = lora_targets(model)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), model, ADAPTER)
    model.requires_grad_(False)
    for adapter in _adapters(model).values():
        adapter.lora_A[ADAPTER].float().requires_grad_(True)
        adapter.lora_B[ADAPTER].float().requires_grad_(True)
    return targets


def _adapters(model: nn.Module) -> dict[str, nn.Module]:
    """peft's layers by name."""
    return {name: module for name, module in model.named_modules() if ADAPTER in getattr(module, "lora_A", ())}


def base_digest(model: LetsTalkModel) -> str:
    """The digest of a model's weights without adapters, the same whichever type holds the same values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(base_state_dict(model).items()):
        digest.update(f"{name} {list(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def base_state_dict(model: LetsTalkModel, merged: bool = False) -> dict[str, Tensor]:
    """A model's state dict with the keys of a model without adapters; merged: with what the adapters add.

    Tensors that no adapter changes are the model's own, not copies.
    """
    state = {key.replace(f"{BASE}.", "."): value for key, value in model.state_dict().items() if ".lora_" not in key}
    for name, adapter in _adapters(model).items() if merged else ():
        a, b = adapter.lora_A[ADAPTER].weight.detach(), adapter.lora_B[ADAPTER].weight.detach()
        state[f"{name}.weight"] = _added(state[f"{name}.weight"], a, b, adapter.scaling[ADAPTER])
    return state


def plain_model(model: LetsTalkModel, merged: bool = False) -> LetsTalkModel:
    """The model without adapters, or with them merged into the weights, as save_checkpoint takes it.

    It shares with the given one the weights that no adapter changes.
    """
    with torch.device("meta"):
        plain = LetsTalkModel(model.config)
    plain.load_state_dict(base_state_dict(model, merged), assign=True)
    return plain.train(model.training)


def _added(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight [out,in] + scale * b [out,rank] @ a [rank,in], computed in float32, in the weight's type."""
    a, b = (part.to(weight.device, torch.float32) for part in (a, b))
    return (weight.float() + scale * (b @ a)).to(weight.dtype)


def save_lora(path: str | Path, model: LetsTalkModel, *, notes: Mapping[str, str] | None = None) -> None:
    """Write the adapters that add_lora put into a model to one file, whole or not at all.

    notes: further metadata, which apply_loras ignores. Raises InputError where the file cannot be written, ValueError
    for a model without adapters.
    """
    adapters = _adapters(model)
    if not adapters:
        raise ValueError("the model has no adapters; add_lora puts them in")
    tensors = {}
    for name, adapter in adapters.items():
        for suffix, part in ((A, adapter.lora_A), (B, adapter.lora_B)):
            tensors[name + suffix] = part[ADAPTER].weight.float()
    first = next(iter(adapters.values()))
    metadata = {
        **(notes or {}),
        **{"format": FORMAT, CONFIG_KEY: model.config.to_json(), "base_digest": model.lora_base_digest},
        **{"rank": str(first.r[ADAPTER]), "alpha": str(first.lora_alpha[ADAPTER])},
    }
    write_weights(path, tensors, metadata)


@dataclass(frozen=True)
class _Lora:
    """What is in a file: scale is alpha / rank, pairs A [rank,in] and B [out,rank] by layer."""

    path: str | Path
    scale: float
    base_digest: str | None
    pairs: dict[str, tuple[Tensor, Tensor]]


def apply_loras(model: LetsTalkModel, loras: Sequence[tuple[str | Path, float]]) -> None:
    """Add several LoRAs, each (path, strength), to a model's weights in place: all of them or, on an error, none.

    A strength of 0 changes nothing. Raises InputError for a strength outside STRENGTHS, for a file that is no LoRA and
    for one of another architecture. Warns where a LoRA was trained on other weights: it may still do what it should.
    """
    for path, strength in loras:
        if not STRENGTHS[0] <= strength <= STRENGTHS[1]:  # NaN too
            raise InputError(f"The strength of {path} is {strength}; choose one from -10 to 10, of which 1 is usual.")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = [_read(path) for path, _ in loras]
    for lora in found:
        _check_fit(lora, linears)
    digest = base_digest(model) if found else None
    for lora, (_, strength) in zip(found, loras, strict=True):
        if lora.base_digest != digest:
            warnings.warn(
                f"{Path(lora.path).name} was trained on other weights than this model's; it may not do what it should.",
                stacklevel=2,
            )
        for name, (a, b) in lora.pairs.items() if strength else ():
            weight = linears[name].weight.detach()
            weight.copy_(_added(weight, a, b, strength * lora.scale))


def _read(path: str | Path) -> _Lora:
    """The LoRA in a file, or an InputError that says what the file is instead."""
    check_readable(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") == FORMAT:
                # Copied, so that nothing stays mapped to a file which may be replaced.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise InputError(f"{path}: not a safetensors file, or a truncated one; get the LoRA's file again") from None
    if metadata.get("format") == CHECKPOINT_FORMAT:
        raise InputError(f"{path}: a whole model, not a LoRA; choose it as the model instead")
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a LoRA of LetsTalk (of the format {FORMAT!r}), and those of other models don't fit"
        )
    names = sorted({key.removesuffix(A).removesuffix(B) for key in tensors})
    if not names or set(tensors) != {name + suffix for name in names for suffix in (A, B)}:
        raise InputError(f"{path}: its tensors are not pairs of {A[1:]} and {B[1:]}; the file is damaged")
    try:
        rank, alpha = int(metadata["rank"]), float(metadata["alpha"])
        if rank < 1 or not math.isfinite(alpha):
            raise ValueError
    except (KeyError, ValueError):
        raise InputError(f"{path}: its metadata has no rank and alpha that can be used; the file is damaged") from None
    pairs = {name: (tensors[name + A], tensors[name + B]) for name in names}
    for name, (a, b) in pairs.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise InputError(f"{path}: {name} is not of rank {rank}; the file is damaged")
    return _Lora(path, alpha / rank, metadata.get("base_digest"), pairs)


def _check_fit(lora: _Lora, linears: dict[str, nn.Linear]) -> None:
    """Raises InputError, naming what differs, where a LoRA is not for a model with these layers."""
    if missing := lora.pairs.keys() - linears.keys():
        raise InputError(f"{lora.path}: for another model, as this one has no layer {some_of(missing)}")
    for name, (a, b) in lora.pairs.items():
        found, here = (b.shape[0], a.shape[1]), tuple(linears[name].weight.shape)
        if found != here:
            raise InputError(f"{lora.path}: for another model, as its {name} is {found} and this model's is {here}")
