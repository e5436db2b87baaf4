"""The diffusion transformer (paper, Section 3.2 and Figure 2). Axis letters: config.py; N counts patches of a frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import LetsTalkConfig
from .fusion import Streams, build_fusions
from .layers import (
    SpatialAttention,
    TemporalAttention,
    grid_positions,
    modulate,
    plain_norm,
    spatial_mixer,
    time_positions,
)

TIMESTEP_WIDTH = 256


def timestep_features(timesteps: Tensor) -> Tensor:
    """Timesteps [B], int or float -> float32 [B,TIMESTEP_WIDTH], cosines first."""
    half = TIMESTEP_WIDTH // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Block(nn.Module):
    """Temporal attention, cross-attention fusions, spatial attention, feed-forward; the same for every variant."""

    def __init__(self, config: LetsTalkConfig, cross: dict[str, nn.Module]):
        super().__init__()
        self.temporal = TemporalAttention(config)
        self.cross = nn.ModuleDict(cross)
        self.norm_attention, self.norm_feed_forward = plain_norm(config.width), plain_norm(config.width)
        self.spatial = SpatialAttention(config)
        self.feed_forward = spatial_mixer(config)
        self.modulation = nn.Linear(config.width, 6 * config.width)

    def forward(self, streams: Streams, conditions: dict, timestep: Tensor, grid: tuple[int, int]) -> Streams:
        """conditions: what each cross fusion takes, by its name; timestep: SiLU of the embedding, [B,D]."""
        parts = self.modulation(timestep)[:, None, None].chunk(6, dim=-1)  # six [B,1,1,D]
        frames, memory = self._temporal(streams.frames, streams.memory)  # [B,F,N,D], [B,M,N,D]
        for name, fuse in self.cross.items():
            frames = fuse(frames, conditions[name])  # [B,F,N,D]
        streams = Streams(frames, memory, streams.frame_conditions, streams.clip_conditions)
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
        return Streams(frames, streams.memory, of_frame, of_clip)

    def _feed_forward(self, streams: Streams, shift, scale, gate, grid: tuple[int, int]) -> Streams:
        def residual(tokens: Tensor | None) -> Tensor | None:
            if tokens is None:
                return None
            return tokens + gate * self.feed_forward(modulate(self.norm_feed_forward(tokens), shift, scale), grid)

        of_frame, of_clip = streams.frame_conditions, streams.clip_conditions
        if self.feed_forward.takes_conditions:
            of_frame, of_clip = residual(of_frame), residual(of_clip)
        return Streams(residual(streams.frames), streams.memory, of_frame, of_clip)


@dataclass
class Conditions:
    """What the blocks need of portrait and audio, free of the timestep: once per clip is enough."""

    portrait: object  # as the portrait's fusion prepares it
    audio: object  # as the audio's fusion prepares it
    added: Tensor | None  # [B,1,N,D], what add_portrait adds to every frame's tokens


class LetsTalkTransformer(nn.Module):
    """LetsTalk's denoiser, made from its configuration alone.

    gradient_checkpointing: set to True to compute blocks again in the backward pass instead of keeping what they made.
    """

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        width, patch = config.width, config.patch_size
        self.patch_embedding = nn.Conv2d(config.latent_channels, width, patch, stride=patch)
        self.time_embedding = nn.Sequential(nn.Linear(TIMESTEP_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.portrait_to_frames = nn.Linear(width, width) if config.add_portrait else None
        self.fusions = build_fusions(config)
        self.blocks = nn.ModuleList(Block(config, self._block_layers()) for _ in range(config.depth))
        self.norm_out = plain_norm(width)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.linear_out = nn.Linear(width, patch * patch * config.output_channels)
        self.initialise()

    def _block_layers(self) -> dict[str, nn.Module]:
        layers = {name: fusion.block_layer() for name, fusion in self.fusions.items()}
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

    def prepare(self, portrait: Tensor, audio_tokens: Tensor) -> Conditions:
        """The conditions of a clip, from portrait [B,C,h,w] and audio_tokens [B,F,K,A], for sampling."""
        conditions = self._prepare(portrait, audio_tokens)
        for name, fusion in self.fusions.items():
            layers = [block.cross[name] for block in self.blocks if name in block.cross]
            setattr(conditions, name, fusion.precompute(getattr(conditions, name), layers))
        return conditions

    def _prepare(self, portrait: Tensor, audio_tokens: Tensor) -> Conditions:
        """The same without what belongs to the blocks: sharded training has their weights only while they run."""
        dtype, grid = self.linear_out.weight.dtype, self._grid(portrait)
        tokens = self._patches(portrait.to(dtype)[:, None])  # [B,1,N,D]
        added = None if self.portrait_to_frames is None else self.portrait_to_frames(tokens)
        tokens = tokens + self._positions(grid, tokens)
        portrait_conditions = self.fusions["portrait"].prepare(tokens, grid)
        audio_conditions = self.fusions["audio"].prepare(audio_tokens.to(dtype), grid)
        return Conditions(portrait_conditions, audio_conditions, added)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        *,
        portrait: Tensor | None = None,
        audio_tokens: Tensor | None = None,
        memory: Tensor | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """The model's output [B,F,output_channels,h,w] for noisy latents [B,F,C,h,w] at timesteps [B], int or float.

        portrait [B,C,h,w] and audio_tokens [B,F,K,A], or both as `prepare` made conditions of them; without
        audio_tokens, tokens of zeros: the unconditional branch of guidance. memory [B,M,C,h,w] or None. Any h, w
        (multiples of the patch size), F and M. Computes in the dtype of the weights and returns that of latents. Raises
        ValueError, naming both values, where shapes contradict each other or the configuration.
        """
        self._check(latents, timesteps, portrait, audio_tokens, memory, conditions)
        dtype, grid = self.linear_out.weight.dtype, self._grid(latents)
        if conditions is None:
            if audio_tokens is None:
                audio_tokens = latents.new_zeros(*latents.shape[:2], 1, self.config.audio_width)  # [B,F,1,A]
            conditions = self._prepare(portrait, audio_tokens)

        timestep = functional.silu(self.time_embedding(timestep_features(timesteps).to(dtype)))  # [B,D]
        streams = self._embed(latents.to(dtype), memory, conditions.added, grid)  # frames [B,F,N,D], memory [B,M,N,D]
        prepared = {"portrait": conditions.portrait, "audio": conditions.audio}
        for name, fusion in self.fusions.items():
            streams = fusion.join(streams, prepared[name])
        for index, block in enumerate(self.blocks):
            of_block = {name: fusion.for_block(prepared[name], index) for name, fusion in self.fusions.items()}
            streams = self._run(block, streams, of_block, timestep, grid)  # frames [B,F,N,D]
        shift, scale = self.modulation_out(timestep)[:, None, None].chunk(2, dim=-1)  # [B,1,1,D]
        patches = self.linear_out(modulate(self.norm_out(streams.frames), shift, scale))  # [B,F,N,p*p*output_channels]
        return self._unpatchify(patches, grid).to(latents.dtype)  # [B,F,output_channels,h,w]

    def _run(self, block: Block, *inputs) -> Streams:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        return tuple(side // self.config.patch_size for side in latents.shape[-2:])

    def _positions(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        return grid_positions(*grid, self.config.width, device=like.device, dtype=like.dtype)

    def _embed(self, latents: Tensor, memory: Tensor | None, added: Tensor | None, grid: tuple[int, int]) -> Streams:
        """Tokens of [memory; clip] with their positions."""
        memory_frames = 0 if memory is None else memory.shape[1]
        video = latents if memory_frames == 0 else torch.cat([memory.to(latents.dtype), latents], dim=1)
        tokens = self._patches(video)  # [B,M+F,N,D]
        if added is not None:
            tokens = tokens + added
        times = time_positions(video.shape[1], self.config.width, device=tokens.device, dtype=tokens.dtype)
        tokens = tokens + self._positions(grid, tokens) + times
        remembered, frames = tokens.split((memory_frames, latents.shape[1]), dim=1)
        return Streams(frames, remembered if memory_frames else None)

    def _patches(self, latents: Tensor) -> Tensor:
        """[B,F,C,h,w] -> [B,F,N,D]."""
        patches = self.patch_embedding(latents.flatten(0, 1))  # [BF,D,rows,columns]
        return patches.flatten(2).transpose(1, 2).unflatten(0, latents.shape[:2])

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B,F,N,p*p*channels], each patch laid out as (p, p, channel) -> [B,F,channels,h,w]."""
        p = self.config.patch_size
        image = patches.unflatten(-1, (p, p, -1)).unflatten(2, grid)  # [B,F,rows,columns,p,p,channels]
        return image.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _check(self, latents: Tensor, timesteps: Tensor, portrait, audio_tokens, memory, conditions) -> None:
        config = self.config
        if (portrait is None) == (conditions is None) or (conditions is not None and audio_tokens is not None):
            raise ValueError("give the portrait (and audio_tokens), or conditions that prepare() made of them")
        if latents.ndim != 5 or latents.shape[2] != config.latent_channels:
            raise ValueError(f"latents are {tuple(latents.shape)}, not [B,F,{config.latent_channels},h,w]")
        if latents.shape[-1] % config.patch_size or latents.shape[-2] % config.patch_size:
            raise ValueError(
                f"latents of {tuple(latents.shape[-2:])} do not divide into patches of {config.patch_size}"
            )
        if tuple(timesteps.shape) != (latents.shape[0],):
            raise ValueError(f"timesteps are {tuple(timesteps.shape)}, not ({latents.shape[0]},) like the latents")
        expected = (latents.shape[0], *latents.shape[2:])
        if portrait is not None and tuple(portrait.shape) != expected:
            raise ValueError(f"portrait is {tuple(portrait.shape)}, not {expected} like the latents")
        if memory is not None and (memory.ndim != 5 or (memory.shape[0], *memory.shape[2:]) != expected):
            raise ValueError(f"memory is {tuple(memory.shape)}, not (B, M, C, h, w) of latents {tuple(latents.shape)}")
        if audio_tokens is not None:
            batch, frames, width = *latents.shape[:2], config.audio_width
            if audio_tokens.ndim != 4 or (*audio_tokens.shape[:2], audio_tokens.shape[3]) != (batch, frames, width):
                raise ValueError(f"audio_tokens are {tuple(audio_tokens.shape)}, not ({batch}, {frames}, K, {width})")
