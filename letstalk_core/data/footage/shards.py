"""Training examples from tar files of prepared footage (webdataset), read at random; docs/data.md has the format."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...audio.recording import exact_fps
from ...errors import InputError
from ...model.audio_projection import window_features
from ..source import Window
from .shard_writer import KEY_EVERY, Stretch, write_shard

__all__ = ["ShardSource", "Stretch", "write_shard"]

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
BLOCK = 512  # bytes, of a tar file


@dataclass(frozen=True)
class _Array:
    """Where the values of a .npy file lie in a shard."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class _Entry:
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

    def damaged(self, what: str) -> InputError:
        return InputError(f"{self.path} is damaged: {self.key} ({self.name}) {what}; copy or prepare it again.")

    def latents(self, first: int, last: int) -> Tensor:
        """Frames first .. last - 1, float32 [n,C,h,w]."""
        return self.rows("latents.npy", first, last)

    def portrait(self, chosen: int, in_latents: bool) -> Tensor:
        """The stretch's own portrait, or the chosen frame: latents [C,h,w], or uint8 pixels [3,H,W]."""
        if "portrait.png" not in self.members:
            return (self.latents if in_latents else self.pixels)(chosen, chosen + 1)[0]
        if in_latents:
            return self.rows("portrait_latents.npy", 0, self.arrays["portrait_latents.npy"].shape[0])
        return self._portrait_pixels()

    def rows(self, file: str, first: int, last: int) -> Tensor:
        """Rows first .. last - 1 of an array, float32, without reading the others."""
        array = self.arrays[file]
        row = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        content = self._read(array.offset + first * row, (last - first) * row)
        values = np.frombuffer(content, array.dtype).astype(np.float32)
        return torch.from_numpy(values.reshape(last - first, *array.shape[1:]))

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
        return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2).copy())

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
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def _check_size(self, picture: np.ndarray, kind: str) -> None:
        (height, width), found = self.size, picture.shape
        if found[:2] != self.size:
            raise self.damaged(f"has a {kind} of {found[1]}x{found[0]} pixels where it says {width}x{height}")


def find_shards(paths: str | Path | Sequence[str | Path]) -> list[Path]:
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


def index_shard(path: Path) -> list[_Entry]:
    """The stretches of a shard. Only their places are read, with their descriptions and the shapes of their arrays."""
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


