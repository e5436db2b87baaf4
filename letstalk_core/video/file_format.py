"""What kinds of files a video can be written to, by the output's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class FileFormat:
    """container: ffmpeg's name. encoder: of the pictures; "" is H.264, by one of h264.ENCODERS. sound: ffmpeg's name of
    the encoder. rates: samples a second that it takes, () for any. parts: the suffix of the files that such a video is
    joined from."""

    container: str
    encoder: str = ""
    sound: str = "aac"
    rates: tuple[int, ...] = (
        8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000,
    )  # fmt: skip
    parts: str = ".mp4"

    @property
    def is_matroska(self) -> bool:
        return self.container in ("matroska", "webm")


FORMATS = {
    ".mp4": FileFormat("mp4"),
    ".m4v": FileFormat("mp4"),
    ".mov": FileFormat("mov"),
    ".mkv": FileFormat("matroska"),
    ".webm": FileFormat("webm", "vp9", "libopus", (8000, 12000, 16000, 24000, 48000), ".webm"),
}
# A folder of PNG pictures. Its parts are videos whose packets are such pictures, and have no sound.
FOLDER = FileFormat("", "png", "pcm_s16le", (), ".mov")


def format_of(output: Path, transparent: bool = False) -> FileFormat:
    """The format of an output's name, where a name without a dot is that of a folder; InputError where there is none,
    or it has no transparency and that is asked for."""
    suffix = output.suffix.lower()
    if suffix and suffix not in FORMATS:
        alone = "; all pictures go into a folder, whose name has no dot" if suffix == ".png" else ""
        raise InputError(f"{output} does not end in {', '.join(FORMATS)}; name the video file .mp4{alone}.")
    found = FORMATS.get(suffix, FOLDER)
    if transparent and not found.encoder:
        raise InputError(
            f"{output} cannot be transparent: H.264 has no place for that; name it .webm, or give the name of a "
            "folder, without a dot, for PNG pictures."
        )
    return found


def encoder_of(output: Path, encoder: str = "x264", transparent: bool = False) -> str:
    """What encodes the pictures of an output: "vp9", "png", or the encoder of H.264 that is given; InputError as for
    format_of, and where another one than x264 was asked for and has no say."""
    found = format_of(output, transparent)
    if found.encoder and encoder not in ("x264", found.encoder):
        what = f"{output.suffix} holds VP9" if output.suffix else f"the folder {output} holds PNG pictures"
        raise InputError(f"The video encoder {encoder} makes H.264, and {what}; name the video .mp4, or leave it out.")
    return found.encoder or encoder
