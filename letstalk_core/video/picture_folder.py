"""A video as a folder of PNG pictures, 00000.png, 00001.png ... with its sound beside them, sound.wav."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av

from ..audio.recording import SampleReader, Sound, exact_fps
from ..errors import InputError
from ..files import cannot_write, create_part, followed, sync_folder
from .file_format import FOLDER
from .marks import xmp_packet
from .reader import open_video
from .sound_track import SoundTrack

_HEAD = 8 + 25  # bytes of a PNG's signature and its first chunk, which has to come first
_XMP = b"XML:com.adobe.xmp"


def check_folder(path: Path) -> None:
    """Raises InputError where pictures cannot be written to the folder `path`, which may be empty or not there yet."""
    path = followed(path)
    if not path.name:
        raise InputError("The pictures need a folder of their own; give the name of a new one.")
    if path.is_dir():
        if any(path.iterdir()):
            raise InputError(f"The folder {path} is not empty; give the name of a new one for the pictures.")
        create_part(path / "sound.wav").unlink()
    elif path.exists():
        raise InputError(
            f"{path} is a file; give the name of a new folder for the pictures, or one that ends in .webm."
        )
    else:
        create_part(path).unlink()


def write_pictures(
    folder: Path, parts: Sequence[Path], sound: Sound, fps: float, source_type: str, check: Callable[[], None]
) -> None:
    """Write the pictures of parts, made by a VideoWriter with the encoder "png", and the sound into a new folder.

    Each picture is marked with its digital source type. check is called for each part and cancels by raising. All of it
    is on the disk when this returns; after an exception nothing of it is left.
    """
    folder.mkdir()
    try:
        frames = 0
        for part in parts:
            check()
            frames = _write_part(folder, part, frames, xmp_packet(source_type).encode())
        _write_sound(folder / "sound.wav", sound, frames, fps)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise cannot_write(path, error) from error


def _write_part(folder: Path, part: Path, first: int, xmp: bytes) -> int:
    """The pictures of a part, numbered from `first` on; returns the number after the last."""
    with open_video(part) as container, _sentences(folder):
        for packet in container.demux(video=0):
            if packet.size:
                with open(folder / f"{first:05d}.png", "wb") as file:
                    file.write(_marked(bytes(packet), xmp))
                    file.flush()
                    os.fsync(file.fileno())
                first += 1
    return first


def _write_sound(path: Path, sound: Sound, frames: int, fps: float) -> None:
    with _sentences(path):
        with av.open(f"file:{path}", "w", options={"rf64": "auto"}) as container:
            track = SoundTrack(container, SampleReader(sound.blocks()), FOLDER)
            for second in range(int(frames / fps)):
                track.write_until(exact_fps(1) * second)  # little by little
            track.finish(frames / exact_fps(fps), 1 / exact_fps(fps))
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def move_folder(folder: Path, path: Path) -> None:
    """Move what a finished folder holds to `path`, also onto another file system; that one is empty or not there."""
    path = followed(path)
    with _sentences(path):
        if path.is_dir():  # it stays: it may be a mount
            for file in sorted(folder.iterdir()):
                shutil.move(file, path / file.name)
            folder.rmdir()
        else:
            shutil.move(folder, path)
        sync_folder(path.parent)


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
