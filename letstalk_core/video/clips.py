"""Video of any length, clip by clip: each clip starts from its own seeded noise and the memory of the one before.

ClipSampler makes latents and frames of any stretch, and nothing in it grows with the length. render/ makes files of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..config import MOST_GUIDANCE, TIMESTEPS
from ..defaults import MOST_ARTICULATION
from ..diffusion.objective import Diffusion
from ..diffusion.samplers import Callback, Predict, check_sampler, clip_generator, clip_noise, guided, sample
from ..errors import InputError
from ..model.audio_projection import whole_windows
from ..model.checkpoint import LetsTalkModel
from ..model.latents import from_model_space
from .ahead import ahead
from .controls import AskedFor
from .memory import MemoryBank

DECODED_PIXELS = 2**20  # pixels of frames that are decoded at a time: 16 frames of 256 px, 4 of 512 px


@dataclass(frozen=True)
class SamplingSettings:
    """How clips are sampled. None takes the model's own default.

    steps: 1 to 1000. sampler: one that fits the model's objective. guidance_scale: 1 follows the audio as trained, more
    exaggerates it and doubles the time. memory_noise: deviation of the noise on the memory, in the units of the
    transformer's own inputs. asked: blinks, head motion and the like. articulation: how far sound moves the mouth, as
    `articulated` has it; 1 is as trained, 0 keeps it at rest. Raises InputError for values outside their range.
    """

    seed: int = 0
    steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None
    memory_noise: float = 0.0
    asked: AskedFor = AskedFor()
    articulation: float = 1.0

    def __post_init__(self):
        if self.steps is not None and not 1 <= self.steps <= TIMESTEPS:
            raise InputError(f"The number of steps is {self.steps}; choose one between 1 and {TIMESTEPS}.")
        scale = self.guidance_scale
        if scale is not None and not (math.isfinite(scale) and 0 <= scale <= MOST_GUIDANCE):
            raise InputError(
                f"The guidance scale is {scale}; choose one between 0 and {MOST_GUIDANCE:g} (1 is neutral)."
            )
        if not 0 <= self.articulation <= MOST_ARTICULATION:
            raise InputError(
                f"The articulation is {self.articulation}; choose one between 0 and {MOST_ARTICULATION:g} (1 is as "
                "trained)."
            )
        if not 0 <= self.memory_noise <= 1:
            raise InputError(f"The memory noise is {self.memory_noise}; choose one between 0 and 1.")
        if not -(2**63) <= self.seed < 2**64:
            raise InputError(f"The seed is {self.seed}; choose one of at most 64 bits.")

    def of_speaker(self, number: int) -> SamplingSettings:
        """Those of one of several speakers, who do not all blink at once."""
        return dataclasses.replace(self, seed=(self.seed + number) % 2**64) if number else self


class Features(Protocol):
    """Audio features of a whole recording, [F,L,E]: a tensor, or what gives slices of one as they are needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, frames: slice) -> Tensor: ...


@dataclass(frozen=True)
class Clip:
    """A clip as it was sampled: latents [F,C,h,w] for the autoencoder, and the memory that the next clip needs."""

    index: int
    latents: Tensor
    memory: MemoryBank


@dataclass(frozen=True)
class Chunk:
    """Frames float32 [n,3,H,W] in -1..1, where they were decoded, and the memory to go on from: that of the last border
    of clips."""

    frames: Tensor
    memory: MemoryBank


