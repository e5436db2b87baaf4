"""A video as a folder of PNG pictures, 00000.png, 00001.png ... with its sound beside them, sound.wav."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import av

from ..audio.recording import SampleReader, Sound, exact_fps
from ..errors import InputError
from ..files import cannot_write, create_part
from .file_format import FOLDER
from .marks import xmp_packet
from .reader import open_video
from .sound_track import SoundTrack

_HEAD = 8 + 25  # bytes of a PNG's signature and its first chunk, which has to come first
_XMP = b"XML:com.adobe.xmp"


def check_folder(path: Path) -> None:
    """Raises InputError where pictures cannot be written to the folder `path`, which may be empty or not there yet."""
    if path.is_dir():
        if any(path.iterdir()):
            raise InputError(f"The folder {path} is not empty; give the name of a new one for the pictures.")
        create_part(path / "sound.wav").unlink()
    else:
        create_part(path).unlink()


def write_pictures(
    folder: Path, parts: Sequence[Path], sound: Sound, fps: float, source_type: str, check: Callable[[], None]
) -> None:
    """Write the pictures of parts, made by a VideoWriter with the encoder "png", and the sound into a new folder.

    Each picture is marked with its digital source type. check is called for each part and cancels by raising.
    """
    folder.mkdir()
    xmp, frames = xmp_packet(source_type).encode(), 0
    try:
        for part in parts:
            check()
            with open_video(part) as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        (folder / f"{frames:05d}.png").write_bytes(_marked(bytes(packet), xmp))
                        frames += 1
        with av.open(f"file:{folder / 'sound.wav'}", "w", options={"rf64": "auto"}) as container:
            track = SoundTrack(container, SampleReader(sound.blocks()), FOLDER)
            for second in range(int(frames / fps)):
                track.write_until(exact_fps(1) * second)  # little by little
            track.finish(frames / exact_fps(fps), 1 / exact_fps(fps))
    except (av.FFmpegError, OSError) as error:
        raise cannot_write(folder, error) from error


def move_folder(folder: Path, path: Path) -> None:
    """Rename a finished folder, also onto another file system; `path` is empty or not there."""
    if path.is_dir():
        path.rmdir()
    try:
        os.rename(folder, path)
    except OSError:
        shutil.move(folder, path)


def xmp_of(path: Path) -> bytes | None:
    """The XMP of a PNG picture; None where it has none."""
    with open(path, "rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return None
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind == b"iTXt" and file.read(min(size, len(_XMP))) == _XMP:
                return file.read(size - len(_XMP)).lstrip(b"\0")
            file.seek(size + 4 - (min(size, len(_XMP)) if kind == b"iTXt" else 0), os.SEEK_CUR)
    return None


def _marked(png: bytes, xmp: bytes) -> bytes:
    """A PNG with XMP in it."""
    content = b"iTXt" + _XMP + b"\0\0\0\0\0" + xmp  # not compressed, in no language
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:_HEAD] + chunk + png[_HEAD:]
