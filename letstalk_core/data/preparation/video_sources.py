"""Which videos are prepared: files, folders, and local downloads that HDTF's and CelebV-HQ's annotations describe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...files import find_files, read_text
from .face_tracks import Box
from .preparation_settings import SILENT

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".ogv", ".3gp"),
)
HDTF_TIMES = "_annotion_time.txt"  # as HDTF spells it
CELEBV_HQ = "celebvhq_info.json"


@dataclass(frozen=True)
class VideoSource:
    """A video, or the part of one that an annotation names.

    name: for people, relative to what was given. identity: who is seen, as a data set says it; None for the video
    itself. start, end: seconds of the file's clock; None for its end. box: where the face is (face_tracks.Box).
    """

    path: str
    name: str
    identity: str | None = None
    start: float = 0.0
    end: float | None = None
    box: Box | None = None


def find_videos(folder: str | Path) -> list[Path]:
    """The videos in a folder and below, by their names; InputError where there is no folder or no video."""
    return find_files(folder, SUFFIXES, "videos")


def find_sources(given: Sequence[str | Path], output: str | Path | None = None) -> tuple[list[VideoSource], list[str]]:
    """The videos in files and folders, by their names, and what annotations name but no file is there for.

    A folder with HDTF's or CelebV-HQ's annotations is read as that data set; others give every video in them.
    output: of the preparation; its results are no sources.
    InputError where something given is not there, or there is no video in anything.
    """
    sources, missing = [], []
    for each in given:
        place = Path(each).absolute()
        if place.is_file():
            sources.append(VideoSource(str(place), _printable(place.name)))
        elif place.is_dir():
            found, lacking = _in_folder(place, _results(place, output))
            sources += found
            missing += lacking
        else:
            raise InputError(f"There is no file or folder {each}; check its path.")
    if not sources:
        raise InputError(
            f"There are no videos in {', '.join(map(str, given))}; name files, or folders with files that end in "
            f"{', '.join(SUFFIXES[:6])} or the like."
        )
    return sorted(set(sources), key=lambda source: (source.name, source.start, source.path)), sorted(missing)


def _printable(name: str) -> str:
    """A file's name as text: bytes of it that are no UTF-8 are replaced, since no manifest could hold them."""
    return os.fsencode(name).decode(errors="replace")


def _results(folder: Path, output: str | Path | None) -> Path | None:
    """Where in a folder of sources the results lie: in the output below it, or, where it is the output, in silent/."""
    if output is None:
        return None
    output = Path(output).resolve()
    return output if folder.resolve() in output.parents else output / SILENT


def _in_folder(folder: Path, results: Path | None) -> tuple[list[VideoSource], list[str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    root = folder.resolve()
    files = [path for path in files if results not in (root / path.relative_to(folder)).parents]
    videos = [path for path in files if path.suffix.lower() in SUFFIXES]
    times = [path for path in files if path.name.endswith(HDTF_TIMES)]
    celebv = [path for path in files if path.name == CELEBV_HQ]
    if not times and not celebv:
        return [VideoSource(str(path), _printable(path.relative_to(folder).as_posix())) for path in videos], []
    by_stem: dict[str, Path] = {path.stem: path for path in reversed(videos)}
    found: list[VideoSource] = []
    missing: list[str] = []
    for annotation in times:
        _add(_hdtf(annotation), by_stem, found, missing)
    for annotation in celebv:
        _add(_celebv_hq(annotation), by_stem, found, missing)
    return found, missing


def _add(
    wanted: Iterator[tuple[VideoSource, ...]], videos: dict[str, Path], found: list[VideoSource], missing: list[str]
) -> None:
    """wanted: for each part of a data set the forms in which it may lie on the disk, by the stem of its file."""
    for forms in wanted:
        form = next((form for form in forms if form.path in videos), None)
        if form is None:
            missing.append(forms[0].name)
            continue
        found.append(VideoSource(**{**vars(form), "path": str(videos[form.path])}))


def _hdtf(path: Path) -> Iterator[tuple[VideoSource, ...]]:
    """The lines of RD_, WDA_ or WRA_annotion_time.txt: NAME.mp4 MM:SS-MM:SS MM:SS-MM:SS..."""
    kind = path.name.removesuffix(HDTF_TIMES)
    for number, line in enumerate(read_text(path, "annotation").splitlines(), 1):
        if not (words := line.split()):
            continue
        name = words[0].removesuffix(".mp4")
        for part, span in enumerate(words[1:]):
            try:
                start, end = (_seconds(moment) for moment in span.split("-"))
            except ValueError:
                raise InputError(
                    f"{path}, line {number}: {span!r} is not a time as in 00:05-03:20; take HDTF's own file."
                ) from None
            clip = f"{kind}_{name}_{part:03d}"  # what its users call a cut part; its own page says NAME_0
            yield (
                VideoSource(clip, clip, f"hdtf/{kind}_{name}"),
                VideoSource(f"{name}_{part}", clip, f"hdtf/{kind}_{name}"),
                VideoSource(f"{kind}_{name}", clip, f"hdtf/{kind}_{name}", start, end),
                VideoSource(name, clip, f"hdtf/{kind}_{name}", start, end),
            )


def _seconds(moment: str) -> float:
    """HH:MM:SS or MM:SS."""
    seconds = 0.0
    for part in moment.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _celebv_hq(path: Path) -> Iterator[tuple[VideoSource, ...]]:
    """The clips of celebvhq_info.json; they lie there cut, as CLIP.mp4, or in whole videos, as YOUTUBE_ID.mp4."""
    try:
        for clip, about in json.loads(read_text(path, "annotation"))["clips"].items():
            video, time, box = str(about["ytb_id"]), about["duration"], about["bbox"]
            box = tuple(float(box[side]) for side in ("top", "bottom", "left", "right"))
            start, end = float(time["start_sec"]), float(time["end_sec"])
            yield (
                VideoSource(clip, clip, f"celebv-hq/{video}"),
                VideoSource(video, clip, f"celebv-hq/{video}", start, end, box),
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not CelebV-HQ's annotation ({error!r}); take its own file.") from error
