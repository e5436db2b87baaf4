"""python -m letstalk_core: generate, demo, generate-many, leftovers, verify, convert, info, train, train-portraits,
puppet, prepare, evaluate, drift.

Every command ends with exit status 0, or prints one line on stderr and ends with another. Heavy imports happen inside
the commands, so that help is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

from ..errors import ABOUT, InputError
from .data_commands import add_data_commands
from .model_commands import add_evaluation_commands, add_model_commands, add_training_commands
from .video_commands import EXIT_NOT_MARKED, add_video_commands

EXIT_INTERRUPTED = 130
OWN = r"letstalk_core\b"  # modules whose warnings are notes to the user
__all__ = ["EXIT_INTERRUPTED", "EXIT_NOT_MARKED", "build_parser", "main"]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        if "expected one argument" in message:
            message += "; a name that begins with - is given as in --portrait=-me.png"
        print(f"letstalk: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m letstalk_core", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    add_video_commands(commands)
    add_model_commands(commands)
    add_training_commands(commands)
    add_data_commands(commands)
    add_evaluation_commands(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _note_printer():
    """What takes the place of warnings.showwarning: our own notes, one line each, and each once; other libraries'
    warnings are not the user's business."""
    said = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if category is not UserWarning or not Path(filename).is_relative_to(Path(__file__).parent.parent):
            return
        about, sentence = ABOUT.get(), " ".join(str(message).split())
        note = f"{about}: {sentence}" if about else sentence
        if note not in said:
            said.add(note)
            sys.stderr.write(f"letstalk: note: {note}\n")  # in one piece: threads write too

    return show


@contextlib.contextmanager
def _stops_interrupt():
    """Inside, the signals that end a process gently do what Ctrl-C does."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # elsewhere signals cannot be set
        numbers = []
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that a terminal cannot show must not end a rendering
            stream.reconfigure(errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    try:
        with _stops_interrupt(), warnings.catch_warnings():
            warnings.showwarning = _note_printer()
            # Python would say what two videos have in common once, of one of them.
            warnings.filterwarnings("always", category=UserWarning, module=OWN)
            if getattr(arguments, "strict", False):
                warnings.filterwarnings("error", category=UserWarning, module=OWN)
            status = arguments.run(arguments)
            sys.stdout.flush()  # a full disk is said here
    except KeyboardInterrupt as stop:
        print(f"letstalk: interrupted. {getattr(stop, 'kept', '')}".rstrip(". "), file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if arguments.debug:
            raise
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename is None and error.errno == errno.ENOSPC:
            text = "What is printed cannot be written: the disk that standard output goes to is full. Make room on it."
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what is left to print fails again at the end)
        if not isinstance(error, InputError | ValueError | OSError | UserWarning):  # not foreseen: say what it was
            text = f"{type(error).__name__}: {text} (--debug shows where)"
        print(f"letstalk: {text} {getattr(error, 'kept', '')}".rstrip(), file=sys.stderr)
        return 1
    return status or 0