def _read_entry(file, path: Path, key: str, members: dict[str, tuple[int, int]]) -> _Entry:
    def need(condition: bool, sentence: str):
        if not condition:
            raise InputError(f"{path} is no shard of training data: {key} {sentence}; docs/data.md says what it needs.")

    need("json" in members and "features.npy" in members, "lacks its .json or .features.npy")
    need("mp4" in members or "latents.npy" in members, "has neither .mp4 nor .latents.npy")
    try:
        file.seek(members["json"][0])
        about = json.loads(file.read(members["json"][1]))
        height, width = map(int, about["size"])
        entry = _Entry(
            *(path, key, str(about["name"]), int(about["frames"]), float(about["fps"]), (height, width)),
            *(int(about["context"]), str(about["audio_encoder"]), about.get("autoencoder"), members),
            {name: _read_header(file, *members[name]) for name in members if name.endswith("npy")},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {key} cannot be understood ({error!r}); prepare it again.") from error
    shapes = {name: array.shape for name, array in entry.arrays.items()}
    features, latents = shapes["features.npy"], shapes.get("latents.npy")
    total = entry.frames + 2 * entry.context
    need(entry.frames > 0 and entry.context >= 0, "has no frames")
    need(len(features) == 3 and features[0] == total, f"has features {features} where {total} frames are said")
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


class ShardSource:
    """Training examples from shards: a Source (source.py), each index one stretch.

    Args:
        paths: a folder of tar files, or the files.
        window: what is cut out.
        autoencoder_mark: of the model's autoencoder; where every stretch has latents of it, clips are latents, else
            pixels. None: always pixels.
        features_shape: (L, E) of the model's audio features.

    Stretches too short for a clip and its memory are left out with a warning. Raises InputError where there is no data,
    where it does not fit the arguments or itself (size, frame rate, audio encoder), or where a file is damaged.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        window: Window,
        *,
        autoencoder_mark: str | None,
        features_shape: tuple[int, int],
    ):
        self.window = window
        entries = [entry for path in find_shards(paths) for entry in index_shard(path)]
        self._entries = self._long_enough(entries)
        self.fps: float = self._same("frames a second", lambda entry: entry.fps)
        self.size: tuple[int, int] = self._same("[H, W]", lambda entry: entry.size)
        self.audio_encoder: str = self._same("audio encoder", lambda entry: entry.audio_encoder)
        shape = self._same("shape of features", lambda entry: entry.arrays["features.npy"].shape[1:])
        if shape != tuple(features_shape):
            raise InputError(
                f"The features of {self._entries[0].path} have the shape {shape} ({self.audio_encoder}), but the model "
                f"needs {tuple(features_shape)}; prepare the videos with the model's audio encoder."
            )
        self.uses_latents = self._choose_form(autoencoder_mark)

    def _long_enough(self, entries: list[_Entry]) -> list[_Entry]:
        length, memory = self.window.clip_frames, self.window.memory_frames
        needed = length + memory
        kept = [entry for entry in entries if entry.frames >= needed]
        if not kept:
            longest = max(entry.frames for entry in entries)
            raise InputError(
                f"The longest stretch of the training data has {longest} frames, but a clip of {length} and its memory "
                f"of {memory} need {needed}; prepare longer stretches, or train shorter clips."
            )
        if len(kept) < len(entries):
            warnings.warn(
                f"{len(entries) - len(kept)} of {len(entries)} stretches have fewer than {needed} frames, which a clip "
                "and its memory need; they are left out.",
                stacklevel=3,
            )
        return kept

    def _same(self, what: str, value_of: Callable[[_Entry], Any]) -> Any:
        """What all stretches have in common."""
        first = self._entries[0]
        for entry in self._entries:
            if value_of(entry) != value_of(first):
                raise InputError(
                    f"{first.path} and {entry.path} do not go together: {what} {value_of(first)} and "
                    f"{value_of(entry)}; train with data that was prepared alike."
                )
        return value_of(first)

    def _choose_form(self, mark: str | None) -> bool:
        """Latents? Examples of one source are alike: a single stretch without latents makes all of them pixels."""
        blind = [entry for entry in self._entries if "mp4" not in entry.members]
        foreign = [entry for entry in blind if entry.autoencoder != mark]
        if foreign:
            raise InputError(
                f"{foreign[0].path} has no frames, only latents of the autoencoder {foreign[0].autoencoder}, but "
                f"{'pixels are asked for' if mark is None else f'the model has the autoencoder {mark}'}; "
                "prepare the videos with the model's, or with frames kept."
            )
        without = [entry for entry in self._entries if entry.autoencoder != mark or "latents.npy" not in entry.members]
        if blind and without:
            raise InputError(
                f"{blind[0].path} has only latents and {without[0].path} none of the model's autoencoder; train with "
                "data that was prepared alike."
            )
        if blind and self.window.pixel_conditions:
            raise InputError(
                f"{blind[0].path} has latents but no frames, which noise on pixels needs; turn pixel noise off, or "
                "prepare the videos with frames kept."
            )
        return not without

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """The name of stretch `index` and the shard it lies in."""
        entry = self._entries[index]
        return f"{entry.name} ({entry.path.name})"

    def read(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One example of stretch `index`; see Source. Raises InputError where the shard is damaged or gone."""
        entry, window = self._entries[index], self.window
        memory_frames, length = window.memory_frames, window.clip_frames
        first_clip = bool(rng.random() < window.first_clip_share)
        start = int(rng.integers(0 if first_clip else memory_frames, entry.frames - length + 1))
        chosen = int(rng.integers(entry.frames))  # the portrait, where it is one of the frames
        low = start if first_clip else start - memory_frames

        shown = entry.latents if self.uses_latents else entry.pixels
        frames = shown(low, start + length)
        clip, memory = frames[start - low :], frames[: start - low]
        in_latents = self.uses_latents and not window.pixel_conditions
        if self.uses_latents and window.pixel_conditions and start > low:
            memory = entry.pixels(low, start)
        portrait = entry.portrait(chosen, in_latents)
        if first_clip or not memory_frames:
            memory = portrait[None].repeat(memory_frames, 1, 1, 1)
        features = self._windows(entry, start)
        return {"clip": clip, "memory": memory, "portrait": portrait, "features": features}

    def _windows(self, entry: _Entry, start: int) -> Tensor:
        """Audio windows of the clip from frame `start` on, [F,W,L,E]; the context reaches beyond the stretch."""
        half, first = self.window.audio_window // 2, start + entry.context
        low = max(first - half, 0)
        high = min(first + self.window.clip_frames + half, entry.frames + 2 * entry.context)
        windows = window_features(entry.rows("features.npy", low, high), self.window.audio_window)
        return windows[first - low : first - low + self.window.clip_frames]
