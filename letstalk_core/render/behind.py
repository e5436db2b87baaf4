"""Work that goes on behind the one who asks for it: frames are encoded while the next ones are made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

HELD_PIXELS = 2**21  # of frames that wait: 32 of 256 px, 6 MB


class Behind:
    """Calls a function of frames uint8 [n,H,W,3] in a thread, in the order in which they are given::

        with Behind(writer.write) as write:
            write(frames)

    Frames of some HELD_PIXELS wait at most, two calls at least; then the caller waits. What the function raises is
    raised by a later call or at the end. Left with an exception, what still waits is dropped.
    """

    def __init__(self, function: Callable[[Tensor], None]):
        self.function, self.waiting = function, deque[Future]()

    def __enter__(self) -> Behind:
        self.pool = ThreadPoolExecutor(1, "behind")
        return self

    def __call__(self, frames: Tensor) -> None:
        most = max(2, HELD_PIXELS // max(1, frames[..., 0].numel()))
        while len(self.waiting) >= most:
            self.waiting.popleft().result()
        self.waiting.append(self.pool.submit(self.function, frames))

    def __exit__(self, kind, error, trace) -> None:
        try:
            while kind is None and self.waiting:
                self.waiting.popleft().result()
        finally:
            self.pool.shutdown(cancel_futures=True)
