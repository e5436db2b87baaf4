"""Video of any length, clip by clip: each clip starts from its own seeded noise and the memory of the one before.

generate_clips makes latents and decoded_chunks the frames of any stretch. Nothing here grows with the length;
segments.py keeps what is finished and render.py makes a file of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio.encoder import FeatureStream
from ..diffusion.objective import Diffusion
from ..diffusion.samplers import Callback, Predict, check_sampler, clip_generator, clip_noise, guided, sample
from ..errors import InputError
from ..model.audio_projection import window_features
from ..model.checkpoint import LetsTalkModel
from .blinks import blink_schedule
from .memory import MemoryBank, from_model_space


@dataclass(frozen=True)
class SamplingSettings:
    """How clips are sampled. None takes the model's own default.

    steps: 1 to 1000. sampler: one that fits the model's objective. guidance_scale: 1 follows the audio as trained, more
    exaggerates it and doubles the time. memory_noise: deviation of the noise on the memory, in the units of the
    transformer's own inputs.
    """

    seed: int = 0
    steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None
    memory_noise: float = 0.0

    def __post_init__(self):
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise InputError(f"The number of steps is {self.steps}; choose one between 1 and 1000.")
        scale = self.guidance_scale
        if scale is not None and not (math.isfinite(scale) and 0 <= scale <= 20):
            raise InputError(f"The guidance scale is {scale}; choose one between 0 and 20 (1 is neutral).")
        if not 0 <= self.memory_noise <= 1:
            raise InputError(f"The memory noise is {self.memory_noise}; choose one between 0 and 1.")
        if not -(2**63) <= self.seed < 2**64:
            raise InputError(f"The seed is {self.seed}; choose one of at most 64 bits.")


DECODED_PIXELS = 2**20  # of frames that are decoded at a time: 64 frames of 128 px, 4 of 512 px


@dataclass(frozen=True)
class Clip:
    """A clip as it was sampled: latents [F,C,h,w] for the autoencoder, and the memory that the next clip needs."""

    index: int
    latents: Tensor
    memory: MemoryBank


@dataclass(frozen=True)
class Chunk:
    """Frames float32 [n,3,H,W] in -1..1 on the CPU, and the memory to go on from: that of the last border of clips."""

    frames: Tensor
    memory: MemoryBank


def generate_clips(
    model: LetsTalkModel,
    portrait: Tensor,
    features: Tensor | FeatureStream,
    settings: SamplingSettings,
    memory: MemoryBank | None = None,
    frames: int | None = None,
    callback: Callback | None = None,
) -> Iterator[Clip]:
    """Sample a video's clips one after the other; nothing is held that grows with its length.

    Args:
        model: on the device to compute on.
        portrait: latents [1,C,h,w].
        features: of the whole recording, [F,L,E]; the audio of frame f is features[f].
        memory: where to go on (MemoryBank.frames is the first frame to make); None begins at the portrait. Clips begin
            at multiples of the clip length, so that a part of a video equals the same part of the whole.
        frames: how many frames to make; None goes to the end of the recording.
        callback: called as (step, steps, x0) after each denoising step; cancels by raising.

    Raises InputError where the memory does not lie on a clip's border or the frames reach beyond the recording.
    """
    config = model.config
    memory = memory or MemoryBank.of_portrait(portrait, config)
    last = len(features) if frames is None else memory.frames + frames
    if last > len(features):
        raise InputError(f"Frames up to {last} were asked for, but the recording has {len(features)}.")
    if memory.frames % config.clip_frames:
        raise InputError(
            f"The memory ends at frame {memory.frames}, in the middle of a clip of {config.clip_frames} frames; "
            "it can't be continued."
        )
    while memory.frames < last:
        index, start = memory.frames // config.clip_frames, memory.frames
        with torch.inference_mode():
            latents = _sample_clip(model, portrait, features, settings, memory, index, callback)
        kept = min(config.clip_frames, last - start)
        memory = memory.after(latents[:, :kept])
        yield Clip(index, from_model_space(latents[:, :kept], portrait.to(latents), config)[0], memory)


def decoded_chunks(
    model: LetsTalkModel,
    decode: Callable[[Tensor], Tensor],
    portrait: Tensor,
    features: Tensor | FeatureStream,
    settings: SamplingSettings,
    first: int = 0,
    last: int | None = None,
    memory: MemoryBank | None = None,
    callback: Callback | None = None,
) -> Iterator[Chunk]:
    """Frames first .. last - 1 of a video (to its end where last is None), a few at a time.

    A stretch that ends inside a clip leaves the memory of the clip's start, and whoever goes on from it makes that clip
    again, so that a video in two stretches equals the same video in one. decode: latents [n,C,h,w] -> frames
    [n,3,H,W]. memory: from an earlier stretch; None begins at the portrait. InputError where the frames do not lie
    within the recording, begin before the memory, or come out as NaN.
    """
    config, last = model.config, len(features) if last is None else last
    if not 0 <= first < last <= len(features):
        raise InputError(
            f"Frames {first} to {last} were asked for, but the recording has {len(features)}; choose fewer frames "
            "or an earlier start."
        )
    length = config.clip_frames
    border, end = first - first % length, min(last + -last % length, len(features))
    if memory is None:
        memory = dataclasses.replace(MemoryBank.of_portrait(portrait, config), frames=border)
    if memory.frames != border:
        raise InputError(
            f"The memory ends at frame {memory.frames}, but frame {first} was asked for; go on where it ends."
        )
    at_a_time = max(1, DECODED_PIXELS // config.image_size**2)
    for clip in generate_clips(model, portrait, features, settings, memory, end - border, callback):
        stop = clip.memory.frames
        start = stop - len(clip.latents)
        # The same batches wherever the stretch begins and ends: others would round differently.
        for latents in clip.latents.split(at_a_time):
            until = start + len(latents)
            if start < last and until > first:
                frames = decode(latents)
                if not frames.isfinite().all():
                    raise InputError(
                        f"Frames {start} to {until} have NaN or infinite values; try precision fp32 or other settings."
                    )
                if stop <= last and until == stop and stop % length == 0:
                    memory = clip.memory
                yield Chunk(frames[max(0, first - start) : last - start], memory)
            start = until


def _sample_clip(model, portrait, features, settings, memory, index, callback) -> Tensor:
    """Latents [1,F,C,h,w] of one clip in the model's space."""
    config, device, start = model.config, portrait.device, memory.frames
    steps, sampler = settings.steps or config.default_steps, settings.sampler or config.default_sampler
    check_sampler(sampler, config.objective)
    tokens = _audio_tokens(model, features, settings.seed, start, device)  # [1,F,K,A]
    remembered = None
    if config.memory_frames:  # a memory_scale below 1 is a departure: what a small model gets wrong would add up
        seen = dataclasses.replace(memory, latents=config.memory_scale * memory.latents)
        remembered = seen.noisy(settings.memory_noise, settings.seed, index).to(device)
    transformer = model.transformer

    def predict_from(tokens: Tensor) -> Predict:
        conditions = transformer.prepare(portrait, tokens)  # once per clip, not once per step
        return lambda x, t: transformer(x, t, conditions=conditions, memory=remembered)

    predict = predict_from(tokens)
    scale = config.default_guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    if scale != 1:
        predict = guided(predict, predict_from(torch.zeros_like(tokens)), scale)
    noise = clip_noise(settings.seed, index, (1, config.clip_frames, *portrait.shape[1:])).to(device)
    generator = clip_generator(settings.seed, index, "steps")
    diffusion = Diffusion.from_config(config)
    noise = config.noise_scale * noise
    latents = sample(predict, noise, diffusion, steps, sampler, generator=generator, callback=callback)
    return smooth_border(latents, memory.latents[:, -1:].to(latents), config.border_smoothing)


