"""The steps tied together: encode the audio, encode the portrait, draw noise, denoise, decode, write."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .audio.encoder import FeatureStream, load_audio_encoder
from .audio.recording import Recording
from .diffusion.samplers import Callback
from .errors import InputError
from .model.checkpoint import LetsTalkModel, fill_strictly, load_checkpoint
from .model.lora import apply_loras
from .picture.autoencoder import Autoencoder, build_autoencoder, load_autoencoder
from .picture.portrait import Portrait, crop_portrait, read_image
from .render.render import Observer, VideoJob, render_video
from .video.clips import Chunk, Clip, SamplingSettings, decoded_chunks, generate_clips
from .video.memory import MemoryBank

BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "weights" / "letstalk-avatar-128.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LetsTalkPipeline:
    """A model with its autoencoder and audio encoder, on one device.

    Each step can be used alone: encode_audio, encode_portrait, generate (latents, clip by clip), decode.
    """

    def __init__(self, model: LetsTalkModel, autoencoder: Autoencoder, audio_encoder: torch.nn.Module):
        self.model, self.autoencoder, self.audio_encoder = model, autoencoder, audio_encoder
        self.config = model.config
        _check_parts(self.config, autoencoder, audio_encoder)

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
        """From a checkpoint file. autoencoder and audio_encoder: paths, for a checkpoint that does not bundle them.

        loras: (path, strength) of each LoRA to add to its weights (see lora.apply_loras).

        device: "auto", "cpu", "cuda", "cuda:1", "mps". dtype: "auto" (bf16 on CUDA, else fp32), "fp32", "bf16", "fp16".
        Raises InputError (CheckpointError for the file itself) with what is missing and how to give it.
        """
        if Path(path) == BUNDLED_MODEL and not BUNDLED_MODEL.exists():
            raise InputError(
                "This copy has no bundled model yet; train one with 'python -m letstalk_core train-avatar' and give "
                "its file with --model."
            )
        model = load_checkpoint(path)
        apply_loras(model, loras)
        chosen = choose_device(device)
        if dtype == "auto":
            dtype = "bf16" if chosen.type == "cuda" else "fp32"
        if dtype not in DTYPES:
            raise InputError(f"The dtype is {dtype!r}; choose auto, {', '.join(DTYPES)}.")
        images = _autoencoder_of(model, path, autoencoder)
        if model.config.audio_encoder == "wav2vec2" and audio_encoder is None:
            raise InputError(
                f"{path} needs a wav2vec2 audio encoder; choose its file (on the command line with --audio-encoder)."
            )
        sounds = load_audio_encoder("mel" if model.config.audio_encoder == "mel" else audio_encoder)
        return cls(model.to(chosen, DTYPES[dtype]), images.to(chosen, DTYPES[dtype]), sounds.to(chosen))

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

    @torch.inference_mode()
    def encode_portrait(self, portrait: Portrait) -> Tensor:
        """Latents [1,C,h,w] of a square portrait."""
        return self.autoencoder.encode(portrait.image[None].to(self.device)).float()

    def crop(self, image: np.ndarray, face: str | int = "largest") -> Portrait:
        """The square around a face of image [H,W,3] in 0..1, at the model's size."""
        return crop_portrait(image, self.config.image_size, face)

    def generate(
        self,
        portrait: Tensor,
        features: Tensor,
        settings: SamplingSettings,
        memory: MemoryBank | None = None,
        frames: int | None = None,
        callback: Callback | None = None,
    ) -> Iterator[Clip]:
        """The clips of a video; see long_video.generate_clips."""
        return generate_clips(self.model, portrait, features, settings, memory, frames, callback)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [n,C,h,w] -> frames float32 [n,3,H,W] in -1..1 on the CPU."""
        return self.autoencoder.decode(latents.float()).cpu()

    def render(
        self,
        portrait: Tensor,
        features: Tensor | FeatureStream,
        settings: SamplingSettings,
        first: int = 0,
        last: int | None = None,
        memory: MemoryBank | None = None,
        callback: Callback | None = None,
    ) -> Iterator[Chunk]:
        """The frames of a stretch of video, a few at a time; see long_video.decoded_chunks."""
        return decoded_chunks(self.model, self.decode, portrait, features, settings, first, last, memory, callback)

    @functools.cached_property
    def digest(self) -> str:
        """Of all that the models add to a video: configuration, weights, and what they compute in and on."""
        digest = hashlib.sha256(f"{self.config.to_json()} {self.device.type}".encode())
        digest.update(f"{self.autoencoder.config} {self.autoencoder.latent_scale} {self.audio_encoder.digest}".encode())
        for part in (self.model, self.autoencoder, self.audio_encoder):
            for name, value in part.state_dict().items():
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def write_video(
        self,
        portrait_path: str | Path,
        audio_path: str | Path,
        output: str | Path,
        settings: SamplingSettings,
        face: str | int = "largest",
        max_seconds: float | None = None,
        observer: Observer | None = None,
        resume: bool = True,
        keep_work: bool = False,
    ) -> int:
        """A talking video of any length from two files; returns its number of frames. See render.render_video.

        Raises InputError for anything wrong with the inputs or the output.
        """
        for source in (portrait_path, audio_path):
            if Path(output).exists() and Path(source).exists() and Path(output).samefile(source):
                raise InputError(f"The output {output} is one of the inputs; give it another name.")
        recording = Recording(audio_path, max_seconds)
        job = VideoJob(self, self.crop(read_image(portrait_path), face), recording, settings)
        return render_video(job, output, observer, resume=resume, keep_work=keep_work)


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA, then Apple's GPU, then the CPU. InputError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"The device {name!r} is not available here; choose auto or cpu.") from None
    return device


def _autoencoder_of(model: LetsTalkModel, path: str | Path, given: str | Path | None) -> Autoencoder:
    if given is not None:
        model.autoencoder_state = None  # not needed beside the given one
        return load_autoencoder(given, model.config.latent_scale)
    if model.autoencoder_state is None:
        raise InputError(
            f"{path} does not bundle its autoencoder; choose a {model.config.autoencoder} (on the command line with "
            "--autoencoder)."
        )
    return bundled_autoencoder(model, path)


def bundled_autoencoder(model: LetsTalkModel, path: str | Path) -> Autoencoder | None:
    """The autoencoder that came with a model of the file `path`; its weights move out of the model."""
    if model.autoencoder_state is None:
        return None
    with torch.device("meta"):
        autoencoder = build_autoencoder(model.autoencoder_config, model.config.latent_scale)
    fill_strictly(autoencoder.model, model.autoencoder_state, f"{path}: autoencoder")
    model.autoencoder_state = None
    return autoencoder.eval().requires_grad_(False)


def _check_parts(config, autoencoder: Autoencoder, audio_encoder) -> None:
    if autoencoder.latent_channels != config.latent_channels:
        raise InputError(
            f"The autoencoder has {autoencoder.latent_channels} latent channels, but the model needs "
            f"{config.latent_channels}; choose a {config.autoencoder} that fits."
        )
    found, needed = (audio_encoder.blocks, audio_encoder.channels), (config.audio_blocks, config.audio_channels)
    if found != needed:
        raise InputError(
            f"The audio encoder gives {found[0]} blocks of {found[1]} channels, but the model needs {needed[0]} of "
            f"{needed[1]}; choose the audio encoder that the model was trained with."
        )
