"""The diffusion transformer (paper, Section 3.2 and Figure 2). Axis letters: config.py; N counts patches of a frame."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from einops import rearrange
from torch import Tensor, nn

from ..config import LetsTalkConfig
from .fusion import Conditions, Fusions
from .layers import (
    KeysValues,
    SpatialAttention,
    TemporalAttention,
    checkpointed,
    feed_forward_of,
    grid_positions,
    modulate,
    plain_norm,
    time_positions,
)

TIMESTEP_WIDTH = 256
GRADIENT_CHECKPOINTING = ("none", "selective", "full")


def timestep_features(timesteps: Tensor) -> Tensor:
    """Timesteps [B], int or float -> float32 [B,TIMESTEP_WIDTH], cosines first."""
    half = TIMESTEP_WIDTH // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Tokens(NamedTuple):
    """The tokens that travel through the blocks; a tuple, so that sharded training finds the tensors in it.

    Of float32 at least, whatever the weights are: four additions a block to bfloat16 would double its error. A block
    makes a new one of it: _replace, compiled by torch 2.11, gives an empty tuple.
    """

    frames: Tensor  # [B,F,N,D]
    memory: Tensor | None = None  # [B,M,N,D], seen by temporal attention only
    of_frame: Tensor | None = None  # [B,F,S,D], attend and are attended to within their frame
    of_clip: Tensor | None = None  # [B,1,S,D], one set a clip: every frame sees it, it sees only itself


class Modulation(NamedTuple):
    """What adaLN-zero takes from the timestep for one branch of a block, each [B,1,1,D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def into(self, tokens: Tensor, norm: nn.LayerNorm) -> Tensor:
        """The branch's input, from tokens."""
        return modulate(norm(tokens), self.shift, self.scale)

    def onto(self, tokens: Tensor, answer: Tensor) -> Tensor:
        """The tokens with the branch's answer added."""
        return tokens + self.gate.to(tokens.dtype) * answer


class Block(nn.Module):
    """One block, the same for every variant (Figure 2), on the frames x, the memory m and conditions that joined, c:

        [m; x] += TemporalAttention([m; x])                     memory bank, Section 3.4
        x      += CrossAttention(x, audio)                      direct fusion, Section 3.3
        [x; c] += gate * SpatialAttention(scaled [x; c])        symbiotic fusion, Section 3.3
        x      += gate * FeedForward(scaled x)                  softmax models: [x; c]

    Shift, scale and gate come from the timestep: adaLN-zero (DiT, arXiv 2212.09748, Section 3.2).
    """

    def __init__(self, config: LetsTalkConfig, cross: nn.ModuleDict):
        super().__init__()
        transformer = config.transformer
        self.selective = False
        self.temporal = TemporalAttention(transformer)
        self.cross = cross
        self.norm_attention, self.norm_feed_forward = plain_norm(transformer.width), plain_norm(transformer.width)
        self.spatial = SpatialAttention(transformer)
        self.feed_forward = feed_forward_of(transformer)
        self.modulation = nn.Linear(transformer.width, 6 * transformer.width)

    def forward(
        self, tokens: Tokens, attended: dict[str, Tensor | KeysValues], timestep: Tensor, grid: tuple[int, int]
    ) -> Tokens:
        """attended: what each cross-attention reads, by its name; timestep: SiLU of the embedding, [B,D]."""
        branches = rearrange(self.modulation(timestep), "b (two three d) -> two three b 1 1 d", two=2, three=3)
        attention, feed_forward = (Modulation(shift, scale, gate) for shift, scale, gate in branches)
        frames, memory = self._temporal(tokens.frames, tokens.memory)  # [B,F,N,D], [B,M,N,D]
        for name, cross_attention in self.cross.items():
            frames = cross_attention(frames, attended[name])  # [B,F,N,D]
        tokens = self._spatial(Tokens(frames, memory, tokens.of_frame, tokens.of_clip), attention)
        return self._feed_forward(tokens, feed_forward, grid)

    def _temporal(self, frames: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[memory; clip] at each position; both go on."""
        if memory is None:
            return self.temporal(frames), None
        both = self.temporal(torch.cat([memory, frames], dim=1))  # [B,M+F,N,D]
        memory, frames = both.split((memory.shape[1], frames.shape[1]), dim=1)
        return frames, memory

    def _spatial(self, tokens: Tokens, attention: Modulation) -> Tokens:
        """The tokens of each frame together with those that joined them."""
        frames, of_frame, of_clip = tokens.frames, tokens.of_frame, tokens.of_clip
        together = frames if of_frame is None else torch.cat([frames, of_frame], dim=2)  # [B,F,N+S,D]
        once = None if of_clip is None else self._scaled(of_clip, attention, self.norm_attention)  # [B,1,S,D]
        answer, answer_once = self.spatial(self._scaled(together, attention, self.norm_attention), once)
        together = attention.onto(together, answer)
        if of_frame is None:
            frames = together
        else:
            frames, of_frame = together.split((frames.shape[2], of_frame.shape[2]), dim=2)
        if of_clip is not None:
            of_clip = attention.onto(of_clip, answer_once)
        return Tokens(frames, tokens.memory, of_frame, of_clip)

    def _scaled(self, tokens: Tensor, modulation: Modulation, norm: nn.LayerNorm) -> Tensor:
        """What a branch sees of tokens, [B,F,S,D]."""
        return checkpointed(self.selective, modulation.into, tokens, norm)

    def _feed_forward(self, tokens: Tokens, modulation: Modulation, grid: tuple[int, int]) -> Tokens:
        def fed(some: Tensor | None) -> Tensor | None:
            if some is None:
                return None
            answer = self.feed_forward(self._scaled(some, modulation, self.norm_feed_forward), grid)
            return modulation.onto(some, answer)

        of_frame, of_clip = tokens.of_frame, tokens.of_clip
        if self.feed_forward.takes_conditions:
            of_frame, of_clip = fed(of_frame), fed(of_clip)
        return Tokens(fed(tokens.frames), tokens.memory, of_frame, of_clip)


class LetsTalkTransformer(nn.Module):
    """LetsTalk's denoiser, made from its configuration alone.

    gradient_checkpointing: what the backward pass computes again instead of keeping it. "none"; "selective": what is
    large but cheap (scaled tokens, the inside of linear attention, the feed-forward's activations); "full": the blocks.
    """

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config
        width, patch = config.transformer.width, config.transformer.patch_size
        self.patch_embedding = nn.Conv2d(config.transformer.latent_channels, width, patch, stride=patch)
        self.time_embedding = nn.Sequential(nn.Linear(TIMESTEP_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.portrait_to_frames = nn.Linear(width, width) if config.departures.add_portrait else None
        self.fusions = Fusions(config)
        self.blocks = nn.ModuleList(Block(config, self.fusions.block_layers()) for _ in range(config.transformer.depth))
        self.norm_out = plain_norm(width)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.linear_out = nn.Linear(width, patch * patch * config.output_channels)
        self.gradient_checkpointing = "none"
        self.initialise()

    @property
    def gradient_checkpointing(self) -> str:
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, way: str) -> None:
        if way not in GRADIENT_CHECKPOINTING:
            raise ValueError(f"gradient_checkpointing is {way!r}, not one of {', '.join(GRADIENT_CHECKPOINTING)}")
        self._gradient_checkpointing = way
        for module in self.modules():
            if hasattr(module, "selective"):
                module.selective = way == "selective"

    def initialise(self) -> None:
        """Xavier for linears and the patch embedding; zero for adaLN, the last Linear, the added portrait."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.view(self.config.transformer.width, -1))
        nn.init.zeros_(self.patch_embedding.bias)
        zeroed = [block.modulation for block in self.blocks] + [self.modulation_out, self.linear_out]
        for linear in zeroed + ([self.portrait_to_frames] if self.portrait_to_frames is not None else []):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def prepare(self, portrait: Tensor, audio_tokens: Tensor) -> Conditions:
        """The conditions of a clip, from portrait [B,C,h,w] and audio_tokens [b,F,K,A], for sampling.

        b <= B: the portraits beyond are without audio, the unconditional branch of guidance.
        """
        return self._prepare(portrait, audio_tokens).with_keys_values([block.cross for block in self.blocks])

    def _prepare(self, portrait: Tensor, audio_tokens: Tensor) -> Conditions:
        """The same without what belongs to the blocks: sharded training has their weights only while they run."""
        dtype, grid = self.linear_out.weight.dtype, self._grid(portrait)
        tokens = self._patches(portrait.to(dtype)[:, None])  # [B,1,N,D]
        added = None if self.portrait_to_frames is None else self.portrait_to_frames(tokens)
        return self.fusions.prepare(tokens + self._positions(grid, tokens), audio_tokens.to(dtype), grid, added)

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

        portrait [B,C,h,w] and audio_tokens [B,F,K,A] (zeros: the unconditional branch of guidance), or the conditions
        that `prepare` makes of both. memory [B,M,C,h,w] or None. Any h, w (multiples of the patch size), F, M. Computes
        in the dtype of the weights and returns that of latents. Raises ValueError, naming both values, where shapes
        contradict each other or the configuration.
        """
        self._check(latents, timesteps, portrait, audio_tokens, memory, conditions)
        dtype, grid = self.linear_out.weight.dtype, self._grid(latents)
        conditions = conditions or self._prepare(portrait, audio_tokens)

        timestep = functional.silu(self.time_embedding(timestep_features(timesteps).to(dtype)))  # [B,D]
        tokens = self._embed(latents.to(dtype), memory, conditions, grid)  # frames [B,F,N,D], memory [B,M,N,D]
        whole = self.gradient_checkpointing == "full"
        for index, block in enumerate(self.blocks):  # frames [B,F,N,D]
            tokens = checkpointed(whole, block, tokens, conditions.attended(index), timestep, grid)
        shift, scale = rearrange(self.modulation_out(timestep), "b (two d) -> two b 1 1 d", two=2)
        patches = self.linear_out(modulate(self.norm_out(tokens.frames), shift, scale))  # [B,F,N,p*p*output_channels]
        return self._unpatchify(patches, grid).to(latents.dtype)  # [B,F,output_channels,h,w]

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        return tuple(side // self.config.transformer.patch_size for side in latents.shape[-2:])

    def _positions(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        return grid_positions(*grid, self.config.transformer.width, device=like.device, dtype=like.dtype)

    def _embed(self, latents: Tensor, memory: Tensor | None, conditions: Conditions, grid: tuple[int, int]) -> Tokens:
        """Tokens of [memory; clip] with their positions, and those that the conditions add."""
        memory_frames, frames = 0 if memory is None else memory.shape[1], latents.shape[1]
        video = latents if memory_frames == 0 else torch.cat([memory.to(latents.dtype), latents], dim=1)
        tokens = self._patches(video)  # [B,M+F,N,D]
        tokens = tokens.to(torch.promote_types(torch.float32, tokens.dtype))
        if conditions.added is not None:
            tokens = tokens + conditions.added
        times = time_positions(memory_frames + frames, tokens.shape[-1], device=tokens.device, dtype=tokens.dtype)
        tokens = tokens + self._positions(grid, tokens) + times
        remembered, own = tokens.split((memory_frames, frames), dim=1)
        joining = conditions.frame_tokens(frames), conditions.clip_tokens()
        wide = (None if some is None else some.to(own.dtype) for some in joining)
        return Tokens(own, remembered if memory_frames else None, *wide)

    def _patches(self, latents: Tensor) -> Tensor:
        """[B,F,C,h,w] -> [B,F,N,D]."""
        patches = self.patch_embedding(rearrange(latents, "b f c h w -> (b f) c h w"))
        return rearrange(patches, "(b f) d rows columns -> b f (rows columns) d", b=len(latents))

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B,F,N,p*p*channels], each patch laid out as (p, p, channel) -> [B,F,channels,h,w]."""
        p = self.config.transformer.patch_size
        pattern = "b f (rows columns) (p q c) -> b f c (rows p) (columns q)"
        return rearrange(patches, pattern, rows=grid[0], p=p, q=p)

    def _check(
        self,
        latents: Tensor,
        timesteps: Tensor,
        portrait: Tensor | None,
        audio_tokens: Tensor | None,
        memory: Tensor | None,
        conditions: Conditions | None,
    ) -> None:
        channels, patch, width = (
            self.config.transformer.latent_channels, self.config.transformer.patch_size, self.config.audio.width
        )  # fmt: skip
        if (portrait is None, audio_tokens is None) != ((conditions is not None,) * 2):
            raise ValueError("give the portrait and audio_tokens, or conditions that prepare() made of them")
        if latents.ndim != 5 or latents.shape[2] != channels:
            raise ValueError(f"latents are {tuple(latents.shape)}, not [B,F,{channels},h,w]")
        if latents.shape[-1] % patch or latents.shape[-2] % patch:
            raise ValueError(f"latents of {tuple(latents.shape[-2:])} do not divide into patches of {patch}")
        if tuple(timesteps.shape) != (latents.shape[0],):
            raise ValueError(f"timesteps are {tuple(timesteps.shape)}, not ({latents.shape[0]},) like the latents")
        expected = (latents.shape[0], *latents.shape[2:])
        if portrait is not None and tuple(portrait.shape) != expected:
            raise ValueError(f"portrait is {tuple(portrait.shape)}, not {expected} like the latents")
        if memory is not None and (memory.ndim != 5 or (memory.shape[0], *memory.shape[2:]) != expected):
            raise ValueError(f"memory is {tuple(memory.shape)}, not (B, M, C, h, w) of latents {tuple(latents.shape)}")
        if audio_tokens is not None:
            batch, frames = latents.shape[:2]
            if audio_tokens.ndim != 4 or (*audio_tokens.shape[:2], audio_tokens.shape[3]) != (batch, frames, width):
                raise ValueError(f"audio_tokens are {tuple(audio_tokens.shape)}, not ({batch}, {frames}, K, {width})")
