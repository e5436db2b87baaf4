"""The exceptions that are meant for the user's eyes."""

from __future__ import annotations


class InputError(ValueError):
    """An input cannot be used: the message is one sentence that says what is wrong and what to do about it.

    The command line prints it on one line and exits with status 1; nodes show it as it is.
    """


class NotFiniteError(InputError, FloatingPointError):
    """A loss or its gradient is NaN or infinite."""


class CheckpointError(InputError):
    """A file of weights is not what it should be."""
