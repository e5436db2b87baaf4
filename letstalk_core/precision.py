"""Which hardware computes, and in which precision: bfloat16 is fast on some and many times slower on others, which
emulate it."""

from __future__ import annotations

import torch

from .errors import InputError


def computes_bf16(device_type: str) -> bool:
    """Whether that kind of device ("cpu", "cuda") has matrix units for bfloat16."""
    if device_type != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


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
