"""What a second of video of the bundled model is spent on, what many seconds take, and what several videos at once
gain: parts of performance.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from letstalk_core.audio.recording import Recording
from letstalk_core.files import ASSETS
from letstalk_core.picture.picture_file import read_image
from letstalk_core.picture.portrait import Portrait
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.pixels import images_to_pixels
from letstalk_core.render.render import Observer, write_video
from letstalk_core.video.clips import ClipSampler, SamplingSettings
from letstalk_core.video.writer import VideoWriter

AT_ONCE = (1, 2, 4, 8)


@torch.inference_mode()
def stages(device: torch.device, timed: Callable[[Callable[[], object]], float]) -> dict[str, float]:
    """Milliseconds of each stage for a second of video of the bundled model, by their names."""
    pipeline = LetsTalkPipeline.load(device=str(device))
    config, frames = pipeline.config, pipeline.config.transformer.clip_frames
    portrait = pipeline.crop(read_image(ASSETS / "portrait.jpg"))
    stream = pipeline.stream_audio(Recording(ASSETS / "speech.wav"))
    features = stream[0 : 4 * frames]
    sampler = ClipSampler(pipeline.model, pipeline.encode_portrait(portrait), features, SamplingSettings())
    clips, decode = list(sampler.clips()), pipeline.decoder(portrait)
    latents = torch.cat([clip.latents for clip in clips])
    images = torch.cat([decode(part) for part in latents.split(frames)])
    pixels, target = images_to_pixels(images).cpu(), Path("performance-benchmark.mp4")

    def write() -> None:
        with VideoWriter(target, config.image_size, config.image_size, config.fps) as writer:
            writer.write(pixels)
        target.unlink()

    made = len(latents) / config.fps  # seconds of video
    stages = {
        "hearing": (lambda: pipeline.encode_audio(torch.zeros(1, 16000 * 6), 16000), 6.0),
        "sampling": (lambda: list(sampler.clips()), made),
        "decoding": (lambda: decode(latents[:frames]), frames / config.fps),
        "to bytes": (lambda: images_to_pixels(images).cpu(), made),
        "H.264": (write, made),
    }
    found = {f"{name}, ms": 1000 * timed(run) / length for name, (run, length) in stages.items()}
    return {**found, "files to first frame, ms": 1000 * first_frame(pipeline)}


def first_frame(pipeline: LetsTalkPipeline) -> float:
    """Seconds from two files to the first frames of their video, with a model that is loaded."""

    class First(Observer):
        def advance(self, frames: int, picture: Tensor) -> None:
            raise InterruptedError

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        try:
            write_video(
                pipeline, ASSETS / "portrait.jpg", ASSETS / "speech.wav", Path(folder) / "out.mp4", observer=First()
            )
        except InterruptedError:
            return time.perf_counter() - began
    raise SystemExit("no frame was made")


def _example(device: torch.device) -> tuple[LetsTalkPipeline, Portrait, Tensor, Tensor]:
    """The bundled pipeline, the example's portrait, its latents, and the features of the example's speech."""
    pipeline = LetsTalkPipeline.load(device=str(device))
    portrait = pipeline.crop(read_image(ASSETS / "portrait.jpg"))
    stream = pipeline.stream_audio(Recording(ASSETS / "speech.wav"))
    return pipeline, portrait, pipeline.encode_portrait(portrait), stream[0 : len(stream)]


def lengths(device: torch.device, seconds: Sequence[int]) -> dict[int, float]:
    """The time that videos of so many seconds take from a portrait and features to pixels, by their lengths."""
    (pipeline, portrait, latents, spoken), took = _example(device), {}
    for length in (1, *seconds):  # the first is not counted
        frames = round(length * pipeline.config.fps)
        features = spoken.repeat(-(-frames // len(spoken)), 1, 1)[:frames]
        sampler, began = ClipSampler(pipeline.model, latents, features, SamplingSettings()), time.perf_counter()
        for chunk in sampler.chunks(pipeline.decoder(portrait)):
            images_to_pixels(chunk.frames).cpu()
        took[length] = time.perf_counter() - began
    return {length: took[length] for length in seconds}


def streams(device: torch.device) -> dict[str, float]:
    """Frames a second of several videos at once, sampled and decoded, by their number."""
    (pipeline, portrait, latents, features), found = _example(device), {}

    def make(seed: int) -> int:
        sampler = ClipSampler(
            pipeline.model, latents, features, SamplingSettings(seed=seed), denoiser=pipeline.denoiser
        )
        return sum(len(images_to_pixels(chunk.frames).cpu()) for chunk in sampler.chunks(pipeline.decoder(portrait)))

    make(0)
    for count in AT_ONCE:
        with pipeline.together(count), ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            frames = sum(pool.map(make, range(count)))
            found[f"{count} at once, frames/s"] = frames / (time.perf_counter() - began)
    return found
