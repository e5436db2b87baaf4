"""What lies where in a shard (a tar file of prepared footage), and single members of it, read at random.

docs/data.md has the format; shard_writer.py writes it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import tarfile
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...audio.recording import SAMPLE_RATE, exact_fps
from ...errors import InputError
from ...pixels import pixels_to_planes
from .shard_writer import KEY_EVERY

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
BLOCK = 512  # bytes: members of a tar file begin at multiples of it


@dataclass(frozen=True)
class _Array:
    """The place in a shard, shape and type of a .npy file's values."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class ShardEntry:
    """A stretch in a shard: what its KEY.json says, and where its files lie."""

    path: Path
    key: str
    name: str
    frames: int
    fps: float
    size: tuple[int, int]
    context: int
    audio_encoder: str
    autoencoder: str | None
    members: dict[str, tuple[int, int]]  # suffix -> offset and size in bytes
    arrays: dict[str, _Array]
    controls: tuple[str, ...] = ()  # the columns of controls.npy, of config.CONTROLS
    held: dict[str, Tensor] = field(default_factory=dict)  # arrays that lie in memory, by their files

    @property
    def title(self) -> str:
        """What a message calls the stretch: its name and the shard it lies in."""
        return f"{self.name} ({self.path.name})"

    def damaged(self, what: str) -> InputError:
        return InputError(f"{self.path} is damaged: {self.key} ({self.name}) {what}; copy or prepare it again.")

    def latents(self, first: int, last: int) -> Tensor:
        """The latents of frames first .. last - 1, float32 [n,C,h,w]."""
        return self.rows("latents.npy", first, last)

    def portrait(self, chosen: int, in_latents: bool) -> Tensor:
        """The stretch's own portrait, or the chosen frame: latents [C,h,w], or uint8 pixels [3,H,W]."""
        if "portrait.png" not in self.members:
            return (self.latents if in_latents else self.pixels)(chosen, chosen + 1)[0]
        if in_latents:
            return self.rows("portrait_latents.npy", 0, self.arrays["portrait_latents.npy"].shape[0])
        return self._portrait_pixels()

    def rows(self, file: str, first: int, last: int) -> Tensor:
        """Rows first .. last - 1 of an array, float32, without reading the others; on its device where it is held."""
        if file in self.held:
            return self.held[file][first:last].float()
        return torch.from_numpy(self._values(file, first, last).astype(np.float32))

    def size_of(self, files: Iterable[str]) -> int:
        """Bytes of those of the arrays that the stretch has."""
        sizes = ((self.arrays[file].dtype.itemsize, self.arrays[file].shape) for file in files if file in self.arrays)
        return sum(size * math.prod(shape) for size, shape in sizes)

    def holding(self, files: Iterable[str], device: torch.device) -> ShardEntry:
        """The same stretch with those of the arrays that it has in a device's memory, as they were stored."""
        wanted = [file for file in files if file in self.arrays]
        values = (self._values(file, 0, self.arrays[file].shape[0]) for file in wanted)
        held = {file: torch.from_numpy(value.copy()).to(device) for file, value in zip(wanted, values)}
        return dataclasses.replace(self, held=held)

    def _values(self, file: str, first: int, last: int) -> np.ndarray:
        """Rows of an array as they are stored."""
        array = self.arrays[file]
        row = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        content = self._read(array.offset + first * row, (last - first) * row)
        return np.frombuffer(content, array.dtype).reshape(last - first, *array.shape[1:])

    def _read(self, offset: int, size: int) -> bytes:
        # Opened for each read: nothing to hand on to the workers of a DataLoader, and no limit of open files.
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read any more ({error.strerror}); is its disk there?") from error
        if len(content) < size:
            raise self.damaged("is cut short")
        return content

    def pixels(self, first: int, last: int) -> Tensor:
        """Frames first .. last - 1 of KEY.mp4, uint8 [n,3,H,W]; decoded from the key frame before them."""
        content = io.BytesIO(self._read(*self.members["mp4"]))
        try:
            found = self._decode(content, first, last, seek=first >= KEY_EVERY)
            if len(found) < last - first and first >= KEY_EVERY:  # an open group: not decodable from its key frame
                found = self._decode(content, first, last, seek=False)
        except (av.FFmpegError, IndexError, TypeError) as error:
            raise self.damaged(f"has a video that cannot be decoded ({error})") from error
        if len(found) < last - first:
            raise self.damaged(f"has a video without frames {first} to {last - 1} at {self.fps:g} a second")
        self._check_size(found[0], "video")
        return pixels_to_planes(np.stack(found))

    def sound(self) -> np.ndarray | None:
        """The sound of the frames, float32 [S] in -1..1 at 16 kHz; None where the stretch keeps none."""
        if "wav" not in self.members:
            return None
        try:
            with wave.open(io.BytesIO(self._read(*self.members["wav"]))) as file:
                kind = file.getnchannels(), file.getsampwidth(), file.getframerate()
                samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        except (wave.Error, EOFError, ValueError) as error:
            raise self.damaged(f"has a sound that cannot be read ({error})") from error
        if kind != (1, 2, SAMPLE_RATE):
            raise self.damaged(f"has a sound that is not of one channel, 16 bits and {SAMPLE_RATE} Hz")
        return samples.astype(np.float32) / 32767

    def _decode(self, content: io.BytesIO, first: int, last: int, seek: bool) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        rate = exact_fps(self.fps)
        content.seek(0)
        with av.open(content) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # the workers of a DataLoader are many
            begin = stream.start_time or 0
            if seek:
                container.seek(begin + int(first / rate / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if round((frame.pts - begin) * stream.time_base * rate) == first + len(found):
                    found.append(frame.to_ndarray(format="rgb24"))
                if len(found) == last - first:
                    break
        return found

    def _portrait_pixels(self) -> Tensor:
        try:
            with Image.open(io.BytesIO(self._read(*self.members["portrait.png"]))) as picture:
                pixels = np.array(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise self.damaged(f"has a portrait that cannot be read ({error})") from error
        self._check_size(pixels, "portrait")
        return pixels_to_planes(pixels)

    def _check_size(self, picture: np.ndarray, kind: str) -> None:
        (height, width), found = self.size, picture.shape
        if found[:2] != self.size:
            raise self.damaged(f"has a {kind} of {found[1]}x{found[0]} pixels where it says {width}x{height}")


def find_shards(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The tar files of a folder by their names, a single one, or those given. InputError where there are none."""
    if not isinstance(paths, str | Path):
        files = [Path(path) for path in paths]
        if not files:
            raise InputError("There is no training data: the list of tar files is empty; prepare some videos first.")
        return files
    folder = Path(paths)
    if folder.is_file():
        return [folder]
    files = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not files:
        below = sorted({str(path.parent) for path in folder.glob("*/*.tar")})
        place = f"name one of the folders in it: {', '.join(below[:5])}" if below else "prepare some videos first"
        raise InputError(f"There is no training data in {folder}: it has no tar files; {place}.")
    return files


def index_shard(path: Path) -> list[ShardEntry]:
    """The stretches of a shard: their places, descriptions and shapes of arrays are read, nothing else.

    InputError where the file is missing, damaged, compressed or no shard.
    """
    # Reading at random: webdataset itself reads from the start to the end, and its indexed reader (wids) is no longer
    # part of it. A tar file needs no more than the place of each member.
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    try:
        with path.open("rb") as file:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    place = member.offset_data, member.size
                    end = place[0] + -(-place[1] // BLOCK) * BLOCK
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    if member.isfile() and stem:  # names that begin with a dot are what systems leave behind
                        groups.setdefault(folder + slash + stem, {})[suffix] = place
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):  # tarfile ends quietly where a header is missing or damaged
                raise tarfile.ReadError("it has no end")
            if not groups:
                raise tarfile.ReadError("it is empty")
            return [_read_entry(file, path, key, members) for key, members in groups.items()]
    except OSError as error:
        raise InputError(f"The shard {path} cannot be read ({error.strerror or error}); check its path.") from error
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} is a damaged or compressed tar file ({error}); copy or prepare it again.") from error


def _read_entry(file, path: Path, key: str, members: dict[str, tuple[int, int]]) -> ShardEntry:
    """One stretch of an opened shard, checked; members: offset and size of its files by suffix."""

    def need(condition: bool, sentence: str):
        if not condition:
            raise InputError(f"{path} is no shard of training data: {key} {sentence}; docs/data.md says what it needs.")

    need("json" in members and "features.npy" in members, "lacks its .json or .features.npy")
    need("mp4" in members or "latents.npy" in members, "has neither .mp4 nor .latents.npy")
    try:
        file.seek(members["json"][0])
        about = json.loads(file.read(members["json"][1]))
        height, width = map(int, about["size"])
        entry = ShardEntry(
            *(path, key, str(about["name"]), int(about["frames"]), float(about["fps"]), (height, width)),
            *(int(about["context"]), str(about["audio_encoder"]), about.get("autoencoder"), members),
            {name: _read_header(file, *members[name]) for name in members if name.endswith("npy")},
            tuple(map(str, about.get("controls", ()))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {key} cannot be understood ({error!r}); prepare it again.") from error
    shapes = {name: array.shape for name, array in entry.arrays.items()}
    features, latents = shapes["features.npy"], shapes.get("latents.npy")
    total = entry.frames + 2 * entry.context
    need(entry.frames > 0 and entry.context >= 0, "has no frames")
    need(len(features) == 3 and features[0] == total, f"has features {features} where {total} frames are said")
    controls = shapes.get("controls.npy")
    if controls is not None or entry.controls:
        names = len(entry.controls)
        need(controls == (entry.frames, names), f"has controls {controls} for {entry.frames} frames of {names}")
    if latents is not None:
        need(len(latents) == 4 and latents[0] == entry.frames, f"has latents {latents} for {entry.frames} frames")
        need(isinstance(entry.autoencoder, str), "has latents and does not name their autoencoder")
        portraits = ("portrait.png" in members) + ("portrait_latents.npy" in members)
        need(portraits != 1, "has latents and a portrait of its own, but not both as .png and as latents")
    return entry


def _read_header(file, offset: int, size: int) -> _Array:
    """The header of a .npy file; ValueError where it is none of plain numbers, in the order of the axes."""
    file.seek(offset)
    shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    array = _Array(file.tell(), shape, dtype)
    if dtype.kind != "f" or fortran or array.offset + dtype.itemsize * int(np.prod(shape)) > offset + size:
        raise ValueError(f"an array of {dtype} {shape} that is incomplete or not in the order of its axes")
    return array
