"""The work folder of a video in the making: finished segments, each with the memory to go on from.

A segment counts when its video and, after it, its state lie in the folder under their names: both are on the disk by
then. So whatever ends a process, only the segment that was being made is lost. What is in a folder:

    job.json                    what the folder is, for people and for `leftovers`
    lock, owner.json            who is at work in it
    00000.mp4                   segment 0: pictures with their sound, to be looked at by anyone
    00000.safetensors           its state: memory bank, position, fingerprint, and the digest of the .mp4
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .errors import InputError
from .files import move_into_place, short_name, write_durably
from .memory_bank import MemoryBank

FORMAT = "letstalk-work-1"


def work_folder_of(output: Path, fingerprint: str) -> Path:
    """Beside the output; another one for every fingerprint, so that nothing mixes."""
    return output.with_name(f"{short_name(output.name)}.work-{fingerprint[:12]}")


class WorkFolder:
    """The segments of one video, locked for one process at a time::

        with WorkFolder(path, fingerprint, about) as work:
            while work.frames < wanted:
                ...  # write work.next_segment
                work.add(memory, last)

    Args:
        path: made if missing (its parent has to be there).
        fingerprint: of everything that decides the video; segments of another fingerprint do not count.
        about: what job.json says beside it: output, frames, fps.

    InputError where it cannot be made, or another process works in it (the sentence says which). Left with an
    exception, it keeps what is finished and vanishes if that is nothing.
    """

    def __init__(self, path: Path, fingerprint: str, about: dict):
        self.path, self.fingerprint, self.about = path, fingerprint, about
        self.segments: list[Path] = []
        self.frames = 0  # in the segments
        self.memory: MemoryBank | None = None  # to go on from
        self._lock = filelock.FileLock(path / "lock", timeout=0)

    def __enter__(self) -> WorkFolder:
        try:
            self.path.mkdir(exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout:
            raise InputError(f"{self.path} is in use by {_owner(self.path)}; wait for it, or stop it.") from None
        except OSError as error:
            raise InputError(
                f"The work folder {self.path} cannot be made ({error.strerror}); choose another place for the output."
            ) from error
        try:
            self._write("owner.json", {
                "process": os.getpid(),
                "machine": socket.gethostname(),
                "since": datetime.datetime.now().isoformat(" ", "seconds"),
            })  # fmt: skip
            self._write("job.json", {"format": FORMAT, "fingerprint": self.fingerprint, **self.about})
            for dead in self.path.glob(".*.part"):  # of a process that was killed
                dead.unlink(missing_ok=True)
            self._read_segments()
        except BaseException:
            self._leave()
            raise
        return self

    def _write(self, name: str, content: dict) -> None:
        with self.sentences():
            write_durably(self.path / name, json.dumps(content, indent=2).encode())

    def _read_segments(self) -> None:
        while (found := self._state(self.next_segment)) is not None:
            self.segments.append(self.next_segment)
            self.frames, self.memory = found
        for path in self._files("[0-9]*"):
            if path.with_suffix(".mp4") not in self.segments:  # beyond a gap, damaged, or without its state
                path.unlink()

    def _state(self, video: Path) -> tuple[int, MemoryBank] | None:
        """(last frame, memory) of a segment that is whole and goes on where the one before it ends."""
        try:
            with safe_open(video.with_suffix(".safetensors"), framework="pt") as file:
                told = file.metadata()
                memory = MemoryBank(file.get_tensor("memory"), int(told["memory_frames"]))
            good = (
                told["fingerprint"] == self.fingerprint
                and int(told["first"]) == self.frames
                and told["sha256"] == _digest(video)
            )
            return (int(told["last"]), memory) if good else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    @property
    def next_segment(self) -> Path:
        """Where the next segment's video belongs."""
        return self.path / f"{len(self.segments):05d}.mp4"

    def add(self, memory: MemoryBank, last: int) -> None:
        """The next segment's video is written, up to frame `last`: from now on it counts."""
        video = self.next_segment
        told = {
            "fingerprint": self.fingerprint,
            "first": str(self.frames),
            "last": str(last),
            "memory_frames": str(memory.frames),
        }
        with self.sentences():
            state = save({"memory": memory.latents.contiguous()}, {**told, "sha256": _digest(video)})
            write_durably(video.with_suffix(".safetensors"), state)
        self.segments.append(video)
        self.frames, self.memory = last, memory

    @contextlib.contextmanager
    def sentences(self) -> Iterator[None]:
        """Around everything that is written here: says so if somebody has removed the folder or a part of it."""
        try:
            yield
        except (InputError, OSError) as error:
            if not all(path.exists() for path in (self.path / "job.json", *self.segments)):
                raise InputError(
                    f"The work folder {self.path} was removed while the video was made; start it again."
                ) from error
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); check the free space and permissions there."
            ) from error

    def clear(self) -> None:
        """Forget all segments."""
        for path in self._files("[0-9]*"):
            path.unlink(missing_ok=True)
        self.segments, self.frames, self.memory = [], 0, None

    def finish(self, joined: Path, output: Path) -> None:
        """The whole video takes its place."""
        with self.sentences():
            move_into_place(joined, output)

    def remove(self) -> None:
        """Everything that belongs here; what somebody else has put into the folder stays."""
        remove_work(self.path)

    def __exit__(self, kind, error, trace) -> None:
        self._leave()
        if kind is not None and not self.segments:
            remove_work(self.path)

    def _leave(self) -> None:
        (self.path / "owner.json").unlink(missing_ok=True)
        self._lock.release()

    def _files(self, pattern: str) -> list[Path]:
        return [path for path in self.path.glob(pattern) if path.suffix in (".mp4", ".safetensors")]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _owner(folder: Path) -> str:
    try:
        told = json.loads((folder / "owner.json").read_text())
        return f"process {told['process']} on {told['machine']} since {told['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


