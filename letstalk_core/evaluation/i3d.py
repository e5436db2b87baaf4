"""The Inflated 3D network (Carreira and Zisserman 2017, arXiv 1705.07750) whose logits FVD compares.

The names of its layers are those of the published PyTorch conversions of the RGB network trained on Kinetics-400, so
that their files load.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 16  # frames that are looked at at once
SIDE = 224  # pixels
CLASSES = 400
# Channels of a block's branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pooled then 1x1.
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}  # before these blocks


def pad_as_tensorflow(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around [B,C,T,H,W] as TensorFlow's "SAME" has them: the odd one at the end."""
    padding: list[int] = []
    for length, size, step in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(size - (step if length % step == 0 else length % step), 0)
        padding = [total // 2, total - total // 2, *padding]
    return F.pad(x, padding)


class Unit(nn.Module):
    """Convolution, normalisation and ReLU; the last layer has only the convolution, with a bias."""

    def __init__(self, low: int, high: int, size: int = 1, stride: int = 1, last: bool = False):
        super().__init__()
        self.kernel, self.stride = (size,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(low, high, size, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(high, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad_as_tensorflow(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x))


def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(pad_as_tensorflow(x, kernel, stride), kernel, stride)


class Block(nn.Module):
    """Four branches side by side."""

    def __init__(self, low: int, widths: tuple[int, ...]):
        super().__init__()
        self.b0 = Unit(low, widths[0])
        self.b1a, self.b1b = Unit(low, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(low, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(low, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b3b(pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], 1)


class I3D(nn.Module):
    """Windows [B,3,16,224,224] in -1..1 -> logits [B,400], the mean over time."""

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit(64, 64), Unit(64, 192, 3)
        low = 192
        for name, widths in BLOCKS.items():
            self.add_module(name, Block(low, widths))
            low = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = Unit(low, CLASSES, last=True)

    def forward(self, windows: Tensor) -> Tensor:
        x = pool(self.Conv3d_1a_7x7(windows), (1, 3, 3), (1, 2, 2))
        x = pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in BLOCKS:
            x = self.get_submodule(name)(pool(x, *POOLS[name]) if name in POOLS else x)
        return self.logits(F.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))
