"""The order of examples and batches: decided by the seed and the batch's number alone, whatever the processes.

The examples of a step are a row of numbers; each process takes its part of it. So two processes with batches of 4 see
what one sees with batches of 8, and a resumed training sees what it would have seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.source import Source
from ..errors import InputError

STOPPING = {signal.SIGINT, signal.SIGTERM}


class BatchOrder:
    """The batches of one process from number `first` on: lists of (stretch, number of the example), without end.

    Every stretch is used once per epoch, in an order that differs from epoch to epoch.
    """

    def __init__(
        self, stretches: np.ndarray, seed: int, batch_size: int, rank: int = 0, world: int = 1, first: int = 0
    ):
        self.stretches, self.seed, self.batch_size = stretches, seed, batch_size
        self.rank, self.world, self.first = rank, world, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch, epoch, order = self.first, -1, None
        while True:
            begin = (batch * self.world + self.rank) * self.batch_size
            numbers = []
            for number in range(begin, begin + self.batch_size):
                if number // len(self.stretches) != epoch:
                    epoch = number // len(self.stretches)
                    order = np.random.default_rng((self.seed, 1, epoch)).permutation(self.stretches)
                numbers.append((int(order[number % len(self.stretches)]), number))
            yield numbers
            batch += 1


class Examples(Dataset):
    """A source as torch's DataLoader takes it: (stretch, number) -> example with "seed", for what is drawn later."""

    def __init__(self, source: Source, seed: int):
        self.source, self.seed = source, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict | InputError:
        stretch, number = key
        rng = np.random.default_rng((self.seed, 2, number))
        try:
            example = self.source.read(stretch, rng)
        except InputError as error:
            return error  # raised in the main process, where it is not wrapped in a worker's traceback
        return {**example, "seed": int(rng.integers(2**62)), "name": self.source.name(stretch)}


def collate(examples: list[dict | InputError]) -> dict | InputError:
    """A batch of examples: tensors stacked, "seed" and "name" as lists. Where one of them is an error, that error."""
    for example in examples:
        if isinstance(example, InputError):
            return example
    keys = examples[0].keys()
    return {
        key: torch.stack([e[key] for e in examples])
        if isinstance(examples[0][key], Tensor)
        else [e[key] for e in examples]
        for key in keys
    }


def on_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on a device; from pinned memory they travel while it computes."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


def held_apart(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the stretches to train on, numbers of those held out), sorted; at least one is trained on."""
    order = np.random.default_rng((seed, 3)).permutation(count)
    held = min(round(share * count), count - 1)
    return np.sort(order[held:]), np.sort(order[:held])


def load_batches(source: Source, order: BatchOrder, workers: int, pin_memory: bool = False) -> Iterator[dict]:
    """Yield batches in an order, read by `workers` processes (0: by this one, as where the source's data lie on the
    device). InputError where data is damaged."""
    if getattr(source, "held", False):
        workers, pin_memory = 0, False
    loader = DataLoader(
        Examples(source, order.seed),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_leave_stopping_to_the_main_process,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )
    with _held():
        batches = iter(loader)  # starts the workers
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Holds back the signals that ask for a stop, also in processes that are started meanwhile: one that comes before a
    worker has left the group would end it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_stopping_to_the_main_process(worker: int) -> None:
    """A terminal's Ctrl-C reaches every process of its group: the step that is under way still needs its data.

    In a group of its own a worker is ended by the main process alone, or ends itself when that is gone.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