class ClipSampler:
    """One portrait speaking one recording, sampled clip after clip.

    Args:
        model: on the device to compute on.
        portrait: latents [1,C,h,w] on that device.
        features: those of the whole recording; the audio of frame f is features[f].
        settings: how the clips are sampled.
        callback: called as (step, steps, x0) after each denoising step; cancels by raising.
        clip_frames: of a clip, F; None takes the model's own, which it was trained on.
        denoiser: what is called in place of the model's transformer, with the same answers.

    Raises ValueError for a sampler that does not fit the model's objective, naming those that do, and InputError where
    the settings ask for what the model does not know or for another number of frames.
    """

    def __init__(
        self,
        model: LetsTalkModel,
        portrait: Tensor,
        features: Features,
        settings: SamplingSettings,
        callback: Callback | None = None,
        clip_frames: int | None = None,
        denoiser: Callable[..., Tensor] | None = None,
    ):
        self.model, self.config, self.portrait, self.features = model, model.config, portrait, features
        self.settings, self.callback = settings, callback
        self.clip_frames = clip_frames or model.config.transformer.clip_frames
        self.denoiser = denoiser or model.transformer
        self.diffusion, defaults = Diffusion.from_config(model.config), model.config.sampling
        self.steps, self.sampler = settings.steps or defaults.steps, settings.sampler or defaults.sampler
        self.scale = defaults.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
        self.silent = None if settings.articulation == 1 else self._silent_tokens()
        check_sampler(self.sampler, model.config.diffusion.objective)
        settings.asked.check(model.config.departures.controls, len(features))

    def clips(self, memory: MemoryBank | None = None, frames: int | None = None) -> Iterator[Clip]:
        """Yield the clips one after the other.

        Args:
            memory: where to go on (MemoryBank.frames is the first frame to make); None begins at the portrait. Clips
                begin at multiples of the clip length, so that a part of a video equals the same part of the whole.
            frames: how many frames to make; None goes to the end of the recording.

        Raises InputError where the memory does not lie on a clip's border or the frames reach beyond the recording.
        """
        length = self.clip_frames
        memory = memory or MemoryBank.of_portrait(self.portrait, self.config)
        last = len(self.features) if frames is None else memory.frames + frames
        if last > len(self.features):
            raise InputError(f"Frames up to {last} were asked for, but the recording has {len(self.features)}.")
        if memory.frames % length:
            raise InputError(
                f"The memory ends at frame {memory.frames}, in the middle of a clip of {length} frames; "
                "it can't be continued."
            )
        while memory.frames < last:
            index, kept = memory.frames // length, min(length, last - memory.frames)
            with torch.inference_mode():
                latents = self._sample(memory, index)[:, :kept]
                decodable = from_model_space(latents, self.portrait.to(latents), self.config)[0]
            memory = memory.after(latents)
            yield Clip(index, decodable, memory)

    def chunks(
        self,
        decode: Callable[[Tensor], Tensor],
        first: int = 0,
        last: int | None = None,
        memory: MemoryBank | None = None,
        side: int | None = None,
    ) -> Iterator[Chunk]:
        """Yield frames first .. last - 1 of the video (to its end where last is None), a few at a time.

        A stretch that ends inside a clip leaves the memory of the clip's start, and whoever goes on from it makes that
        clip again, so that a video in two stretches equals the same video in one. decode: latents [n,C,h,w] -> frames
        [n,3,H,W]. memory: from an earlier stretch; None begins at the portrait. side: of the frames that decode makes;
        None is the model's own. InputError where the frames do not lie within the recording, begin before the memory,
        or come out as NaN.
        """
        last = len(self.features) if last is None else last
        if not 0 <= first < last <= len(self.features):
            raise InputError(
                f"Frames {first} to {last} were asked for, but the recording has {len(self.features)}; choose fewer "
                "frames or an earlier start."
            )
        length = self.clip_frames
        border, end = first - first % length, min(last + -last % length, len(self.features))
        memory = memory or MemoryBank.of_portrait(self.portrait, self.config, border)
        if memory.frames != border:
            raise InputError(
                f"The memory ends at frame {memory.frames}, but frame {first} was asked for; go on where it ends."
            )
        at_a_time = max(1, DECODED_PIXELS // (side or self.config.image_size) ** 2)
        clips, device = self.clips(memory, end - border), self.portrait.device
        if device.type == "cuda" and self.denoiser is self.model.transformer:  # several videos at once fill it anyhow
            clips = ahead(clips, device)
        for clip in clips:
            stop = clip.memory.frames
            start = stop - len(clip.latents)
            # The same batches wherever the stretch begins and ends: others would round differently.
            for latents in clip.latents.split(at_a_time):
                until = start + len(latents)
                if start < last and until > first:
                    frames = decode(latents)
                    if not frames.isfinite().all():
                        raise InputError(
                            f"Frames {start} to {until} have NaN or infinite values; try precision fp32 or other "
                            "settings."
                        )
                    if stop <= last and until == stop and stop % length == 0:
                        memory = clip.memory
                    yield Chunk(frames[max(0, first - start) : last - start], memory)
                start = until

    def _sample(self, memory: MemoryBank, index: int) -> Tensor:
        """Latents [1,F,C,h,w] of clip `index` in the transformer's space."""
        config, seed, device = self.config, self.settings.seed, self.portrait.device
        lead = config.lead_frames
        count = lead + self.clip_frames
        tokens = self._audio_tokens(memory.frames - lead, count)  # [1,lead+F,K,A]
        if self.scale == 1:
            predict = self._predict(tokens, memory, index)
        else:
            predict = guided(self._predict(tokens, memory, index, 2), self.scale)
        shape = (1, count, *self.portrait.shape[1:])
        noise = config.departures.noise_scale * clip_noise(seed, index, shape).to(device)
        latents = sample(
            predict, noise, self.diffusion, self.steps, self.sampler,
            generator=clip_generator(seed, index, "steps"), callback=self.callback,
        )  # fmt: skip
        smoothing = config.departures.border_smoothing if memory.frames else 0.0  # nothing was shown before the first
        return smooth_border(latents, memory.latents[:, -1:].to(latents), smoothing, lead)

    def _predict(self, tokens: Tensor, memory: MemoryBank, index: int, count: int = 1) -> Predict:
        """The model's answers to a batch of `count` of which the first hears audio tokens [1,F,K,A] and the others
        nothing, with everything prepared that is the same at every step."""
        config = self.config
        conditions, seen = self.model.transformer.prepare(self.portrait.expand(count, -1, -1, -1), tokens), None
        if config.transformer.memory_frames:
            noise = self.settings.memory_noise
            seen = memory.seen(config.departures.memory_scale, noise, self.settings.seed, index).to(tokens.device)
            seen = seen.expand(count, -1, -1, -1, -1)
        return lambda x, t: self.denoiser(x, t, conditions=conditions, memory=seen)

    def _audio_tokens(self, start: int, count: int) -> Tensor:
        """Tokens [1,count,K,A] from a frame on; outside the recording its first or last frame is repeated."""
        config, device = self.config, self.portrait.device
        reach = config.audio.window // 2
        around = torch.arange(start - reach, start + count + reach)
        inside = around.clamp(0, len(self.features) - 1)
        near = self.features[int(inside[0]) : int(inside[-1]) + 1][inside - inside[0]]
        near, controls = whole_windows(near, config.audio.window)[None].to(device), None
        if names := config.departures.controls:
            asked = self.settings.asked.values(names, self.settings.seed, start - reach, len(around), config.fps)
            controls = whole_windows(asked, config.audio.window)[None].to(device)
        tokens = self.model.audio_projection(near, controls)
        if self.silent is None:
            return tokens
        heard, asked_for = tokens.split((self.silent.shape[2], tokens.shape[2] - self.silent.shape[2]), dim=2)
        return torch.cat([articulated(heard, self.silent, self.settings.articulation), asked_for], dim=2)

    @torch.inference_mode()
    def _silent_tokens(self) -> Tensor:
        """What the model hears in a frame without sound, [1,1,K,A]."""
        audio, hear_silence = self.config.audio, self.model.hear_silence
        if hear_silence is None:
            raise ValueError("articulation other than 1 needs model.hear_silence, which a pipeline fills in")
        windows = hear_silence().expand(1, 1, audio.window, -1, -1).to(self.portrait.device)
        return self.model.audio_projection(windows)[:, :, : audio.tokens]


def articulated(tokens: Tensor, silent: Tensor, articulation: float) -> Tensor:
    """Audio tokens [1,F,K,A] that are further from those of silence [1,1,K,A]: 1 leaves them, 0 gives silence.

    Above 1, a frame that is near to silence goes up to `articulation` times as far, and one that is further from it
    than silence is from 0 hardly moves on. A departure from the paper: what is heard with doubt is near to silence, and
    real voices are doubtful to a model of synthetic ones; their mouths would hardly open.
    """
    heard = tokens - silent
    if articulation <= 1:
        return silent + articulation * heard
    near = torch.exp(-heard.square().sum((2, 3), keepdim=True) / silent.square().sum())
    return silent + (1 + (articulation - 1) * near) * heard


def smooth_border(latents: Tensor, last: Tensor, smoothing: float, lead: int = 0) -> Tensor:
    """Frames [B,F,C,h,w] of a clip [B,lead+F,C,h,w], the first of them drawn towards the frame before [B,1,C,h,w].

    Frame f moves by smoothing^(f + 1) of what the clip has wrong about the frame before: with lead 1 that is its own
    first one, with 0 its frame 0 stands for it, although it may rightly differ. A departure from the paper: a small
    model does not continue what was there exactly, and eyes see the jump.
    """
    frames = latents[:, lead:]
    if smoothing == 0:
        return frames
    weights = smoothing ** torch.arange(1, frames.shape[1] + 1, device=latents.device, dtype=latents.dtype)
    return frames + weights[:, None, None, None] * (last - latents[:, :1])
