"""How many threads a CPU is fastest with: containers get less time than the cores they see, and some cores are slow."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path

import torch

from .errors import InputError
from .files import write_durably

FEWEST = 4  # threads from which on measuring may gain more than it takes
REPEATED = 3
MOST_THREADS = 1024


def choose_threads() -> int:
    """The number of threads to compute with, of PyTorch's own number and its halves the fastest.

    Measured in a second, once on each machine, and remembered in the user's cache folder. What OMP_NUM_THREADS says,
    and a few threads, stay as they are.
    """
    most = torch.get_num_threads()
    if most < FEWEST or os.environ.get("OMP_NUM_THREADS"):
        return most
    machine = f"{platform.node()} {platform.machine()} {os.cpu_count()} {most} {torch.__version__}"
    file = cache_folder() / "threads.json"
    known = _known(file)
    if 1 <= known.get(machine, 0) <= most:
        return known[machine]
    counts = [most // 2**i for i in range(most.bit_length())]
    chosen = min(counts, key=seconds_with)
    torch.set_num_threads(most)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, json.dumps({**known, machine: chosen}).encode())
    except (OSError, InputError):  # then it is measured again the next time
        pass
    return chosen


def _known(file: Path) -> dict[str, int]:
    """What was measured before, by machines; nothing where the file is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {machine: int(threads) for machine, threads in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def seconds_with(threads: int) -> float:
    """Of a convolution like the decoder's, the fastest of a few."""
    torch.set_num_threads(threads)
    images, weight = torch.ones(4, 64, 64, 64), torch.ones(64, 64, 3, 3)
    took = []
    for _ in range(REPEATED + 1):
        began = time.perf_counter()
        torch.nn.functional.conv2d(images, weight)
        took.append(time.perf_counter() - began)
    return min(took[1:])


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again."""
    home = Path.home()
    usual = {"win32": home / "AppData" / "Local", "darwin": home / "Library" / "Caches"}.get(sys.platform)
    return Path(os.environ.get("XDG_CACHE_HOME") or usual or home / ".cache") / "letstalk"
