"""Work that goes on ahead of the one who uses it: a graphics card samples the next clip while this one is decoded."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def ahead(items: Iterator[Item], device: torch.device) -> Iterator[Item]:
    """The same items, each made in a thread while the one before it is used: one waits, never more.

    On a graphics card the thread computes on a stream of its own, and an item is whole before it is given. What making
    one raises is raised in its place. Whoever leaves early waits for the one that is being made.
    """
    stream = _Stream(device) if device.type == "cuda" else None
    context = contextvars.copy_context()  # ComfyUI keeps in it for which node it works

    def following() -> Item | None:
        with stream or contextlib.nullcontext():
            return next(items, None)

    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = thread.submit(context.run, following)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(context.run, following)
            yield item
            if stream:
                stream.used()


class _Stream:
    """A card's stream for what is made inside; it begins behind what the maker's current one is at."""

    def __init__(self, device: torch.device):
        self.device, self.own = device, torch.cuda.Stream(device)
        self.own.wait_stream(torch.cuda.current_stream(device))

    def __enter__(self) -> None:
        self.inside = torch.cuda.stream(self.own)
        self.inside.__enter__()

    def __exit__(self, *error) -> None:
        self.own.synchronize()
        self.inside.__exit__(*error)

    def used(self) -> None:
        """Wait for whoever uses an item: its memory goes back to this stream, which would write into it at once."""
        torch.cuda.current_stream(self.device).synchronize()
