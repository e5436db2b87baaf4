"""Files that are there whole or not at all, and files that have to be there."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError

ASSETS = Path(__file__).resolve().parent.parent / "assets"  # the example's portrait, scene and recording


def check_file(path: str | Path, kind: str) -> Path:
    """The path, if it is a file that is there, readable and not empty; else InputError. kind: "audio", "picture"..."""
    path = _nameable(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give the path of one {kind} file.")
    if not os.path.exists(path):  # unlike Path.exists, False for impossible names too
        raise InputError(f"There is no file {path}; check the path of the {kind} file.")
    if not os.path.isfile(path):  # opening a pipe waits for whoever writes to it
        raise InputError(f"{path} is a pipe or a device, and inputs are read several times; give the path of a file.")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its permissions.") from error
    if empty:
        raise InputError(f"{path} is empty (0 bytes); choose another {kind} file.")
    return path


def read_text(path: str | Path, kind: str) -> str:
    """A small text file; InputError as for check_file, and where it is no text."""
    path = check_file(path, kind)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8; save it as such.") from error


def find_files(folder: str | Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """The files with these suffixes in a folder and below, by their names; hidden ones are passed over.

    what: "pictures", "videos"... InputError where there is no such folder, or no such file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds the {what} (a training's data_path).")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    found = [path for path in files if path.suffix.lower() in suffixes]
    if not found:
        named = f"{', '.join(suffixes[:6])}{' or the like' if len(suffixes) > 6 else ''}"
        raise InputError(
            f"There are no {what} in {folder} ({len(files)} other files); put files into it that end in {named}."
        )
    return found


def _nameable(path: str | Path) -> Path:
    """The path, if this locale can say its name; else InputError."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = os.fspath(path).encode(errors="replace").decode()
        raise InputError(
            f"The name {shown} has letters that this locale does not know; set the environment variable PYTHONUTF8=1, "
            "or LC_ALL=C.UTF-8, and give it again."
        ) from None
    return Path(path)


def followed(path: Path) -> Path:
    """What a symbolic link points to, any other path as it is: an output that is a link stays one."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def create_part(path: Path) -> Path:
    """An empty hidden file beside the target, which shows that the folder can be written; else InputError."""
    path = followed(_nameable(path))
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give the name of a file in it.")
    try:
        there = stat.S_ISDIR(os.stat(path.parent).st_mode)
    except PermissionError:
        raise InputError(
            f"The folder {path.parent} may not be looked into; choose another, or change its permissions."
        ) from None
    except OSError:
        there = False
    if not there:
        raise InputError(
            f"The folder {path.parent} does not exist; create it, or choose another place for {path.name}."
        )
    part = path.with_name(f".{short_name(path.name)}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise InputError(
            f"Nothing can be written in {path.parent} ({error.strerror}); choose another folder."
        ) from error
    return part


def short_name(name: str) -> str:
    """At most 100 bytes of a file's name, so that something can be added to it: file systems allow 255."""
    return os.fsencode(name)[:100].decode(errors="ignore")


def write_durably(path: Path, content: bytes) -> None:
    """A small file, whole and on the disk when this returns."""
    part = create_part(path)
    try:
        part.write_bytes(content)
        move_into_place(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception) -> InputError:
    """The sentence for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path} cannot be written ({reason}); check the free space and permissions of its folder.")


def move_into_place(part: Path, path: Path) -> None:
    """Rename a finished file, also onto another file system; it is on the disk under its new name when this returns."""
    path = followed(path)
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    try:
        os.replace(part, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = create_part(path)
        try:
            shutil.copyfile(part, aside)
            move_into_place(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        part.unlink()
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """The names in a folder are on the disk when this returns, where the system and the file system can do that."""
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            raise
    finally:
        os.close(folder)
