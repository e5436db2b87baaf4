"""Writing of video files, frame by frame or segment by segment.

The writer holds one chunk of frames and of sound at a time, so that memory does not grow with length (but for the
table of contents of an MP4, some 44 bytes for each frame and each packet of sound), and the file appears under its name
only when it is whole and on the disk.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
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
from .h264 import ENCODERS, HARDWARE
from .marks import GENERATED, append_xmp, tags
from .reader import open_video

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AAC_BITS = 96000  # bits a second, for each channel
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
# Layouts as they come in, by the number of channels; the file keeps mono, stereo and 5.1, others become stereo.
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_KEPT = (1, 2, 6)
# Settings of x264. Threads: fixed, because its bits depend on their number and a resumed video must not differ. mbtree:
# off, because it spends on key frames and saves on the rest, and then each segment begins with a jump in sharpness.
THREADS, X264 = "4", "mbtree=0"


class VideoWriter:
    """Writes H.264 video with AAC sound, frame by frame::

        with VideoWriter("talk.mp4", 512, 512, 25, "speech.wav") as writer:
            writer.write(frames)

    audio is a Sound, a media file's path, (waveform [channels, S], sample_rate), or None. Its sample rate is kept
    where AAC has it, else the nearest that AAC has. Sound is cut where the picture ends; silence follows it where it
    ends more than a frame earlier or lasts less than a frame. Odd widths and heights get one more column or row (a copy
    of the last), which 4:2:0 video needs. copy() takes over the pictures of a finished file without encoding them
    again; a video is made either of frames or of copies. encoder: one of h264.ENCODERS; crf and preset are for x264.
    source_type: the digital source type that the file is marked with (marks.py).

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
    ):
        self.path = Path(path)
        self.width, self.height, self.fps = width, height, exact_fps(fps)
        self.frames = 0  # written so far
        self._audio, self._crf, self._preset, self._encoder = audio, crf, preset, encoder
        self._source_type, self._matroska = source_type, self.path.suffix.lower() == ".mkv"
        self._format = "nv12" if encoder in HARDWARE else "yuv420p"
        self._sound: _Sound | None = None
        if width < 1 or height < 1:
            raise InputError(f"The video size is {width}x{height}; both sides must be at least 1.")
        if self.path.suffix.lower() not in FORMATS:
            raise InputError(f"{self.path} does not end in {', '.join(FORMATS)}; name the video file .mp4.")
        if encoder not in ENCODERS:
            raise InputError(f"There is no video encoder {encoder}; take one of {', '.join(ENCODERS)}.")

    def __enter__(self) -> VideoWriter:
        self._samples = None if self._audio is None else _reader(self._audio)  # first: a bad one must not leave a file
        self._part = create_part(self.path)
        self._container = self._stream = None
        try:
            with self._sentences():
                options = {} if self._matroska else {"movflags": "+faststart"}
                self._container = av.open(
                    f"file:{self._part}", "w", format=FORMATS[self.path.suffix.lower()], container_options=options
                )
                self._container.metadata.update(tags(self._source_type, self._matroska))
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Append frames: float [n, 3, H, W] in -1..1 (values outside are clipped), or uint8 [n, H, W, 3].

        InputError for frames of another shape, NaN or infinite, and where the file cannot be written.
        """
        for picture in _to_pixels(frames, self.width, self.height, self.frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
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
        if self._samples is not None:
            self._sound = _Sound(self._container, self._samples)

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
            if not self._matroska:
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
        name, options = HARDWARE.get(self._encoder, ("libx264", x264))
        with self._encoding():
            stream = self._container.add_stream(name, rate=self.fps, options=options)
        stream.width, stream.height = self.width + self.width % 2, self.height + self.height % 2
        stream.pix_fmt = self._format
        stream.time_base = 1 / self.fps
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
    if encoder == "x264":
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


class _Sound:
    """The audio track: samples go in as the picture advances."""

    def __init__(self, container, reader: SampleReader):
        self.reader, self.container = reader, container
        self.rate, self.position = reader.rate, 0  # samples written
        # Unusual layouts of more than eight channels are mixed to one.
        self.channels = reader.channels if reader.channels in _LAYOUTS else 1
        rate = min(AAC_RATES, key=lambda candidate: abs(candidate - self.rate))
        layout = _LAYOUTS[self.channels] if self.channels in _KEPT else "stereo"
        self.stream = container.add_stream("aac", rate=rate, layout=layout)
        self.stream.bit_rate = AAC_BITS * len(self.stream.layout.channels)

    def write_until(self, seconds: Fraction) -> None:
        """Write the sound from where it is up to `seconds`."""
        missing = math.ceil(seconds * self.rate) - self.position
        while missing > 0:
            samples = self.reader.read(min(missing, self.rate))
            if samples.shape[1] == 0:
                return
            missing -= samples.shape[1]
            self._encode(samples if self.channels == self.reader.channels else samples.mean(dim=0, keepdim=True))

    def finish(self, seconds: Fraction, frame: Fraction) -> None:
        """End the sound at `seconds`, where the picture ends; silence fills in where more than a `frame` is missing."""
        self.write_until(seconds)
        missing = math.ceil(seconds * self.rate) - self.position
        # A sound shorter than a millisecond would round to nothing in the file's header.
        if missing > frame * self.rate or (missing > 0 and self.position < frame * self.rate):
            self._encode(torch.zeros(self.channels, missing))
        self.reader.read(1)  # beyond the end: a recording says there if it was changed while it was read
        self.container.mux(self.stream.encode(None))

    def _encode(self, samples: Tensor) -> None:
        packed = np.ascontiguousarray(samples.clamp(-1, 1).T.numpy()).reshape(1, -1)  # PyAV has eight planes at most
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=_LAYOUTS[self.channels])
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.position, Fraction(1, self.rate)
        self.position += samples.shape[1]
        self.container.mux(self.stream.encode(frame))


def _reader(audio: Sound | str | Path | tuple[Tensor, int]) -> SampleReader:
    return SampleReader((audio if isinstance(audio, Sound) else Recording(audio)).blocks())


def _to_pixels(frames: Tensor | np.ndarray, width: int, height: int, first: int) -> Iterator[np.ndarray]:
    """Frames as uint8 [H, W, 3] with even sides, one at a time."""
    is_uint8 = frames.dtype in (torch.uint8, np.uint8)
    expected = (height, width, 3) if is_uint8 else (3, height, width)
    if frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
        kind = "uint8 frames [n, H, W, 3]" if is_uint8 else "float frames [n, 3, H, W]"
        raise InputError(f"The video is {width}x{height}, but the {kind} have the shape {list(frames.shape)}.")
    for number, frame in enumerate(frames):
        if not is_uint8:
            frame = torch.as_tensor(frame).detach().float().cpu()
            if not frame.isfinite().all():
                raise InputError(f"Frame {first + number} has NaN or infinite values; try other settings or float32.")
            frame = images_to_pixels(frame)
        yield np.pad(np.asarray(frame), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
