"""Where an autoencoder is found: in a file or folder of its own, or in a model's file that bundles one."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from .errors import InputError
from .model.checkpoint import CONFIG_KEY, load_bundled_autoencoder
from .picture.autoencoder import Autoencoder, load_autoencoder, restore_autoencoder


def find_autoencoder(given: str | Path, init_from: str | Path = "") -> Autoencoder | None:
    """The autoencoder of `given` (a file or folder of its own, or a model that bundles one), else that of init_from.

    None where neither names one. InputError where `given` is a model without an autoencoder.
    """
    for path in (given, init_from):
        if path and is_model(path):
            found = bundled_autoencoder(path)
            if found is not None:
                return found
            if path == given:
                raise InputError(f"{path} is a model that bundles no autoencoder; set autoencoder to one that does.")
        elif path and path == given:
            return load_autoencoder(path)
    return None


def bundled_autoencoder(path: str | Path) -> Autoencoder | None:
    """The autoencoder in a model's file, float32 on the CPU with its model's latent scale; None where it has none."""
    bundled = load_bundled_autoencoder(path)
    if bundled is None:
        return None
    return restore_autoencoder(bundled.config, bundled.weights, f"{path}: autoencoder")


def is_model(path: str | Path) -> bool:
    """Whether a file is a checkpoint of this package."""
    try:
        with safe_open(path, "pt") as file:
            return CONFIG_KEY in (file.metadata() or {})
    except Exception:  # not there, a folder, or no safetensors file: others say so
        return False
