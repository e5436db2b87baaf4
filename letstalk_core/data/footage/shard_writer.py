"""Writing of stretches of talking video into tar files (webdataset), the format of training data: see docs/data.md.

T are the frames of a stretch, c the frames of context before and after it.
"""

from __future__ import annotations

import io
import json
import re
import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...audio.recording import SAMPLE_RATE, exact_fps
from ...config import CONTROLS
from ...errors import InputError
from ...files import cannot_write, create_part, move_into_place
from ...video.writer import THREADS

CRF = 12  # x264's quality for the frames: no visible loss
KEY_EVERY = 25  # frames: reading a clip decodes at most so many before it


@dataclass(frozen=True, eq=False)
class Stretch:
    """One stretch of one person speaking, as it goes into a shard; arrays or CPU tensors.

    At least one of frames and latents. The portrait is given only where it is none of the frames, and then with latents
    of its own if there are latents.
    """

    name: str  # for messages: the file and the place in it
    fps: float
    features: np.ndarray | Tensor  # [T + 2c, L, E]; beyond the ends of the recording its first and last frame repeated
    context: int  # c: half an audio window, or more
    audio_encoder: str  # its name, "mel" or "wav2vec2"
    frames: np.ndarray | Tensor | None = None  # uint8 [T, H, W, 3]
    latents: np.ndarray | Tensor | None = None  # [T, C, h, w], as Autoencoder.encode scales them
    autoencoder: str | None = None  # encoder_digest of the autoencoder that made them
    portrait: np.ndarray | Tensor | None = None  # uint8 [H, W, 3]
    portrait_latents: np.ndarray | Tensor | None = None  # [C, h, w]
    size: tuple[int, int] | None = None  # H, W in pixels; known where there are frames
    sound: np.ndarray | Tensor | None = None  # float32 [S] in -1..1 at 16 kHz, of the T frames; training needs none
    # Tracks [T] of those of config.CONTROLS that are known, in their units; all but the eyelids from any zero.
    controls: Mapping[str, Sequence[float]] | None = None

    def members(self) -> dict[str, bytes]:
        """The files of the stretch by their suffixes. Raises InputError where the fields contradict each other."""
        count = len(self.features) - 2 * self.context
        given = [array for array in (self.frames, self.latents) if array is not None]
        self._need(given, "has neither frames nor latents")
        for array in given:
            self._need(len(array) == count, f"has {len(array)} frames, but features for {count} and their context")
        self._need(
            (self.latents is None) == (self.autoencoder is None), "needs latents with the digest of their encoder"
        )
        both = self.portrait is not None and self.latents is not None
        self._need((self.portrait_latents is not None) == both, "needs latents of its portrait where it has latents")
        size = self.size if self.frames is None else tuple(self.frames.shape[1:3])
        self._need(size is not None, "has no frames and does not say their size")
        about = {"name": self.name, "frames": count, "fps": float(self.fps), "size": [int(side) for side in size]}
        about |= {"context": self.context, "audio_encoder": self.audio_encoder, "autoencoder": self.autoencoder}
        if self.controls:
            self._need(set(self.controls) <= set(CONTROLS), f"has a control that is none of {', '.join(CONTROLS)}")
            about["controls"] = list(self.controls)
        members = {"json": json.dumps(about).encode(), "features.npy": self._half(self.features, 3)}
        if self.frames is not None:
            self._need_pixels(self.frames, (count, *size, 3))
            members["mp4"] = encode_frames(np.asarray(self.frames), self.fps)
        if self.latents is not None:
            members["latents.npy"] = self._half(self.latents, 4)
        if self.portrait is not None:
            self._need_pixels(self.portrait, (*size, 3))
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(self.portrait)).save(buffer, "PNG")
            members["portrait.png"] = buffer.getvalue()
        if self.portrait_latents is not None:
            members["portrait_latents.npy"] = self._half(self.portrait_latents, 3)
        if self.sound is not None:
            members["wav"] = encode_sound(np.asarray(self.sound))
        if self.controls:
            tracks = [np.asarray(track) for track in self.controls.values()]
            self._need(all(track.shape == (count,) for track in tracks), f"needs {count} values of each control")
            members["controls.npy"] = self._half(np.stack(tracks, 1), 2)
        return members

    def _half(self, array: np.ndarray | Tensor, axes: int) -> bytes:
        self._need(array.ndim == axes, f"has an array of shape {list(array.shape)} where {axes} axes belong")
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused
            half = np.ascontiguousarray(np.asarray(array), dtype=np.float16)
        self._need(np.isfinite(half).all(), "has numbers that are NaN, infinite or above 65504")
        buffer = io.BytesIO()
        np.save(buffer, half)
        return buffer.getvalue()

    def _need_pixels(self, array: np.ndarray | Tensor, shape: tuple[int, ...]) -> None:
        right = tuple(array.shape) == shape and array.dtype in (np.uint8, torch.uint8)
        self._need(right, f"has {array.dtype} pixels of shape {list(array.shape)}, not uint8 of shape {list(shape)}")

    def _need(self, condition, sentence: str) -> None:
        if not condition:
            raise InputError(f"The stretch {self.name} {sentence}.")


def write_shard(path: str | Path, stretches: Iterable[Stretch]) -> Path:
    """Write stretches, one after the other as they come, into a tar file that is there whole or not at all.

    Its name ends in .tar. The same stretches give the same bytes. Raises InputError where there are none, where one
    contradicts itself, or where the file cannot be written.
    """
    try:
        from webdataset import TarWriter
    except ImportError:
        raise InputError("Training data is written with webdataset; install it with: pip install webdataset") from None
    path = Path(path)
    if path.suffix != ".tar":
        raise InputError(f"{path} does not end in .tar; name the shard so.")
    prefix, number = re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem)[:60], -1
    part = create_part(path)
    try:
        with part.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for number, stretch in enumerate(stretches):
                tar.write({"__key__": f"{prefix}-{number:05d}", **stretch.members()})
        if number < 0:
            raise InputError(f"There are no stretches to write into {path}; give at least one.")
        move_into_place(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def encode_sound(samples: np.ndarray) -> bytes:
    """Samples float32 [S] in -1..1 at 16 kHz as a WAV file of 16 bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


def encode_frames(frames: np.ndarray, fps: float) -> bytes:
    """Frames uint8 [T, H, W, 3] as an MP4 file: H.264 with full colour (any sides, odd ones too) and no B-frames."""
    buffer, rate = io.BytesIO(), exact_fps(fps)
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": str(CRF), "preset": "fast", "threads": THREADS, "g": str(KEY_EVERY), "bf": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv444p", 1 / rate
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, limited
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
