"""How the portrait and the audio reach the frames (paper, Section 3.3 and Tables 3 and 4).

A fusion is chosen per condition by the configuration. It has two hooks, and the block knows none of them by name:

- `block_layer()`: what it adds to every block (a cross-attention), or None;
- `prepare(tokens, grid)`: the Condition that it makes of the condition's tokens, once per clip, whatever the timestep.

A part of a batch may be without audio, for guidance: its tokens are zeros, or missing where `takes_fewer` says so.

A new scheme is a new class and a line in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import LetsTalkConfig, TransformerConfig
from .layers import (
    CrossAttention,
    FeedForward,
    KeysValues,
    SpatialAttention,
    TemporalAttention,
    feed_forward_of,
    time_positions,
)


class Condition(NamedTuple):
    """What a fusion makes of the portrait or of the audio; each scheme fills in one of the fields.

    Tuples all through, so that sharded training finds the tensors in it.
    """

    attended: tuple[Tensor | KeysValues, ...] = ()  # one a block: tokens [B,F or 1,S,width], or their keys and values
    frame_tokens: Tensor | None = None  # [B,F or 1,S,D]: join the tokens of every frame
    clip_tokens: Tensor | None = None  # [B,1,S,D]: one set a clip, which every frame sees and which sees only itself


class Fusion(nn.Module):
    """The base of the schemes."""

    takes_fewer = False  # tokens of the first part of a batch: the rest gets what zeros would give

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.config = config

    def block_layer(self) -> CrossAttention | None:
        """A new layer for one block; None: the scheme adds nothing there."""
        return None

    def prepare(self, tokens: Tensor, grid: tuple[int, int]) -> Condition:
        """tokens: the portrait's [B,1,N,D] with positions, N = rows * columns of grid, or the audio's [B,F,K,A]."""
        raise NotImplementedError


class Direct(Fusion):
    """Cross-attention to the condition's tokens in every block; the paper's choice for audio."""

    takes_fewer = True

    def __init__(self, config: LetsTalkConfig, width: int):
        super().__init__(config)
        self.width = width  # of the tokens

    def block_layer(self) -> CrossAttention:
        return CrossAttention(self.config.transformer, self.width)

    def prepare(self, tokens: Tensor, grid: tuple[int, int]) -> Condition:
        return Condition(attended=(tokens,) * self.config.transformer.depth)


class Siamese(Direct):
    """Cross-attention in block i to what layer i of a twin transformer makes of the condition alone."""

    takes_fewer = False  # a twin makes something of zeros

    def __init__(self, config: LetsTalkConfig, twin: Twin):
        super().__init__(config, config.transformer.width)
        self.twin = twin

    def prepare(self, tokens: Tensor, grid: tuple[int, int]) -> Condition:
        return Condition(attended=self.twin(tokens, grid))


class SymbioticPortrait(Fusion):
    """The paper's choice for the portrait: its tokens join the frame's own at the input, self-attention fuses them.

    With portrait_each_frame (the paper) every frame has its own copy of them; without, the clip has one set that
    attends only to itself and that every frame attends to, which halves the tokens to compute.
    """

    def prepare(self, tokens: Tensor, grid: tuple[int, int]) -> Condition:
        if self.config.departures.portrait_each_frame:
            return Condition(frame_tokens=tokens)
        return Condition(clip_tokens=tokens)


class SymbioticAudio(Fusion):
    """The audio tokens of a frame, brought to the transformer's width, join the frame's own at the input."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__(config)
        self.enter = nn.Linear(config.audio.width, config.transformer.width)

    def prepare(self, tokens: Tensor, grid: tuple[int, int]) -> Condition:
        return Condition(frame_tokens=self.enter(tokens))


class TwinBlock(nn.Module):
    """A block of a twin: as the backbone's, without timestep (so that once per clip is enough) and conditions."""

    def __init__(self, config: TransformerConfig, temporal: bool, on_grid: bool):
        super().__init__()
        self.temporal = TemporalAttention(config) if temporal else None
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.spatial = SpatialAttention(config)
        self.feed_forward = feed_forward_of(config) if on_grid else FeedForward(config)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B,F,S,D] -> [B,F,S,D]."""
        if self.temporal is not None:
            tokens = self.temporal(tokens)
        tokens = tokens + self.spatial(self.norm_attention(tokens), None)[0]
        return tokens + self.feed_forward(self.norm_feed_forward(tokens), grid)


class Twin(nn.Module):
    """A transformer beside the backbone, of the same depth, that sees one condition alone."""

    blocks: nn.ModuleList

    def layers(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """[B,F,S,D] -> the normalised output of every block, each [B,F,S,D]."""
        outputs = []
        for block in self.blocks:
            tokens = block(tokens, grid)
            outputs.append(nn.functional.layer_norm(tokens, tokens.shape[-1:]))
        return tuple(outputs)


class PortraitTwin(Twin):
    """The portrait's twin; a single frame has no use for temporal attention."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        blocks = (TwinBlock(config.transformer, temporal=False, on_grid=True) for _ in range(config.transformer.depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """[B,1,N,D] -> the output of every layer, each [B,1,N,D]."""
        return self.layers(tokens, grid)


