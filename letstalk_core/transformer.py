"""The diffusion transformer (paper, Section 3.2 and Figure 2). Axis letters: config.py; N counts patches of a frame."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .attention import (
    linear_attention,
    linear_attention_shared,
    merge_heads,
    softmax_attention,
    softmax_attention_shared,
    split_heads,
)
from .config import LetsTalkConfig
from .fusion import Streams, build_audio_fusion, build_portrait_fusion

TIMESTEP_WIDTH = 256


def sincos(positions: Tensor, width: int) -> Tensor:
    """Fixed positions [n] -> [n,width]: all sines, then all cosines, base 10000."""
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = positions.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@functools.lru_cache(maxsize=16)
def grid_positions(rows: int, columns: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """2-D positions [rows*columns,width]: the first half of the channels from the column, the second from the row."""
    with torch.inference_mode(False):  # cached: must also serve training
        column = sincos(torch.arange(columns, device="cpu"), width // 2).repeat(rows, 1)
        row = sincos(torch.arange(rows, device="cpu"), width // 2).repeat_interleave(columns, 0)
        return torch.cat([column, row], dim=1).to(device, dtype)


@functools.lru_cache(maxsize=16)
def time_positions(frames: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1-D positions [frames,1,width] of [memory; clip]."""
    with torch.inference_mode(False):
        return sincos(torch.arange(frames, device="cpu"), width)[:, None].to(device, dtype)


def timestep_features(timesteps: Tensor) -> Tensor:
    """Timesteps [B], int or float -> float32 [B,TIMESTEP_WIDTH], cosines first."""
    half = TIMESTEP_WIDTH // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return tokens * (1 + scale) + shift


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class TemporalAttention(nn.Module):
    """Residual softmax attention along time, at each position on its own."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width, eps=1e-5)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mix = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B,M+F,N,D] -> [B,M+F,N,D]."""
        qkv = self.qkv(self.norm(tokens)).transpose(1, 2).chunk(3, dim=-1)  # three [B,N,M+F,D]
        attended = softmax_attention(*(split_heads(part, self.heads) for part in qkv))  # [B,N,H,M+F,d]
        return tokens + self.mix(self.out(merge_heads(attended))).transpose(1, 2)


