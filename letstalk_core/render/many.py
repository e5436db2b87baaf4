"""Many videos with one model, some of them at once."""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, about
from ..pipeline import LetsTalkPipeline
from .render import Observer, write_video

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
COLUMNS = ("portrait", "audio", "output")


@dataclass(frozen=True)
class Pair:
    """Who speaks what, and the video to make of it."""

    portrait: Path
    audio: Path
    output: Path


def find_pairs(batch: Path, output: Path, suffix: str = ".mp4") -> list[Pair]:
    """The videos that a batch asks for, to be made in the folder `output`.

    batch: a folder with a picture and a recording of the same name for each, or a CSV file with the columns portrait,
    audio and, if wanted, output; paths are relative to the CSV, and `output` to the other folder. suffix: of
    videos that are not named. InputError where there are none, one lacks a part, or two are to have the same name.
    """
    if not batch.exists():
        raise InputError(f"There is no {batch}; give a folder of pictures and recordings, or a CSV file.")
    pairs = _pairs_in(batch, output, suffix) if batch.is_dir() else _pairs_of(batch, output, suffix)
    if not pairs:
        raise InputError(f"{batch} has no picture with a recording of the same name; there is nothing to make.")
    outputs = [os.path.normcase(pair.output) for pair in pairs]
    for pair, name in zip(pairs, outputs, strict=True):
        if outputs.count(name) > 1:
            raise InputError(f"Two videos of {batch} would be {pair.output}; give them different names.")
    return pairs


def _pairs_in(folder: Path, output: Path, suffix: str) -> list[Pair]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures = {path.stem: path for path in files if path.suffix.lower() in PICTURES}
    sounds = {path.stem: path for path in files if path.suffix.lower() not in PICTURES}
    names = [name for name in pictures if name in sounds]
    for name in names:
        if sum(path.stem == name for path in files) > 2:
            raise InputError(f"{folder} has more than one picture and one recording called {name}; keep one of each.")
    return [Pair(pictures[name], sounds[name], output / f"{name}{suffix}") for name in names]


def _pairs_of(file: Path, output: Path, suffix: str) -> list[Pair]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as CSV ({error}); save it as CSV in UTF-8.") from error
    pairs = []
    for number, row in enumerate(rows, 2):
        if not row.get("portrait") or not row.get("audio") or set(row) - set(COLUMNS):
            raise InputError(f"Line {number} of {file} does not fit; its columns are {', '.join(COLUMNS)}.")
        portrait, audio = (file.parent / row[name] for name in ("portrait", "audio"))
        pairs.append(Pair(portrait, audio, output / (row.get("output") or f"{portrait.stem}_{audio.stem}{suffix}")))
    return pairs


class _Stoppable(Observer):
    """Ends a rendering once the event is set."""

    def __init__(self, stopped: threading.Event):
        self.stopped = stopped

    def check(self) -> None:
        if self.stopped.is_set():
            raise InterruptedError("stopped")

    def step(self, *_) -> None:
        self.check()


def write_videos(
    pipeline: LetsTalkPipeline, pairs: Sequence[Pair], together: int = 1, **options
) -> Iterator[tuple[Pair, int | Exception]]:
    """Make videos, `together` at a time, whose clips are then denoised as one batch; yield each pair as it is finished,
    with its number of frames or with what went wrong, which does not stop the others.

    options: of render.write_video, for all. Ended early, each of them goes on where it was the next time. What warnings
    are about (errors.ABOUT) is the video's path. InputError where `together` is less than 1.
    """
    if together < 1:
        raise InputError(f"The number of videos at once is {together}; it must be at least 1.")
    stopped = threading.Event()

    def make(pair: Pair) -> int:
        with about(str(pair.output)):
            files = pair.portrait, pair.audio, pair.output
            return write_video(pipeline, *files, observer=_Stoppable(stopped), **options)

    with pipeline.together(together), ThreadPoolExecutor(together, "video") as pool:
        videos = {pool.submit(make, pair): pair for pair in pairs}
        try:
            for video in as_completed(list(videos)):
                pair, error = videos.pop(video), video.exception()
                yield pair, video.result() if error is None else error.with_traceback(None)  # it would hold the picture
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
