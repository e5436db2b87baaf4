"""Weights in files: written whole or not at all, filled in strictly, and known by their digest.

Ours are safetensors; published networks also come as PyTorch's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import CheckpointError
from .files import cannot_write, create_part, move_into_place

T = TypeVar("T", bound=nn.Module)


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file, making its folder; it appears under its name when it is whole and on the disk.

    Raises InputError where it cannot be written, and leaves nothing then.
    """
    path, part = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = create_part(path)
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, dict(metadata))
        move_into_place(part, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def fill_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str, advice: str = "") -> None:
    """Give a module, which may be on the meta device, its tensors; every key and shape must be the module's.

    Raises CheckpointError, "WHERE: what does not fit; ADVICE", which names the first few of the keys.
    """
    wanted = module.state_dict()
    shared = wanted.keys() & tensors.keys()
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, the configuration needs {tuple(wanted[key].shape)}"
        for key in wanted
        if key in shared and tensors[key].shape != wanted[key].shape
    ]
    groups = {"missing": wanted.keys() - shared, "unexpected": tensors.keys() - shared}
    found = [f"{word} {some_of(keys)}" for word, keys in groups.items() if keys]
    found += shapes[:1] + ([f"{len(shapes) - 1} more of another shape"] if len(shapes) > 1 else [])
    if found:
        raise CheckpointError(f"{where}: {'; '.join(found)}" + (f"; {advice}" if advice else ""))
    module.load_state_dict(dict(tensors), assign=True)


def write_network(path: str | Path, network: nn.Module) -> None:
    """Write the weights of a small network that ships with the package, as float16."""
    write_weights(path, {name: value.half() for name, value in network.state_dict().items()}, {})


def read_network(path: str | Path, network: T) -> T:
    """The network with the weights of a file, float32, in evaluation mode; CheckpointError unless they fit."""
    fill_strictly(network, {name: value.float() for name, value in load_file(path).items()}, str(path))
    return network.eval()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or PyTorch file, float32, without running anything that is in it."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged pickle it may be any
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} is no file of weights that can be read ({what[:120]}); get it again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is no plain table of tensors; give the network's state_dict.")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def read_published(path: str | Path, network: T, advice: str) -> T:
    """The network with the weights of its authors' file, in evaluation mode; CheckpointError unless they fit.

    Older files have no counts of batches, which are only needed in training.
    """
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    fill_strictly(network, {**counters, **read_state(path)}, str(path), advice)
    return network.eval().requires_grad_(False)


def some_of(keys: Iterable[str]) -> str:
    """The first few of a set of keys and how many there are."""
    keys = sorted(keys)
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more ({len(keys)} in all)" if len(keys) > 4 else "")


def add_to_digest(digest, state: Mapping[str, Tensor]) -> None:
    """Feed one of hashlib's hashes with all of a state dict, in its order: names, types, shapes and values."""
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
