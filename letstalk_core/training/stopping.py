"""Ctrl-C and a scheduler's SIGTERM end a training after its step, with everything saved."""

from __future__ import annotations

import signal
import threading


class StopRequest:
    """True once a stop was asked for. A second Ctrl-C interrupts at once."""

    def __init__(self):
        self._asked = False
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self._asked

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
