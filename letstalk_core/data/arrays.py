"""Arrays of training data in files, filled block by block by whoever makes the data, in several processes."""

from __future__ import annotations

import functools
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


class BlockStore:
    """Training data in a folder: arrays of `count` rows that are made once, block by block, and marked as made.

    A kind of data says what its `kept` arguments are, opens its arrays, and makes one row.

    Args:
        folder: of the arrays and marks; made if missing.
        count: rows in all.
        block: how many are made at a time.
    """

    kind = ""  # for the progress bar
    kept: tuple[str, ...] = ("folder", "count", "block")  # arguments of __init__, for worker processes

    def __init__(self, folder: Path, count: int, block: int):
        self.folder, self.count, self.block = folder, count, block
        self.arrays: list[np.ndarray] = []
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
        """The array of rows of this shape, in a file of the folder. InputError where that holds another shape."""
        self.arrays.append(open_array(self.folder / f"{name}.npy", (self.count, *shape), dtype))
        return self.arrays[-1]

    def make(self, workers: int = 1, device: str = "cpu"):
        """Make the rows that are missing, in `workers` processes on a CPU; safe to stop and call again. Returns
        itself."""
        missing = [start for start in range(0, self.count, self.block) if not self._mark(start).exists()]
        make = functools.partial(self.make_block, device=device)
        _make_blocks(make, missing, workers if device == "cpu" else 1, self.kind)
        return self

    def make_block(self, start: int, device: str = "cpu") -> None:
        """Make rows start .. start + block - 1 and mark them as made."""
        for index in range(start, min(start + self.block, self.count)):
            self.make_row(index, device)
        for array in self.arrays:
            array.flush()
        self._mark(start).touch()

    def make_row(self, index: int, device: str) -> None:
        """Fill row `index` of every array, all decided by the index."""
        raise NotImplementedError

    def _mark(self, start: int) -> Path:
        return self.folder / f"{start}.done"

    def __getstate__(self) -> dict:
        """For a worker process, which opens the arrays itself."""
        return {name: getattr(self, name) for name in self.kept}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def _make_blocks(make: Callable[[int], None], starts: list[int], workers: int, name: str) -> None:
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
