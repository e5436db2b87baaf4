"""The portrait-guided autoencoder: latents hold what a frame adds to the portrait, which the decoder sees as well.

The idea of Reference-Guided Deep-Compression VAE (arXiv 2606.01620). A frame becomes small latents; to decode them, the
portrait's features are warped by a flow that the decoder predicts, finer and finer, and its own picture is blended with
the warped portrait: pores, hair and background come from the photograph, what it does not show is painted. Nothing runs
at more than a quarter of the picture's resolution but that warp and that blend, so that a CPU keeps up. Both can be of
a finer picture of the portrait than the one that the features are of: frames are then as large and as sharp as it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .ramp import smoothstep

PATCH = 4  # pixels along each side of what the first level sees as one position
FLOW_REACH = 0.7  # the farthest that a level may move the portrait, of half a picture; finer levels half as far each

# In halves of the picture (a tenth and a half of a pixel of 256): what moves by less than the first keeps still.
AT_REST, MOVING = 0.1 / 128, 0.5 / 128

# f32c32: 256 px become 8x8x32 latents.
SMALL_PORTRAIT_AE: dict = {
    "_class_name": "PortraitAutoencoder",
    "latent_channels": 32,
    "block_out_channels": [96, 144, 192, 224],
    "encoder_layers_per_block": [1, 1, 2, 2],
    "decoder_layers_per_block": [1, 1, 2, 2],
    "scaling_factor": 1.0,
}


class Seen(NamedTuple):
    """What a decoder needs of a portrait: the picture [1 or n,3,H,W], of any size, and its features, finest first; in
    float32, as they are warped. Further channels of the picture, as its matte, are moved with it and never painted."""

    picture: Tensor
    features: list[Tensor]

    def part(self, which: slice) -> Seen:
        """That of some of n portraits; one portrait is everybody's."""
        return self if len(self.picture) == 1 else Seen(self.picture[which], [level[which] for level in self.features])

    def repeated(self, count: int) -> Seen:
        """The same portrait for each of `count` frames."""
        if len(self.picture) == count:
            return self
        return Seen(
            self.picture.expand(count, -1, -1, -1), [level.expand(count, -1, -1, -1) for level in self.features]
        )


class RMSNorm2d(nn.Module):
    """Over the channels of each position; a third of the time that PyTorch's own takes on a CPU in bfloat16."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).square()
        return x * torch.rsqrt(squares / x.shape[1] + 1e-6).to(x.dtype) * self.weight.to(x.dtype)[:, None, None]


class ResidualBlock(nn.Module):
    """[n,c,h,w] -> the same shape; nothing at first."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm2d(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(self.norm(x))))


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


