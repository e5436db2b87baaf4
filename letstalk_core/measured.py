"""What is measured once on each machine and remembered in the user's cache folder: how fast its hardware is at what."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Container
from pathlib import Path

import torch

from .errors import InputError
from .files import write_durably


def once(what: str, measure: Callable[[], int], allowed: Container[int], circumstances: str = "") -> int:
    """What `measure` answers, one of `allowed`; on a machine that has answered before, in the same circumstances and
    with the same PyTorch, what it answered then."""
    machine = f"{platform.node()} {platform.machine()} {os.cpu_count()} {circumstances} {torch.__version__}"
    file = cache_folder() / f"{what}.json"
    known = _known(file)
    if known.get(machine) in allowed:
        return known[machine]
    found = measure()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, json.dumps({**known, machine: found}).encode())
    except (OSError, InputError):  # then it is measured again the next time
        pass
    return found


def _known(file: Path) -> dict[str, int]:
    """What was measured before, by machines; nothing where the file is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {machine: int(number) for machine, number in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again."""
    home = Path.home()
    usual = {"win32": home / "AppData" / "Local", "darwin": home / "Library" / "Caches"}.get(sys.platform)
    return Path(os.environ.get("XDG_CACHE_HOME") or usual or home / ".cache") / "letstalk"
