"""The work folder of a video in the making: finished segments, each with the memory to go on from.

A segment counts when its video and, after it, its state lie in the folder under their names: both are on the disk by
then. So whatever ends a process, only the segment that was being made is lost. What is in a folder:

    job.json                    what the folder is, for people and for `leftovers`
    lock, owner.json            who is at work in it
    00000.mp4                   segment 0: pictures with their sound, to be looked at by anyone; or .webm, .mov
    00000.safetensors           its state: memory, latents of the portraits, position, fingerprint, digest of the video
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import filelock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from ..files import short_name, sync_folder, write_durably
from ..video.memory import MemoryBank
from ..weights import write_weights

FORMAT = "letstalk-work-1"
JOINED = "joined"  # the whole video, with its suffix, before it is moved to its place
_OURS = re.compile(r"\d{5,}\.(mp4|webm|mov|safetensors)|(joined|trial)\.\w+|owner\.json|job\.json")
_DEAD = re.compile(r"\.(\d{5,}|joined|trial|owner|job)\.\w+\.[0-9a-f]{8}\.part")  # left by a process that was killed


def work_folder_of(output: Path, fingerprint: str) -> Path:
    """The work folder of a video: beside its output and named after its fingerprint, so that no two videos mix."""
    return output.with_name(f"{short_name(output.name)}.work-{fingerprint[:12]}")


class WorkFolder:
    """The segments of one video, locked for one process at a time::

        with WorkFolder(path, fingerprint, about) as work:
            while work.frames < wanted:
                ...  # write work.next_segment
                work.add(memory, portraits, last)

    Args:
        path: made if missing (its parent has to be there).
        fingerprint: the digest of everything that decides the video; segments of another one do not count.
        about: what job.json says beside the fingerprint: output, frames, fps.
        suffix: of the segments' videos.

    InputError where it cannot be made, or another process works in it (the sentence says which). Left with an
    exception, it keeps what is finished and vanishes if that is nothing; if somebody has removed it meanwhile, the
    exception becomes an InputError that says so. `finished` makes it vanish in any case.
    """

    def __init__(self, path: Path, fingerprint: str, about: dict, suffix: str = ".mp4"):
        self.path, self.fingerprint, self.about, self.suffix = path, fingerprint, about, suffix
        self.segments: list[Path] = []
        self.frames = 0  # how many are in the segments
        self.memory: MemoryBank | None = None  # the one to go on from
        self.portraits: Tensor | None = None  # latents [n,C,h,w] that the segments were made with
        self.finished = False
        self._lock = filelock.FileLock(path / "lock", timeout=0)

    def __enter__(self) -> WorkFolder:
        try:
            self.path.mkdir(exist_ok=True)
            sync_folder(self.path.parent)
            self._lock.acquire()
        except filelock.Timeout:
            raise InputError(f"{self.path} is in use by {_owner(self.path)}; wait for it, or stop it.") from None
        except OSError as error:
            raise InputError(
                f"The work folder {self.path} cannot be made ({error.strerror}); choose another place for the output."
            ) from error
        except KeyboardInterrupt:
            if not any(path.name != "lock" for path in self.path.glob("*")):  # nobody's work is in it yet
                _delete(self.path)
            raise
        try:
            shutil.rmtree(self.path / JOINED, ignore_errors=True)  # a folder of pictures
            for path in self.path.iterdir():
                if _DEAD.fullmatch(path.name) or path.stem in (JOINED, "trial") and not path.is_dir():
                    path.unlink(missing_ok=True)
            self._write("job.json", {"format": FORMAT, "fingerprint": self.fingerprint, **self.about})
            since = datetime.datetime.now().isoformat(" ", "seconds")
            self._write("owner.json", {"process": os.getpid(), "machine": socket.gethostname(), "since": since})
            self._find_segments()
        except BaseException:
            if not any(self.path.glob("*.safetensors")):
                _delete(self.path)
            self._lock.release()
            raise
        return self

    def _write(self, name: str, content: dict) -> None:
        write_durably(self.path / name, json.dumps(content, indent=2).encode())

    def _find_segments(self) -> None:
        """Count the segments that follow the known ones: after a gap is filled, those behind it count again."""
        while (found := self._state(self.next_segment)) is not None:
            self.segments.append(self.next_segment)
            self.frames, self.memory, self.portraits = found

    def _state(self, video: Path) -> tuple[int, MemoryBank, Tensor] | None:
        """(last frame, memory, portraits) of a segment that is whole and goes on where the one before it ends."""
        try:
            with safe_open(video.with_suffix(".safetensors"), framework="pt") as file:
                told = file.metadata()
                memory = MemoryBank(file.get_tensor("memory").clone(), int(told["memory_frames"]))
                portraits = file.get_tensor("portraits").clone()  # nothing stays mapped to a file
            good = (
                told["fingerprint"] == self.fingerprint
                and int(told["first"]) == self.frames
                and told["sha256"] == _digest(video)
            )
            return (int(told["last"]), memory, portraits) if good else None
        except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        except OSError as error:  # it may be whole: nothing is made anew over it
            raise InputError(f"{error.filename or video} cannot be read ({error.strerror}); try again.") from error

    @property
    def next_segment(self) -> Path:
        """Where the next segment's video belongs."""
        return self.path / f"{len(self.segments):05d}{self.suffix}"

    def add(self, memory: MemoryBank, portraits: Tensor, last: int) -> None:
        """Count the next segment, whose video is written: it ends before frame `last` and leaves `memory`."""
        video = self.next_segment
        told = {
            "fingerprint": self.fingerprint,
            "first": str(self.frames),
            "last": str(last),
            "memory_frames": str(memory.frames),
            "sha256": _digest(video),
        }
        write_weights(video.with_suffix(".safetensors"), {"memory": memory.latents, "portraits": portraits}, told)
        self.segments.append(video)
        self.frames, self.memory, self.portraits = last, memory, portraits
        self._find_segments()

    def clear(self) -> None:
        """Delete all segments."""
        for path in self.path.iterdir():
            if path.suffix in (self.suffix, ".safetensors") and _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
        self.segments, self.frames, self.memory, self.portraits = [], 0, None, None

    def __exit__(self, kind, error, trace) -> None:
        try:
            lost = [path for path in (self.path / "job.json", *self.segments) if not path.exists()]
            if self.finished or not self.segments or not (self.path / "job.json").exists():
                _delete(self.path)
            else:
                _unlink(self.path / "owner.json")
        finally:
            self._lock.release()
        if lost and isinstance(error, InputError | OSError):
            raise InputError(
                f"The work folder {self.path} was removed while the video was made; start it again."
            ) from error


