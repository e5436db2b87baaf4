"""Writing of video files, frame by frame or segment by segment.

The writer holds one chunk of frames and of sound at a time, so that memory does not grow with length (but for the
table of contents of an MP4, some 44 bytes for each frame and each packet of sound), and the file appears under its name
only when it is whole and on the disk.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from av.codec.codec import UnknownCodecError
from torch import Tensor

from ..audio.recording import Recording, SampleReader, Sound, exact_fps
from ..errors import InputError
from ..files import cannot_write, check_file, create_part, move_into_place
from ..pixels import images_to_pixels
from .file_format import format_of
from .h264 import ENCODERS, HARDWARE
from .marks import GENERATED, append_xmp, tags
from .reader import open_video
from .sound_track import SoundTrack

# Settings of x264. Threads: fixed, because its bits depend on their number and a resumed video must not differ. mbtree:
# off, because it spends on key frames and saves on the rest, and then each segment begins with a jump in sharpness.
THREADS, X264 = "4", "mbtree=0"
# Of libvpx: about the quality of x264's crf 16. Pictures in their order, none of them invisible, as alpha needs it.
VP9 = {
    "crf": "20", "b": "0", "deadline": "good", "cpu-used": "4", "threads": THREADS, "auto-alt-ref": "0",
    "lag-in-frames": "0", "g": "250",
}  # fmt: skip


class VideoWriter:
    """Writes H.264 video with AAC sound, or in .webm VP9 with Opus, frame by frame::

        with VideoWriter("talk.mp4", 512, 512, 25, "speech.wav") as writer:
            writer.write(frames)

    audio is a Sound, a media file's path, (waveform [channels, S], sample_rate), or None. Its sample rate is kept
    where AAC or Opus has it, else the nearest that it has. Sound is cut where the picture ends; silence follows it
    where it ends more than a frame earlier or lasts less than a frame. Odd widths and heights get one more column or
    row (a copy of the last), which 4:2:0 video needs. copy() takes over the pictures of a finished file without
    encoding them again; a video is made either of frames or of copies. encoder: one of h264.ENCODERS, where the format
    does not have its own, or "png" for pictures as they are, in .mov; crf and preset are for x264. source_type: the
    digital source type that the file is marked with (marks.py). transparent: frames have an alpha channel, for VP9 and
    PNG.

    The file is written under a hidden name beside the target and renamed when it is complete. After an exception, an
    interrupt included, nothing is left. InputError where the target cannot be written, the disk is full, or the encoder
    cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float = 25.0,
        audio: Sound | str | Path | tuple[Tensor, int] | None = None,
        crf: int = 16,
        preset: str = "medium",
        encoder: str = "x264",
        source_type: str = GENERATED,
        transparent: bool = False,
    ):
        self.path = Path(path)
        self.width, self.height, self.fps = width, height, exact_fps(fps)
        self.frames = 0  # written so far
        self._audio, self._crf, self._preset, self._source_type = audio, crf, preset, source_type
        self._sound: SoundTrack | None = None
        if width < 1 or height < 1:
            raise InputError(f"The video size is {width}x{height}; both sides must be at least 1.")
        if encoder not in (*ENCODERS, "vp9", "png"):
            raise InputError(f"There is no video encoder {encoder}; take one of {', '.join(ENCODERS)}.")
        self._kind = format_of(self.path, transparent and encoder != "png")
        self._encoder = self._kind.encoder or encoder
        self._transparent, self._pixels = transparent, "rgba" if transparent else "rgb24"
        planes = {"png": self._pixels, "vp9": "yuva420p" if transparent else "yuv420p"}
        self._more = (0, 0) if self._encoder == "png" else (width % 2, height % 2)  # columns and rows
        self._format = "nv12" if encoder in HARDWARE else planes.get(self._encoder, "yuv420p")

    def __enter__(self) -> VideoWriter:
        self._samples = None if self._audio is None else _reader(self._audio)  # first: a bad one must not leave a file
        self._part = create_part(self.path)
        self._container = self._stream = None
        try:
            with self._sentences():
                options = {} if self._kind.is_matroska else {"movflags": "+faststart"}
                self._container = av.open(
                    f"file:{self._part}", "w", format=self._kind.container, container_options=options
                )
                self._container.metadata.update(tags(self._source_type, self._kind.is_matroska))
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append frames: float [n, 3, H, W] in -1..1 (values outside are clipped), or uint8 [n, H, W, 3]
        ([n, H, W, 4] for a transparent video).

        InputError for frames of another shape, NaN or infinite, and where the file cannot be written.
        """
        for picture in _to_pixels(frames, self.width, self.height, self.frames, 3 + self._transparent):
            picture = np.pad(picture, ((0, self._more[1]), (0, self._more[0]), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(picture, format=self._pixels)
            if self._format != self._pixels:
                frame = frame.reformat(format=self._format, dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = self.frames, 1 / self.fps
            with self._sentences():
                if self._stream is None:
                    self._begin(self._add_video())
                self._container.mux(self._encode(frame))
                self._advance(1)

    def copy(self, path: str | Path) -> None:
        """Append the pictures of a video made by a writer of the same size and frame rate, packet by packet."""
        with open_video(check_file(path, "video")) as source:
            video, before = source.streams.video[0], self.frames
            for packet in source.demux(video):
                if packet.dts is None:  # the end
                    continue
                with self._sentences():
                    if self._stream is None:
                        self._begin(self._container.add_stream_from_template(video))
                    shift = round(before / self.fps / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, self._stream
                    self._container.mux(packet)
                    self._advance(1)

    def _begin(self, stream) -> None:
        self._stream = stream
        if self._transparent and self._kind.is_matroska:
            stream.metadata["alpha_mode"] = "1"  # players look for the second picture, of alpha, where it says so
        if self._samples is not None:
            self._sound = SoundTrack(self._container, self._samples, self._kind)

    def _advance(self, frames: int) -> None:
        self.frames += frames
        if self._sound:
            self._sound.write_until(self.frames / self.fps)

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        if self.frames == 0:
            raise InputError(f"No frames were written to {self.path}; the recording may be empty.")
        with self._sentences():
            if self._sound:
                self._sound.finish(self.frames / self.fps, 1 / self.fps)
            if isinstance(self._stream.codec_context, av.VideoCodecContext) and self._stream.codec_context.is_encoder:
                self._container.mux(self._encode(None))
            self._container.close()
            if not self._part.stat().st_size:
                raise OSError(0, "nothing was written")
            if not self._kind.is_matroska:
                append_xmp(self._part, self._source_type)
            move_into_place(self._part, self.path)

    def _discard(self) -> None:
        """Close and remove whatever is left; after a rename that is nothing."""
        self._sound = self._samples = None  # closes the recording
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            if self._container is not None:
                self._container.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _add_video(self):
        x264 = {"crf": str(self._crf), "preset": self._preset, "threads": THREADS, "x264-params": X264}
        own = {"x264": ("libx264", x264), "vp9": ("libvpx-vp9", VP9), "png": ("png", {})}
        name, options = (own | HARDWARE)[self._encoder]
        with self._encoding():
            stream = self._container.add_stream(name, rate=self.fps, options=options)
        stream.width, stream.height = self.width + self._more[0], self.height + self._more[1]
        stream.pix_fmt = self._format
        stream.time_base = 1 / self.fps
        if self._encoder == "png":
            return stream
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, limited
        return stream

    def _encode(self, frame: av.VideoFrame | None) -> list[av.Packet]:
        with self._encoding():
            return self._stream.encode(frame)

    @contextlib.contextmanager
    def _encoding(self):
        """Inside, errors of a hardware encoder become an InputError of one sentence."""
        try:
            yield
        except (av.FFmpegError, UnknownCodecError) as error:
            if self._encoder not in HARDWARE:
                raise
            reason = f"PyAV was built without {error}"
            if isinstance(error, av.FFmpegError):  # its log says more, where somebody listens
                reason = " ".join(error.log[2].split()).rstrip(".") if error.log else error.strerror
            raise InputError(
                f"The video encoder {self._encoder} cannot be used here ({reason}); take x264, the default, which "
                "works everywhere."
            ) from error

    @contextlib.contextmanager
    def _sentences(self):
        """Inside, errors of the encoder and of the disk become an InputError of one sentence."""
        try:
            yield
        except InputError:
            raise
        except (av.FFmpegError, OSError) as error:
            raise cannot_write(self.path, error) from error


def check_encoder(encoder: str, width: int, height: int, fps: float) -> None:
    """Raises InputError where a video of that size cannot be encoded so here.

    ffmpeg lists encoders whose hardware or driver is missing: only encoding a picture tells.
    """
    if encoder not in HARDWARE:
        return
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)  # for the driver's own words
    try:
        with (
            av.logging.Capture(),
            tempfile.TemporaryDirectory() as folder,
            VideoWriter(Path(folder, "a.mp4"), width, height, fps, encoder=encoder) as writer,
        ):
            writer.write(np.zeros((1, height, width, 3), np.uint8))
    finally:
        av.logging.set_level(before)


def _reader(audio: Sound | str | Path | tuple[Tensor, int]) -> SampleReader:
    return SampleReader((audio if isinstance(audio, Sound) else Recording(audio)).blocks())


def _to_pixels(
    frames: Tensor | np.ndarray, width: int, height: int, first: int, channels: int = 3
) -> Iterator[np.ndarray]:
    """Frames as uint8 [H, W, channels], one at a time."""
    is_uint8 = frames.dtype in (torch.uint8, np.uint8)
    expected = (height, width, channels) if is_uint8 else (channels, height, width)
    if frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
        kind = f"uint8 frames [n, H, W, {channels}]" if is_uint8 else f"float frames [n, {channels}, H, W]"
        raise InputError(f"The video is {width}x{height}, but the {kind} have the shape {list(frames.shape)}.")
    for number, frame in enumerate(frames):
        if not is_uint8:
            frame = torch.as_tensor(frame).detach().float().cpu()
            if not frame.isfinite().all():
                raise InputError(f"Frame {first + number} has NaN or infinite values; try other settings or float32.")
            frame = images_to_pixels(frame)
        yield np.asarray(frame)
