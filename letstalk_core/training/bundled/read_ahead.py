"""The batches of the next steps are made while a step is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

Batch = TypeVar("Batch")

_kept: Callable[[int], Any]  # in a process of ReadAhead: what it reads with


class ReadAhead(Generic[Batch]):
    """What `read` gives for the number of a step; those of the next ones are read meanwhile, in a thread, or in
    `processes` of their own, to each of which `read` is sent once."""

    def __init__(self, read: Callable[[int], Batch], processes: int = 0):
        self._pool: Executor = (
            ProcessPoolExecutor(processes, get_context("spawn"), _keep, (read,)) if processes else ThreadPoolExecutor(1)
        )
        self._task = _read_kept if processes else read
        self._ahead = 2 * processes or 1
        self._coming: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        wanted = range(step, step + 1 + self._ahead)
        self._coming = {other: self._coming.get(other) or self._pool.submit(self._task, other) for other in wanted}
        return self._coming.pop(step).result()


def _keep(read: Callable[[int], Any]) -> None:
    global _kept
    _kept = read


def _read_kept(step: int) -> Any:
    return _kept(step)
