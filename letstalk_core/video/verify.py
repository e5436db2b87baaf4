"""What marks of synthetic video a file has, in plain lines."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError
from ..files import check_file
from .marks import C2PA_BOX, MOST_XMP, SYNTHETIC, TAG, VOCABULARY, XMP_BOX, boxes, source_type_in
from .picture_folder import xmp_of
from .reader import open_video

_SOURCE = re.compile(re.escape(VOCABULARY) + r"(\w+)")


def verify_marks(path: str | Path) -> tuple[list[str], bool]:
    """(lines for people, whether the file is marked as synthetic video).

    It is marked where its XMP, its comment, or a C2PA manifest that holds names one of the digital source types of
    synthetic media, and no manifest is invalid: that file was changed after it was signed. InputError where the file
    cannot be read as a video, or is cut off and has no mark in what is left of it.
    """
    lines, named, has_manifest, whole = _read(_first_picture(Path(path)))
    valid = True
    if has_manifest:
        from .signing import read_manifest

        line, valid, sources = read_manifest(path)
        lines.append(f"C2PA manifest: {line}")
        named += sources if valid else []
    marked = bool(_synthetic(named))
    if not whole:
        if not marked:
            raise InputError(f"{path} is cut off, and what is left has no mark; copy or download it again.")
        lines.append("The file is cut off: marks at its end are missing.")
    if not marked:
        lines.append("no mark of synthetic video")
    return lines, marked and valid is not False


def _first_picture(path: Path) -> Path:
    """The file to look into: of a folder of pictures the first, and else the path itself."""
    pictures = sorted(path.glob("*.png")) if path.is_dir() else []
    return check_file(pictures[0] if pictures else path, "video")


def synthetic_type(path: str | Path) -> str | None:
    """The digital source type of synthetic media that a video's XMP, tag or comment names, if any does."""
    return next(iter(_synthetic(_read(check_file(path, "video"))[1])), None)


def _synthetic(named: list[str]) -> list[str]:
    """The digital source types of synthetic media in texts that name some by their addresses."""
    return [match[1] for text in named for match in _SOURCE.finditer(text) if match[1] in SYNTHETIC]


def _read(path: Path) -> tuple[list[str], list[str], bool, bool]:
    """(lines for people, texts that may name a digital source type, is there a C2PA manifest?, is the file whole?)"""
    with open_video(path) as container:
        metadata = {key.lower(): value for key, value in container.metadata.items()}
        is_iso = "mp4" in container.format.name
    xmp, has_manifest, whole = _look_into(path) if is_iso else (xmp_of(path), False, True)
    lines, named = [], []
    if xmp is not None:
        found = source_type_in(xmp)
        lines.append(f"XMP: digital source type {_short(found)}" if found else "XMP: without a digital source type")
        named.append(found or "")
    if TAG.lower() in metadata:
        lines.append(f"tag: digital source type {_short(metadata[TAG.lower()])}")
        named.append(metadata[TAG.lower()])
    if metadata.get("comment"):
        lines.append(f"comment: {' '.join(metadata['comment'].split())}")
        named.append(metadata["comment"])
    return lines, named, has_manifest, whole


def _short(source_type: str) -> str:
    return source_type.removeprefix(VOCABULARY)


def _look_into(path: Path) -> tuple[bytes | None, bool, bool]:
    """(XMP, is there a C2PA manifest?, is the file whole?) of an ISO media file."""
    xmp, has_manifest, whole = None, False, True
    with open(path, "rb") as file:
        for kind, size in boxes(file):
            if kind == XMP_BOX and size <= MOST_XMP:
                xmp = file.read(size)
            has_manifest |= kind == C2PA_BOX
            whole = kind != b""
    return xmp, has_manifest, whole
