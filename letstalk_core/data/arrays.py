"""Arrays of training data in files, filled row by row by whoever makes the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError


def open_array(path: Path, shape: tuple[int, ...], dtype) -> np.ndarray:
    """The memory-mapped array in a .npy file, made if it is missing; InputError where the file holds another shape."""
    if not path.exists():
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    array = np.load(path, mmap_mode="r+")
    if array.shape != shape:
        raise InputError(f"{path} holds {array.shape}, not {shape}; delete its folder or choose another.")
    return array