# Leftovers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """A work folder that was found: of which video, how much of it is finished, in seconds, and its size in bytes."""

    path: Path
    output: str
    done: float
    total: float
    size: int
    owner: str | None  # who is at work in it

    def __str__(self) -> str:
        state = f"in use by {self.owner}" if self.owner else "not in use"
        return f"{self.path}: {self.done:.1f} of {self.total:.1f} s of {self.output}, {megabytes(self.size)}, {state}"


def megabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def find_leftovers(folder: Path) -> list[Leftover]:
    """The work folders in a folder and all below it."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the one that the videos were made in.")
    found = []
    for file in sorted(folder.rglob("job.json")):
        about = _about(file)
        if about is not None:
            found.append(_leftover(file.parent, about))
    return found


def _about(file: Path) -> dict | None:
    """What a job.json says, if it is one of ours."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return about if about["format"] == FORMAT and {"output", "frames", "fps"} <= about.keys() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _leftover(folder: Path, about: dict) -> Leftover:
    done = 0
    for state in sorted(folder.glob("[0-9]*.safetensors")):
        with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError), safe_open(state, "pt") as file:
            done = max(done, int(file.metadata()["last"]))
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    fps = about["fps"]
    return Leftover(folder, about["output"], done / fps, about["frames"] / fps, size, _at_work(folder))


def _at_work(folder: Path) -> str | None:
    lock = filelock.FileLock(folder / "lock", timeout=0)
    try:
        with lock:
            return None
    except filelock.Timeout:
        return _owner(folder)


def remove_work(folder: Path) -> None:
    """Delete a work folder; anything in it that is not ours stays, and so does the folder then."""
    if _about(folder / "job.json") is None:
        return
    for pattern in (
        "[0-9]*.mp4",
        "[0-9]*.safetensors",
        ".*.part",
        "joined.*",
        "trial.mp4",
        "owner.json",
        "lock",
        "job.json",
    ):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