class SpatialAttention(nn.Module):
    """Self-attention over the tokens of a frame, linear or softmax, with tokens that all frames share or without."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        linear = config.attention == "linear"
        self.heads = config.width // config.linear_head_width if linear else config.heads
        self.attend = linear_attention if linear else softmax_attention
        self.attend_shared = linear_attention_shared if linear else softmax_attention_shared
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=not linear)
        self.out = nn.Linear(config.width, config.width)

    def _split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(split_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, dim=-1))

    def forward(self, tokens: Tensor, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """tokens [B,F,S,D], shared [B,1,T,D] | None -> the same shapes."""
        if shared is None:
            return self.out(merge_heads(self.attend(*self._split(tokens)))), None
        attended, attended_shared = self.attend_shared(self._split(tokens), self._split(shared))
        return self.out(merge_heads(attended)), self.out(merge_heads(attended_shared))


class GLUMBConv(nn.Module):
    """The linear model's feed-forward: 1x1 to 2rD, SiLU, 3x3 depthwise, value * SiLU(gate), 1x1 back to D."""

    takes_conditions = False  # a convolution has no place for tokens without a position in the frame

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.expand = nn.Linear(config.width, 2 * hidden)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.contract = nn.Linear(hidden, config.width, bias=False)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens [B,F,N,D] with N = rows * columns of grid -> [B,F,N,D]."""
        hidden = functional.silu(self.expand(tokens))  # [B,F,N,2rD]
        image = hidden.flatten(0, 1).unflatten(1, grid).permute(0, 3, 1, 2)  # [BF,2rD,rows,columns], channels last
        value, gate = self.depthwise(image).permute(0, 2, 3, 1).chunk(2, dim=-1)  # [BF,rows,columns,rD]
        return self.contract(value * functional.silu(gate)).reshape(tokens.shape)


class FeedForward(nn.Module):
    """The softmax model's feed-forward: Linear to rD, GELU (tanh), Linear back."""

    takes_conditions = True

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.expand = nn.Linear(config.width, hidden)
        self.contract = nn.Linear(hidden, config.width)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens [...,D] -> [...,D]."""
        return self.contract(functional.gelu(self.expand(tokens), approximate="tanh"))


class Block(nn.Module):
    """Temporal attention, cross-attention fusions, spatial attention, feed-forward; the same for every variant."""

    def __init__(self, config: LetsTalkConfig, cross: dict[str, nn.Module]):
        super().__init__()
        self.temporal = TemporalAttention(config)
        self.cross = nn.ModuleDict(cross)
        self.norm_attention, self.norm_feed_forward = _norm(config.width), _norm(config.width)
        self.spatial = SpatialAttention(config)
        self.feed_forward = GLUMBConv(config) if config.attention == "linear" else FeedForward(config)
        self.modulation = nn.Linear(config.width, 6 * config.width)

    def forward(self, streams: Streams, conditions: dict, timestep: Tensor, grid: tuple[int, int]) -> Streams:
        """conditions: what each cross fusion takes, by its name; timestep: SiLU of the embedding, [B,D]."""
        parts = self.modulation(timestep)[:, None, None].chunk(6, dim=-1)  # six [B,1,1,D]
        frames, memory = self._temporal(streams.frames, streams.memory)  # [B,F,N,D], [B,M,N,D]
        for name, fuse in self.cross.items():
            frames = fuse(frames, conditions[name])  # [B,F,N,D]
        streams = dataclasses.replace(streams, frames=frames, memory=memory)
        return self._feed_forward(self._spatial(streams, *parts[:3]), *parts[3:], grid)

    def _temporal(self, frames: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if memory is None:
            return self.temporal(frames), None
        sizes = (memory.shape[1], frames.shape[1])
        memory, frames = self.temporal(torch.cat([memory, frames], dim=1)).split(sizes, dim=1)
        return frames, memory

    def _spatial(self, streams: Streams, shift: Tensor, scale: Tensor, gate: Tensor) -> Streams:
        frames, of_frame, of_clip = streams.frames, streams.frame_conditions, streams.clip_conditions
        tokens = frames if of_frame is None else torch.cat([frames, of_frame], dim=2)  # [B,F,N+S,D]
        shared = None if of_clip is None else modulate(self.norm_attention(of_clip), shift, scale)
        added, added_shared = self.spatial(modulate(self.norm_attention(tokens), shift, scale), shared)
        tokens = tokens + gate * added
        if of_frame is not None:
            frames, of_frame = tokens.split((frames.shape[2], of_frame.shape[2]), dim=2)
        else:
            frames = tokens
        if of_clip is not None:
            of_clip = of_clip + gate * added_shared
        return dataclasses.replace(streams, frames=frames, frame_conditions=of_frame, clip_conditions=of_clip)

    def _feed_forward(self, streams: Streams, shift, scale, gate, grid: tuple[int, int]) -> Streams:
        def residual(tokens: Tensor | None) -> Tensor | None:
            if tokens is None:
                return None
            return tokens + gate * self.feed_forward(modulate(self.norm_feed_forward(tokens), shift, scale), grid)

        streams = dataclasses.replace(streams, frames=residual(streams.frames))
        if self.feed_forward.takes_conditions:
            of_frame, of_clip = residual(streams.frame_conditions), residual(streams.clip_conditions)
            streams = dataclasses.replace(streams, frame_conditions=of_frame, clip_conditions=of_clip)
        return streams


class LetsTalkTransformer(nn.Module):
    """LetsTalk's denoiser, made from its configuration alone.

    Raises ValueError for a fusion scheme that is not built yet.
    """

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.patch_embedding = nn.Conv2d(config.latent_channels, width, patch, stride=patch)
        self.time_embedding = nn.Sequential(nn.Linear(TIMESTEP_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.portrait_to_frames = nn.Linear(width, width) if config.add_portrait else None
        self.fusions = nn.ModuleDict({"portrait": build_portrait_fusion(config), "audio": build_audio_fusion(config)})
        self.blocks = nn.ModuleList(Block(config, self._block_layers()) for _ in range(config.depth))
        self.norm_out = _norm(width)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.linear_out = nn.Linear(width, patch * patch * config.output_channels)
        self.initialise()

    def _block_layers(self) -> dict[str, nn.Module]:
        layers = {name: fusion.block_layer(self.config) for name, fusion in self.fusions.items()}
        return {name: layer for name, layer in layers.items() if layer is not None}

    def initialise(self) -> None:
        """Xavier for linears and the patch embedding; zero for adaLN, the last Linear, the added portrait."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.view(self.config.width, -1))
        nn.init.zeros_(self.patch_embedding.bias)
        zeroed = [block.modulation for block in self.blocks] + [self.modulation_out, self.linear_out]
        for linear in zeroed + ([self.portrait_to_frames] if self.portrait_to_frames is not None else []):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def audio_keys_values(self, audio_tokens: Tensor):
        """What forward needs of audio tokens [B,F,K,A]; free of the timestep, so once per clip is enough."""
        return self._prepare("audio", audio_tokens.to(self.linear_out.weight.dtype))

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        portrait: Tensor,
        audio_tokens: Tensor | None = None,
        memory: Tensor | None = None,
        audio_keys_values=None,
    ) -> Tensor:
        """The model's output [B,F,output_channels,h,w] for noisy latents [B,F,C,h,w] at timesteps [B], int or float.

        portrait [B,C,h,w]; memory [B,M,C,h,w] or None; the audio as audio_tokens [B,F,K,A], or as audio_keys_values of
        those tokens, or neither: tokens of zeros, the unconditional branch of guidance. Any h, w (multiples of the
        patch size), F and M. Computes in the dtype of the weights and returns that of latents. Raises ValueError,
        naming both values, where shapes contradict each other or the configuration.
        """
        self._check(latents, timesteps, portrait, audio_tokens, memory)
        dtype = self.linear_out.weight.dtype
        grid = tuple(side // self.config.patch_size for side in latents.shape[-2:])
        if audio_keys_values is None:
            if audio_tokens is None:
                audio_tokens = latents.new_zeros(*latents.shape[:2], 1, self.config.audio_width)  # [B,F,1,A]
            audio_keys_values = self.audio_keys_values(audio_tokens)

        timestep = functional.silu(self.time_embedding(timestep_features(timesteps).to(dtype)))  # [B,D]
        streams, portrait_tokens = self._embed(latents.to(dtype), portrait.to(dtype), memory)  # [B,F,N,D], [B,1,N,D]
        prepared = {"portrait": self._prepare("portrait", portrait_tokens), "audio": audio_keys_values}
        for name, fusion in self.fusions.items():
            streams = fusion.join(streams, prepared[name])
        for index, block in enumerate(self.blocks):
            conditions = {name: fusion.for_block(prepared[name], index) for name, fusion in self.fusions.items()}
            streams = block(streams, conditions, timestep, grid)  # frames [B,F,N,D]
        shift, scale = self.modulation_out(timestep)[:, None, None].chunk(2, dim=-1)  # [B,1,1,D]
        patches = self.linear_out(modulate(self.norm_out(streams.frames), shift, scale))  # [B,F,N,p*p*output_channels]
        return self._unpatchify(patches, grid).to(latents.dtype)  # [B,F,output_channels,h,w]

    def _prepare(self, name: str, tokens: Tensor):
        layers = [block.cross[name] for block in self.blocks if name in block.cross]
        return self.fusions[name].prepare(tokens, layers)

    def _embed(self, latents: Tensor, portrait: Tensor, memory: Tensor | None) -> tuple[Streams, Tensor]:
        """Tokens of [memory; clip] with their positions, and the portrait's [B,1,N,D]."""
        memory_frames = 0 if memory is None else memory.shape[1]
        video = latents if memory_frames == 0 else torch.cat([memory.to(latents.dtype), latents], dim=1)
        tokens = self._patches(torch.cat([portrait[:, None], video], dim=1))  # [B,1+M+F,N,D]
        rows, columns = (side // self.config.patch_size for side in latents.shape[-2:])
        place = dict(device=tokens.device, dtype=tokens.dtype)
        portrait_tokens, video_tokens = tokens.split((1, video.shape[1]), dim=1)
        if self.portrait_to_frames is not None:
            video_tokens = video_tokens + self.portrait_to_frames(portrait_tokens)
        positions = grid_positions(rows, columns, self.config.width, **place)
        portrait_tokens = portrait_tokens + positions
        video_tokens = video_tokens + positions + time_positions(video.shape[1], self.config.width, **place)
        remembered, frames = video_tokens.split((memory_frames, latents.shape[1]), dim=1)
        return Streams(frames, remembered if memory_frames else None), portrait_tokens

    def _patches(self, latents: Tensor) -> Tensor:
        """[B,F,C,h,w] -> [B,F,N,D]."""
        patches = self.patch_embedding(latents.flatten(0, 1))  # [BF,D,rows,columns]
        return patches.flatten(2).transpose(1, 2).unflatten(0, latents.shape[:2])

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B,F,N,p*p*channels], each patch laid out as (p, p, channel) -> [B,F,channels,h,w]."""
        p = self.config.patch_size
        image = patches.unflatten(-1, (p, p, -1)).unflatten(2, grid)  # [B,F,rows,columns,p,p,channels]
        return image.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _check(self, latents: Tensor, timesteps: Tensor, portrait: Tensor, audio_tokens, memory) -> None:
        config = self.config
        if latents.ndim != 5 or latents.shape[2] != config.latent_channels:
            raise ValueError(f"latents are {tuple(latents.shape)}, not [B,F,{config.latent_channels},h,w]")
        if latents.shape[-1] % config.patch_size or latents.shape[-2] % config.patch_size:
            raise ValueError(
                f"latents of {tuple(latents.shape[-2:])} do not divide into patches of {config.patch_size}"
            )
        if tuple(timesteps.shape) != (latents.shape[0],):
            raise ValueError(f"timesteps are {tuple(timesteps.shape)}, not ({latents.shape[0]},) like the latents")
        expected = (latents.shape[0], *latents.shape[2:])
        if tuple(portrait.shape) != expected:
            raise ValueError(f"portrait is {tuple(portrait.shape)}, not {expected} like the latents")
        if memory is not None and (memory.ndim != 5 or (memory.shape[0], *memory.shape[2:]) != expected):
            raise ValueError(f"memory is {tuple(memory.shape)}, not (B, M, C, h, w) of latents {tuple(latents.shape)}")
        if audio_tokens is not None:
            batch, frames, width = *latents.shape[:2], config.audio_width
            if audio_tokens.ndim != 4 or (*audio_tokens.shape[:2], audio_tokens.shape[3]) != (batch, frames, width):
                raise ValueError(f"audio_tokens are {tuple(audio_tokens.shape)}, not ({batch}, {frames}, K, {width})")
