"""Which precision hardware computes in: bfloat16 is fast on some and many times slower on others, which emulate it."""

from __future__ import annotations

import torch


def computes_bf16(device_type: str) -> bool:
    """Whether that kind of device ("cpu", "cuda") has matrix units for bfloat16."""
    if device_type != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def native_autocast(device_type: str) -> torch.autocast:
    """A context in which matrices are multiplied in bfloat16 where the device computes in it."""
    return torch.autocast(device_type, torch.bfloat16, enabled=computes_bf16(device_type))
