"""What is meant for the user's eyes: exceptions, and what a warning is about."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar

# What this thread's warnings are about, where several things are made at once; "" where there is one.
ABOUT: ContextVar[str] = ContextVar("about", default="")


class InputError(ValueError):
    """An input cannot be used: the message is one sentence that says what is wrong and what to do about it.

    The command line prints it on one line and exits with status 1; nodes show it as it is.
    """


class NotFiniteError(InputError, FloatingPointError):
    """A loss or its gradient is NaN or infinite."""


class CheckpointError(InputError):
    """A file of weights is not what it should be."""


@contextlib.contextmanager
def about(what: str):
    """Inside, warnings of this thread are about this; whoever shows them says it with them."""
    before = ABOUT.set(what)
    try:
        yield
    finally:
        ABOUT.reset(before)
