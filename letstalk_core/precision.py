"""Which hardware computes, and in which precision: bfloat16 is fast on some and many times slower on others, which
emulate it."""

from __future__ import annotations

import functools
import time

import torch

from .errors import InputError
from .measured import once

WORTH = 0.8  # of float32's time: below it bfloat16 is worth its errors; with units for it it is far below, else above
REPEATED = 5


def computes_bf16(device_type: str) -> bool:
    """Whether that kind of device ("cpu", "cuda") is fast in bfloat16: a GPU by its units, a CPU by a measurement that
    is taken once on each machine."""
    if device_type != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return _cpu_computes_bf16()


@functools.cache
def _cpu_computes_bf16() -> bool:
    return bool(once("bf16", lambda: int(bf16_share() < WORTH), (0, 1)))


@torch.inference_mode()
def bf16_share() -> float:
    """The time of a convolution like the decoder's in bfloat16 on this CPU, over that in float32: the fastest of a few
    of each, in turn."""
    took: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for dtype in list(took) * (REPEATED + 1):  # the first of each is not counted
        images = torch.ones(4, 64, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.ones(64, 64, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        began = time.perf_counter()
        torch.nn.functional.conv2d(images, weight, padding=1)
        took[dtype].append(time.perf_counter() - began)
    exact, half = (min(seconds[1:]) for seconds in took.values())
    return half / exact


def native_autocast(device_type: str) -> torch.autocast:
    """A context in which matrices are multiplied in bfloat16 where the device computes in it."""
    return torch.autocast(device_type, torch.bfloat16, enabled=computes_bf16(device_type))


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA, then Apple's GPU, then the CPU. InputError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"The device {name!r} is not available here; choose auto or cpu.") from None
    return device