def smooth_border(latents: Tensor, last: Tensor, smoothing: float) -> Tensor:
    """A clip [B,F,C,h,w] whose first frames are drawn towards the frame before it [B,1,C,h,w], ever less.

    Frame f moves by smoothing^(f + 1) of the difference between the frame before and frame 0. A departure from the
    paper: a small model does not continue its memory exactly, and eyes see the jump.
    """
    if smoothing == 0:
        return latents
    weights = smoothing ** torch.arange(1, latents.shape[1] + 1, device=latents.device, dtype=latents.dtype)
    return latents + weights[:, None, None, None] * (last - latents[:, :1])


def _audio_tokens(
    model: LetsTalkModel, features: Tensor | FeatureStream, seed: int, start: int, device: torch.device
) -> Tensor:
    """Tokens [1,F,K,A] of the clip that starts at a frame; beyond the recording its last frame is repeated."""
    config = model.config
    reach = config.audio_window // 2
    around = torch.arange(start - reach, start + config.clip_frames + reach)
    inside = around.clamp(0, len(features) - 1)
    near = features[int(inside[0]) : int(inside[-1]) + 1][inside - inside[0]].to(device)
    windows = window_features(near, config.audio_window)[reach:-reach] if reach else near[:, None]
    blinks = None
    if config.blink_condition:
        closure = blink_schedule(seed, start - reach, len(around), config.fps)
        closure = window_features(closure, config.audio_window)[reach:-reach] if reach else closure[:, None]
        blinks = closure[None].to(device)
    return model.audio_projection(windows[None], blinks)