def _delete(folder: Path) -> None:
    """Delete the files of a work folder whose lock is held; what others have put there stays, and then the folder.

    Nothing in here can fail: a video that is finished is not lost for a file that can't be deleted.
    """
    shutil.rmtree(folder / JOINED, ignore_errors=True)
    with contextlib.suppress(OSError):
        ours = [path for path in folder.iterdir() if _OURS.fullmatch(path.name) or _DEAD.fullmatch(path.name)]
        for path in sorted(ours, key=lambda path: path.name == "job.json"):  # last: it says what the folder is
            _unlink(path)
    _unlink(folder / "lock")  # Windows does so when the lock is released
    with contextlib.suppress(OSError):
        folder.rmdir()


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _owner(folder: Path) -> str:
    """Who works in a folder, for a sentence."""
    try:
        told = json.loads((folder / "owner.json").read_text(encoding="utf-8"))
        return f"process {told['process']} on {told['machine']} since {told['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


# Leftovers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """A work folder that was found.

    output: the name of its video; done, total: seconds of it that are finished, and all; size: bytes on the disk.
    """

    path: Path
    output: str
    done: float
    total: float
    size: int

    def __str__(self) -> str:
        return f"{self.path}: {self.done:.1f} of {self.total:.1f} s of {self.output}, {megabytes(self.size)}"

    def owner(self, remove: bool = False) -> str | None:
        """Who is at work in it, or None: then it is removed if asked for. OSError where that cannot be told."""
        lock = filelock.FileLock(self.path / "lock", timeout=0)
        try:
            with lock:
                if remove:
                    _delete(self.path)
            return None
        except filelock.Timeout:
            return _owner(self.path)


def megabytes(size: float) -> str:
    """Bytes as text for people: "12.3 MB" or "1.2 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def find_leftovers(folder: Path) -> list[Leftover]:
    """The work folders in a folder and all below it; one that can't be read is passed over.

    InputError where there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the one that the videos were made in.")
    found = (_leftover(file.parent) for file in sorted(folder.rglob("job.json")))
    return [leftover for leftover in found if leftover is not None]


def _leftover(folder: Path) -> Leftover | None:
    """A folder as a Leftover; None where it is no work folder or cannot be read."""
    try:
        about = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            return None
        done = size = 0
        for path in folder.iterdir():
            with contextlib.suppress(OSError, SafetensorError, KeyError):
                size += path.stat().st_size
                if path.suffix == ".safetensors":
                    with safe_open(path, "pt") as file:
                        done = max(done, int(file.metadata()["last"]))
        return Leftover(folder, about["output"], done / about["fps"], about["frames"] / about["fps"], size)
    except (OSError, ValueError, KeyError, TypeError):
        return None
