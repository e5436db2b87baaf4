"""A model with its autoencoder and audio encoder, loaded together and moved together; each step can be used alone."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .audio.encoder import AudioEncoder, FeatureStream
from .audio.live import LiveFeatures
from .audio.load_encoder import BUILT_IN, load_audio_encoder
from .audio.recording import SAMPLE_RATE, Recording
from .autoencoders import bundled_autoencoder
from .config import LetsTalkConfig
from .errors import InputError
from .model.acceleration import compile_blocks, quantise
from .model.checkpoint import LetsTalkModel, load_checkpoint
from .model.lora import apply_loras
from .model.together import Together
from .picture.autoencoder import Autoencoder, load_autoencoder
from .picture.portrait import Portrait, crop_portrait
from .picture.portrait_autoencoder import Seen
from .pixels import images_to_pixels
from .precision import choose_device, computes_bf16
from .video.clips import ClipSampler, SamplingSettings
from .weights import add_to_digest

BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "weights" / "letstalk-portraits-256.safetensors"
SILENCE = 4  # seconds of it, whose middle is what a model hears without sound
LOOKAHEAD = 0.12  # seconds of sound after a clip that `stream` waits for; more of it makes no better mouths (measured)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES, "int8")


class LetsTalkPipeline:
    """A model with its autoencoder and audio encoder, on one device.

    From files to latents: crop and encode_portrait, encode_audio or stream_audio. From these to frames:
    video.clips.ClipSampler, with a decoder. render.render.write_video does all of it, and stream for live sound.
    """

    def __init__(self, model: LetsTalkModel, autoencoder: Autoencoder, audio_encoder: AudioEncoder):
        self.model, self.autoencoder, self.audio_encoder = model, autoencoder, audio_encoder
        self.config = model.config
        self.denoiser: Callable[..., Tensor] = model.transformer  # what samplers evaluate
        self.computing = ""  # what decides frames beside the parts' weights and dtypes, as text
        _check_parts(self.config, autoencoder, audio_encoder)
        model.hear_silence = functools.partial(_hear_silence, audio_encoder, self.config.fps)

    @classmethod
    def load(
        cls,
        path: str | Path = BUNDLED_MODEL,
        device: str = "auto",
        dtype: str = "auto",
        autoencoder: str | Path | None = None,
        audio_encoder: str | Path | None = None,
        loras: Sequence[tuple[str | Path, float]] = (),
    ) -> LetsTalkPipeline:
        """The pipeline of a checkpoint file.

        autoencoder and audio_encoder: paths, for a checkpoint that does not bundle them.

        loras: (path, strength) of each LoRA to add to its weights (see lora.apply_loras).

        device: "auto", "cpu", "cuda", "cuda:1", "mps". dtype: one of PRECISIONS. auto is bf16 on CUDA that has units
        for it, else fp32, but for an autoencoder that looks at the portrait, on a CPU that is faster in bf16 (measured
        once and remembered, so that a video that is resumed has the same frames); int8, on a CPU, is the same but for
        the linear layers of the transformer's blocks. A warning says where the hardware only emulates bf16. Raises
        InputError (CheckpointError for the file itself) with what is missing and how to give it.
        """
        if Path(path) == BUNDLED_MODEL and not BUNDLED_MODEL.exists():
            raise InputError(
                f"This copy has no bundled model, {BUNDLED_MODEL}; take the whole repository, or train one with "
                "'python -m letstalk_core train-portraits --minutes 120' and give its file with --model."
            )
        if dtype not in PRECISIONS:
            raise InputError(f"The dtype is {dtype!r}; choose {', '.join(PRECISIONS)}.")
        chosen = choose_device(device)
        if dtype == "int8" and chosen.type != "cpu":
            raise InputError(f"int8 is computed on CPUs only; choose bf16 for {chosen.type}, or --device cpu.")
        model = load_checkpoint(path)
        apply_loras(model, loras)
        pipeline = cls(
            model,
            _find_autoencoder(model.config, path, autoencoder),
            _find_audio_encoder(model.config, path, audio_encoder),
        )
        has_bf16 = chosen.type in ("cpu", "cuda") and computes_bf16(chosen.type)
        if dtype == "bf16" and not has_bf16:
            warnings.warn("This hardware emulates bf16, many times slower than fp32; choose fp32.", stacklevel=2)
        precision = DTYPES.get(dtype) or (torch.bfloat16 if chosen.type == "cuda" and has_bf16 else torch.float32)
        halved = dtype in ("auto", "int8") and pipeline.autoencoder.guided and has_bf16
        pipeline.model.to(chosen, precision)
        layout = torch.channels_last if pipeline.autoencoder.guided else torch.preserve_format  # two thirds of the time
        pipeline.autoencoder.to(chosen, torch.bfloat16 if halved else precision, memory_format=layout)
        pipeline.audio_encoder.to(chosen)
        if dtype == "int8":
            pipeline._quantise()
        return pipeline

    def _quantise(self) -> None:
        _ = self._weights_digest  # of weights that are packed from now on
        quantise(self.model.transformer)
        self.computing = " int8"

    def compile(self) -> None:
        """Compile the transformer's blocks, which takes a minute the first time and pays on graphics cards; a warning
        says where it cannot be done."""
        transformer, side = self.config.transformer, self.config.image_size // self.autoencoder.downscale
        place, count = (transformer.latent_channels, side, side), self.config.lead_frames + transformer.clip_frames
        audio = (1, count, self.config.audio.tokens, self.config.audio.width)
        shapes = {"latents": (1, count, *place), "portrait": (1, *place), "audio_tokens": audio}
        if transformer.memory_frames:
            shapes["memory"] = (1, transformer.memory_frames, *place)
        clip = {name: torch.zeros(shape, device=self.device) for name, shape in shapes.items()}
        if compile_blocks(self.model.transformer, {**clip, "timesteps": torch.zeros(1, device=self.device)}):
            self.computing = f"{self.computing.removesuffix(' compiled')} compiled"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def encode_audio(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """waveform [channels, S] -> features [F,L,E] on the CPU, F = ceil(S / sample_rate * fps)."""
        return self.audio_encoder.encode(waveform, sample_rate, self.config.fps)

    def stream_audio(self, recording: Recording) -> FeatureStream:
        """The features of a recording of any length, computed as they are needed."""
        return FeatureStream(self.audio_encoder, recording, self.config.fps)

    def crop(self, picture: np.ndarray, face: str | int = "largest") -> Portrait:
        """The square around a face of a picture [H,W,3] in 0..1, at the model's size."""
        return crop_portrait(picture, self.config.image_size, face)

    @torch.inference_mode()
    def encode_portrait(self, portrait: Portrait) -> Tensor:
        """Latents [1,C,h,w] of a square portrait, on the pipeline's device."""
        return self.autoencoder.encode(portrait.image[None].to(self.device)).float()

    @torch.inference_mode()
    def decoder(self, portrait: Portrait, side: int | None = None) -> Callable[[Tensor], Tensor]:
        """What makes frames float32 [n,3,side,side] in -1..1, on the pipeline's device, of latents [n,C,h,w], in a
        video of this portrait.

        side: None is the model's own size. With a guided autoencoder larger frames are as sharp as the picture that the
        portrait is from, since that is what moves, up to portrait.MOST_DETAIL; with another one they are resized. Where
        the person is cut out of the portrait, frames [n,4,side,side] have the matte, moved with the head, as a fourth
        channel; InputError where the autoencoder is not guided, and moves nothing.
        """
        seen = self.autoencoder.look_at(portrait.image[None].to(self.device))
        if seen is None and portrait.cutout is not None:
            raise InputError(
                "Another background needs a model whose autoencoder looks at the portrait, as the bundled one's does; "
                "take such a model, or keep the background."
            )
        if seen is not None and (side is not None or portrait.cutout is not None):
            seen = seen._replace(picture=portrait.at(side or self.config.image_size)[None].to(self.device))
        return functools.partial(self._decode, seen=seen, side=side)

    @torch.inference_mode()
    def _decode(self, latents: Tensor, seen: Seen | None, side: int | None) -> Tensor:
        frames = self.autoencoder.decode(latents.float(), seen)
        if side in (None, frames.shape[-1]):
            return frames
        return functional.interpolate(frames, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)

    @contextlib.contextmanager
    def together(self, most: int) -> Iterator[None]:
        """Inside, what up to `most` threads make at the same time with this pipeline, videos or streams, is denoised as
        one batch (see model.together)."""
        self.denoiser = Together(self.model.transformer, most)
        try:
            yield
        finally:
            self.denoiser = self.model.transformer

    def stream(
        self,
        portrait: Portrait,
        audio: Iterable[Tensor],
        sample_rate: int,
        settings: SamplingSettings | None = None,
        clip_frames: int | None = None,
        lookahead: float = LOOKAHEAD,
        side: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield frames uint8 [n,H,W,3] on the CPU while sound comes in; they last as long as it, in all.

        A clip is made as soon as its sound and `lookahead` seconds after it are there: its first frame is late by the
        clip, the lookahead, and what computing it takes. clip_frames: of a clip; None takes the model's own, fewer come
        sooner. audio: gives the next samples, [channels, n] or [n] in -1..1, and may wait for them. side: see decoder.
        Raises InputError for samples that are no sound, and for a control's track with a value for each frame: nobody
        knows how many.
        """
        settings = settings or SamplingSettings()
        if any(isinstance(track, tuple) for track in settings.asked.tracks.values()):
            raise InputError("A stream has no number of frames yet; give each control one value.")
        features, ahead = LiveFeatures(self.audio_encoder, self.config.fps, sample_rate), lookahead * self.config.fps
        sampler = ClipSampler(
            self.model, self.encode_portrait(portrait), features, settings, None, clip_frames, self.denoiser
        )
        decode, made, memory = self.decoder(portrait, side), 0, None
        for samples in itertools.chain(audio, (None,)):
            ended = samples is None
            features.end() if ended else features.add(samples)
            while made < len(features) and (ended or made + sampler.clip_frames + ahead <= len(features)):
                until = min(made + sampler.clip_frames, len(features))
                for chunk in sampler.chunks(decode, made, until, memory, side):
                    memory = chunk.memory
                    yield images_to_pixels(chunk.frames).cpu()
                made = until

    @property
    def digest(self) -> str:
        """The digest of all that the models add to a video: configuration, weights, and what they compute in and on."""
        return self._weights_digest + self.computing

    @functools.cached_property
    def _weights_digest(self) -> str:
        digest = hashlib.sha256(f"{json.dumps(self.config.flat(), sort_keys=True)} {self.device.type}".encode())
        digest.update(f"{self.autoencoder.config} {self.autoencoder.latent_scale}".encode())
        digest.update(f" {self.audio_encoder.settings}".encode())
        for part in (self.model, self.autoencoder, self.audio_encoder):
            add_to_digest(digest, part.state_dict())
        return digest.hexdigest()


def _hear_silence(encoder: AudioEncoder, fps: float) -> Tensor:
    """Features [L,E] of a frame without sound."""
    features = encoder.encode(torch.zeros(SILENCE * SAMPLE_RATE), SAMPLE_RATE, fps)
    return features[len(features) // 2]


def _find_autoencoder(config: LetsTalkConfig, path: str | Path, given: str | Path | None) -> Autoencoder:
    """The given one, or the one in the model's file, with the model's latent scale."""
    autoencoder = bundled_autoencoder(path) if given is None else load_autoencoder(given, config.latent_scale)
    if autoencoder is None:
        raise InputError(
            f"{path} does not bundle its autoencoder; choose a {config.autoencoder} (on the command line with "
            "--autoencoder)."
        )
    return autoencoder


def _find_audio_encoder(config: LetsTalkConfig, path: str | Path, given: str | Path | None) -> AudioEncoder:
    if config.audio.encoder in BUILT_IN:
        return load_audio_encoder(config.audio.encoder)
    if given is None:
        raise InputError(
            f"{path} needs a wav2vec2 audio encoder; choose its file (on the command line with --audio-encoder)."
        )
    return load_audio_encoder(given)


def _check_parts(config: LetsTalkConfig, autoencoder: Autoencoder, audio_encoder: AudioEncoder) -> None:
    """Raises InputError where the parts do not belong together."""
    channels, audio = config.transformer.latent_channels, config.audio
    if autoencoder.latent_channels != channels:
        raise InputError(
            f"The autoencoder has {autoencoder.latent_channels} latent channels, but the model needs {channels}; "
            f"choose a {config.autoencoder} that fits."
        )
    found, needed = (audio_encoder.blocks, audio_encoder.channels), (audio.blocks, audio.channels)
    if found != needed:
        raise InputError(
            f"The audio encoder gives {found[0]} blocks of {found[1]} channels, but the model needs {needed[0]} of "
            f"{needed[1]}; choose the audio encoder that the model was trained with."
        )
