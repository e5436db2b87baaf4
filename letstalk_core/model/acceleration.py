"""Ways to compute the same model faster, which pay on some hardware only."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ..errors import InputError
from .transformer import LetsTalkTransformer


def quantise(transformer: LetsTalkTransformer) -> None:
    """Turn the linear layers of the blocks into int8, in place: their weights now, what goes into them as it comes.

    For float32 on a CPU only; nothing can be trained then. InputError where this PyTorch does not have it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is to move to a package of its own
            transformer.blocks = torch.ao.quantization.quantize_dynamic(transformer.blocks, {nn.Linear})
    except (AttributeError, RuntimeError) as error:
        raise InputError(f"This PyTorch does not compute in int8 here ({error}); choose fp32.") from error


def compile_blocks(transformer: LetsTalkTransformer, clip: dict[str, Tensor]) -> bool:
    """Compile the blocks (torch.compile) for inputs like those of `clip`; whether that could be done.

    Where there is no compiler, or it fails, the blocks stay as they are, and a warning says so.
    """
    for block in transformer.blocks:
        block.compile()
    try:
        with torch.inference_mode():
            transformer(**clip)
        return True
    except Exception as error:  # of whatever kind a compiler and its tools raise
        for block in transformer.blocks:
            block._compiled_call_impl = None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        warnings.warn(f"The model cannot be compiled here ({reason}); it is computed as it is.", stacklevel=2)
        return False
