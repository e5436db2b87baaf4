"""The next step's batch is made while a step is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class ReadAhead(Generic[Batch]):
    """What `read` gives for the number of a step; that of the next one is read meanwhile, in a thread."""

    def __init__(self, read: Callable[[int], Batch]):
        self.read = read
        self._reader = ThreadPoolExecutor(1)
        self._coming: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        coming = self._coming.pop(step, None) or self._reader.submit(self.read, step)
        self._coming = {step + 1: self._reader.submit(self.read, step + 1)}
        return coming.result()