class Encoder(nn.Module):
    """Images to features of every level, and their last to latents."""

    def __init__(self, channels: list[int], layers: list[int], latent_channels: int):
        super().__init__()
        self.stem = nn.Conv2d(3 * PATCH**2, channels[0], 3, padding=1)
        self.levels = nn.ModuleList(_blocks(c, count) for c, count in zip(channels, layers, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in zip(channels, channels[1:], strict=False))
        self.norm = RMSNorm2d(channels[-1])
        self.to_latents = nn.Conv2d(channels[-1], latent_channels, 1)

    def features(self, images: Tensor) -> list[Tensor]:
        """[n,3,H,W] -> [n,c,H/4,W/4], [n,c,H/8,W/8], ... finest first."""
        h = self.levels[0](self.stem(functional.pixel_unshuffle(images, PATCH)))
        found = [h]
        for down, level in zip(self.down, self.levels[1:], strict=True):
            h = level(down(functional.pixel_unshuffle(h, 2)))
            found.append(h)
        return found

    def latents(self, features: list[Tensor]) -> Tensor:
        """Those of the pictures with these features."""
        return self.to_latents(self.norm(features[-1]))

    def forward(self, images: Tensor) -> Tensor:
        return self.latents(self.features(images))


class Join(nn.Conv2d):
    """Two of [n,c,h,w] -> [n,c,h,w]: a 1x1 convolution of both in a row. The first has its channels last in memory, the
    second, as warps leave it, first: to bring them together would take three times as long on a CPU."""

    def __init__(self, channels: int):
        super().__init__(2 * channels, channels, 1)

    def forward(self, own: Tensor, seen: Tensor) -> Tensor:
        for_own, for_seen = self.weight.chunk(2, 1)
        read = torch.matmul(seen.to(own.dtype).flatten(2).mT, for_seen.flatten(1).mT)  # [n,h*w,c]
        return functional.conv2d(own, for_own, self.bias) + read.unflatten(1, own.shape[2:]).movedim(-1, 1)


class Decoder(nn.Module):
    """Latents and a portrait's features to a flow, a painting, and where it hides the warped portrait."""

    def __init__(self, channels: list[int], layers: list[int], latent_channels: int):
        super().__init__()
        self.from_latents = nn.Conv2d(latent_channels, channels[-1], 1)
        self.portrait = nn.ModuleList(nn.Conv2d(c, c, 1) for c in channels)
        self.join = nn.ModuleList(Join(c) for c in channels)
        self.levels = nn.ModuleList(_blocks(c, count) for c, count in zip(channels, layers, strict=True))
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in zip(channels, channels[1:], strict=False))
        self.flow = nn.ModuleList(nn.Conv2d(c, 2, 3, padding=1) for c in channels)
        self.norm = RMSNorm2d(channels[0])
        self.paint = nn.Conv2d(channels[0], 4 * PATCH**2, 3, padding=1)
        for flow in self.flow:
            nn.init.zeros_(flow.weight)
            nn.init.zeros_(flow.bias)
        with torch.no_grad():
            self.paint.weight.mul_(0.1)
            self.paint.bias.view(4, -1)[3] = 2.0  # the portrait at first
            self.paint.bias.view(4, -1)[:3] = 0.0

    def forward(self, latents: Tensor, seen: Seen) -> Tensor:
        """[n,C,h,w] -> images [n,3,H,W], as large as the portrait's picture and with all its channels."""
        h, flow = self.from_latents(latents.contiguous(memory_format=torch.channels_last)), None
        for level in reversed(range(len(self.levels))):
            features = seen.features[level]
            if flow is not None:
                flow = _larger(flow, features.shape[2:])
                features = warp(features, flow)
            h = self.levels[level](h + self.join[level](h, features))
            reach = FLOW_REACH * 0.5 ** (len(self.levels) - 1 - level)
            step = reach * torch.tanh(self.flow[level](h).float().contiguous())  # as enlarging it is fast
            flow = step if flow is None else flow + step
            if level > 0:
                h = functional.pixel_shuffle(self.up[level - 1](h), 2)
        painted = functional.pixel_shuffle(self.paint(self.norm(h)).float(), PATCH)
        size = seen.picture.shape[2:]
        flow = flow if self.training else steadied(flow)  # not in training: where flows begin, it has no slope
        warped = warp(seen.picture, _larger(flow, size))
        if painted.shape[2:] != size:
            painted = _larger(painted, size)
        colours = torch.lerp(painted[:, :3], warped[:, :3], painted[:, 3:].sigmoid())
        return colours if warped.shape[1] == 3 else torch.cat([colours, warped[:, 3:]], 1)


def steadied(flow: Tensor) -> Tensor:
    """A flow [n,2,h,w] that is 0 below AT_REST, itself from MOVING on, and smooth between: hair and background that
    keep still are the photograph's own pixels, not read a hundredth of a pixel beside them."""
    length = flow.square().sum(1, keepdim=True).sqrt()  # vector_norm takes 40 times as long on a CPU
    return flow * smoothstep((length - AT_REST) / (MOVING - AT_REST))


def warp(values: Tensor, flow: Tensor) -> Tensor:
    """Values [n,c,h,w] read at each position plus the flow float32 [n,2,h,w], in halves of the picture; float32, since
    bfloat16 has no places between pixels."""
    height, width = values.shape[2:]
    y = (torch.arange(height, device=flow.device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=flow.device) + 0.5) / width * 2 - 1
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1]) + flow
    return functional.grid_sample(values.float(), places.movedim(1, -1), padding_mode="border", align_corners=False)


def _larger(values: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)


class PortraitAutoencoder(nn.Module):
    """Encoder and decoder of the shapes above. `config`: SMALL_PORTRAIT_AE or another of its kind."""

    def __init__(self, config: dict):
        super().__init__()
        channels, latent_channels = list(config["block_out_channels"]), config["latent_channels"]
        self.downscale = PATCH * 2 ** (len(channels) - 1)
        self.encoder = Encoder(channels, list(config["encoder_layers_per_block"]), latent_channels)
        self.decoder = Decoder(channels, list(config["decoder_layers_per_block"]), latent_channels)

    def look_at(self, portraits: Tensor) -> Seen:
        """Portraits [n,3,H,W] in -1..1, for decode: once for a video."""
        images = portraits.to(self.decoder.norm.weight.dtype, memory_format=torch.channels_last)
        return self.seen(portraits, self.encoder.features(images))

    def seen(self, portraits: Tensor, features: list[Tensor]) -> Seen:
        """The same where the encoder's features of the portraits are known."""
        levels = zip(self.decoder.portrait, features, strict=True)
        return Seen(portraits.float(), [conv(level).float() for conv, level in levels])

    def encode(self, images: Tensor) -> Tensor:
        """[n,3,H,W] -> [n,C,H/downscale,W/downscale]."""
        return self.encoder(images)

    def decode(self, latents: Tensor, seen: Seen) -> Tensor:
        return self.decoder(latents, seen.repeated(len(latents)))
