"""How many threads a CPU is fastest with: containers get less time than the cores they see, and some cores are slow."""

from __future__ import annotations

import os
import time

import torch

from .measured import once

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

    def fastest() -> int:
        chosen = min((most // 2**i for i in range(most.bit_length())), key=seconds_with)
        torch.set_num_threads(most)
        return chosen

    return once("threads", fastest, range(1, most + 1), str(most))


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
