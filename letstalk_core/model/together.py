"""Calls of several threads, computed as one batch: a small model fills little of a graphics card on its own."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import about

PATIENCE = 0.005  # seconds that a call waits for others to join it


class _Call:
    """One call: its inputs as leaves, of which the tensors are [B,...] or of the first rows alone, and the answer."""

    def __init__(self, inputs: tuple[tuple, dict]):
        self.leaves, self.form = tree_flatten(inputs)
        self.answer: Future[Tensor] = Future()
        rows = [len(leaf) for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.first, self.rest = min(rows), max(rows) - min(rows)
        # Only calls that differ in nothing but what the tensors hold, and in B, go together.
        self.kind = (
            repr(self.form),
            *((leaf.shape[1:], leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves),
        )


class Together:
    """A function of tensors [B,...] that threads call as if each were alone; `most` calls at once are one batch.

    A call waits for others until `most` are there, PATIENCE at most. Answers are those of the call alone but for
    rounding, since larger products add up in another order. Where a graphics card's memory does not hold that many,
    fewer go together from then on, which a warning says.
    """

    def __init__(self, function: Callable[..., Tensor], most: int):
        self.function, self.most = function, most
        self._waiting: dict[tuple, list[_Call]] = {}
        self._joined, self._computing = threading.Condition(), threading.Lock()

    def __call__(self, *inputs, **named) -> Tensor:
        call = _Call((inputs, named))
        with self._joined:
            group = self._waiting.setdefault(call.kind, [])
            group.append(call)
            if group[0] is call:  # the first one computes for all
                try:
                    self._joined.wait_for(lambda: len(group) >= self.most, PATIENCE)
                except BaseException as error:  # an interrupt: nobody is left waiting
                    _fail(group, error)
                    raise
                finally:
                    del self._waiting[call.kind]
            else:
                self._joined.notify_all()
        if group[0] is call:
            with self._computing, about(""):  # for all: it is about no single one
                self._answer(group)
        return call.answer.result()

    def _answer(self, group: list[_Call]) -> None:
        try:
            most = self.most  # more may have joined
            for calls in (group[start : start + most] for start in range(0, len(group), most)):
                for call, answer in zip(calls, self._batch(calls), strict=True):
                    call.answer.set_result(answer)
        except BaseException as error:
            _fail(group, error)

    def _batch(self, calls: list[_Call]) -> list[Tensor]:
        """The answers to calls in one: first the rows that all tensors have, of every call, then the others."""
        firsts, rests = [call.first for call in calls], [call.rest for call in calls]
        leaves = [
            _joined(same, firsts) if isinstance(same[0], Tensor) else same[0]
            for same in zip(*(call.leaves for call in calls), strict=True)
        ]
        inputs, named = tree_unflatten(leaves, calls[0].form)
        try:
            parts = self.function(*inputs, **named).split(firsts + rests)
            return [torch.cat(own) for own in zip(parts[: len(calls)], parts[len(calls) :], strict=True)]
        except torch.cuda.OutOfMemoryError:
            if len(calls) == 1:
                raise
        # Outside of except, which keeps what failed alive.
        half = self.most = len(calls) // 2
        warnings.warn(
            f"The graphics card's memory does not hold {len(calls)} videos at once; going on with {half}.", stacklevel=2
        )
        return [answer for some in (calls[:half], calls[half:]) for answer in self._batch(some)]


def _joined(tensors: Sequence[Tensor], firsts: Sequence[int]) -> Tensor:
    """The first rows of each, and then the rest of each."""
    pairs = [tensor.tensor_split((first,)) for tensor, first in zip(tensors, firsts, strict=True)]
    return torch.cat([part for parts in zip(*pairs, strict=True) for part in parts])


def _fail(group: list[_Call], error: BaseException) -> None:
    for call in group:
        if not call.answer.done():
            call.answer.set_exception(error)
