"""Arrays of training data in files, filled block by block by whoever makes the data, in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InputError


def open_array(path: Path, shape: tuple[int, ...], dtype) -> np.ndarray:
    """The memory-mapped array in a .npy file, made if it is missing; InputError where the file holds another shape."""
    if not path.exists():
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    array = np.load(path, mmap_mode="r+")
    if array.shape != shape:
        raise InputError(f"{path} holds {array.shape}, not {shape}; delete its folder or choose another.")
    return array


def make_blocks(make: Callable[[int], None], starts: list[int], workers: int, name: str) -> None:
    """Call make(start) for every block, in `workers` processes where there are several; `name` is for the bar."""
    if workers == 1 or len(starts) <= 1:
        for start in tqdm(starts, desc=name, disable=not starts):
            make(start)
        return
    spawned = multiprocessing.get_context("spawn")  # a forked process would share the threads of torch
    with ProcessPoolExecutor(min(workers, len(starts)), spawned, torch.set_num_threads, (1,)) as pool:
        blocks = [pool.submit(make, start) for start in starts]
        for done in tqdm(as_completed(blocks), total=len(blocks), desc=name, mininterval=10):
            done.result()