class AudioTwin(Twin):
    """The twin on the audio tokens of the clip. They lie on no grid, so its feed-forward is a plain one."""

    def __init__(self, config: LetsTalkConfig):
        super().__init__()
        self.enter = nn.Linear(config.audio.width, config.transformer.width)
        blocks = (TwinBlock(config.transformer, temporal=True, on_grid=False) for _ in range(config.transformer.depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """[B,F,K,A] -> the output of every layer, each [B,F,K,D]."""
        entered = self.enter(tokens)
        times = time_positions(tokens.shape[1], entered.shape[-1], device=entered.device, dtype=entered.dtype)
        return self.layers(entered + times, grid)


PORTRAIT_FUSIONS = {
    "direct": lambda config: Direct(config, config.transformer.width),
    "siamese": lambda config: Siamese(config, PortraitTwin(config)),
    "symbiotic": SymbioticPortrait,
}
AUDIO_FUSIONS = {
    "direct": lambda config: Direct(config, config.audio.width),
    "siamese": lambda config: Siamese(config, AudioTwin(config)),
    "symbiotic": SymbioticAudio,
}


class Conditions(NamedTuple):
    """Portrait and audio of one clip as the blocks take them, free of the timestep; the fields are Fusions' names."""

    portrait: Condition
    audio: Condition
    added: Tensor | None = None  # [B,1,N,D], added to every frame's tokens (config.Departures.add_portrait)

    def attended(self, block: int) -> dict[str, Tensor | KeysValues]:
        """What the cross-attentions of a block read, by the names of Fusions."""
        both = {"portrait": self.portrait, "audio": self.audio}
        return {name: condition.attended[block] for name, condition in both.items() if condition.attended}

    def frame_tokens(self, frames: int) -> Tensor | None:
        """The tokens that join every frame's own, [B,F,S,D]."""
        joining = [c.frame_tokens for c in (self.portrait, self.audio) if c.frame_tokens is not None]
        if not joining:
            return None
        return torch.cat([tokens.expand(-1, frames, -1, -1) for tokens in joining], dim=2)

    def clip_tokens(self) -> Tensor | None:
        """The tokens that the clip has once, [B,1,S,D]; only a portrait gives such."""
        return self.portrait.clip_tokens

    def with_keys_values(self, cross: Sequence[nn.ModuleDict]) -> Conditions:
        """The same with keys and values in place of the tokens that cross-attentions read; cross: of every block."""
        read = [self.attended(block) for block in range(len(cross))]
        pairs = {
            name: tuple(layers[name].keys_values(given[name]) for layers, given in zip(cross, read, strict=True))
            for name in (cross[0] if cross else ())
        }
        return Conditions(
            self.portrait._replace(attended=pairs.get("portrait", ())),
            self.audio._replace(attended=pairs.get("audio", ())),
            self.added,
        )


class Fusions(nn.ModuleDict):
    """The configuration's two fusions, under "portrait" and "audio": the one place where schemes are looked up."""

    def __init__(self, config: LetsTalkConfig):
        chosen = config.transformer
        portrait, audio = PORTRAIT_FUSIONS[chosen.portrait_fusion], AUDIO_FUSIONS[chosen.audio_fusion]
        super().__init__({"portrait": portrait(config), "audio": audio(config)})

    def block_layers(self) -> nn.ModuleDict:
        """New cross-attentions for one block, by the names of the fusions that have such."""
        layers = {name: fusion.block_layer() for name, fusion in self.items()}
        return nn.ModuleDict({name: layer for name, layer in layers.items() if layer is not None})

    def prepare(self, portrait: Tensor, audio: Tensor, grid: tuple[int, int], added: Tensor | None) -> Conditions:
        """The conditions of a clip, from the portrait's tokens [B,1,N,D] with positions and the audio's [b,F,K,A].

        b <= B: those beyond are without audio.
        """
        missing = len(portrait) - len(audio)
        if missing and not self["audio"].takes_fewer:
            audio = torch.cat([audio, audio.new_zeros(missing, *audio.shape[1:])])
        return Conditions(self["portrait"].prepare(portrait, grid), self["audio"].prepare(audio, grid), added)
