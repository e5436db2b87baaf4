"""The whole preparation: videos -> shards, a manifest and a report in one folder.

It can be stopped at any time; the same call goes on where it was, by the content of the files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
from tqdm import tqdm

from ...audio.load_encoder import load_audio_encoder
from ...errors import InputError
from ...files import write_durably
from ...picture.autoencoder import load_autoencoder
from ..footage.prepare import digest_of
from .clip_drafts import DRAFT
from .ear_opening import load_ear
from .engines import ENGINES
from .manifest import MANIFEST, write_manifest
from .preparation_report import write_report
from .preparation_settings import SILENT, WORK, PreparationSettings
from .video_clips import Task, rejected
from .video_sources import find_sources

SETTINGS = "settings.json"
COPY, MISSING = "a copy", "missing"  # in the place of filters


def prepare(
    given: Sequence[str | Path], output: str | Path, settings: PreparationSettings, engine: str = "local",
    workers: int | None = None,
) -> str:  # fmt: skip
    """Prepare videos, files or folders, into `output`: train/ and eval/ with shards, silent/ with videos, the manifest
    and the report. Returns what came of it, as text.

    engine: one of ENGINES. workers: videos at once; None for one a processor (or what Ray has). Raises InputError where
    nothing can be read or written, and where `output` holds a preparation with other settings or of another version.
    """
    if engine not in ENGINES:
        raise InputError(f"The engine is {engine!r}; choose {' or '.join(ENGINES)}.")
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers were asked for; choose at least 1.")
    settings = settings.with_whole_paths()
    digests = _digests(settings)  # a wrong path is said now, and not of every video
    if settings.lips:
        load_ear()
    output = Path(output).absolute()
    sources, missing = find_sources(given, output)
    with _opened(output, settings, digests):
        tasks = [Task(source, settings, str(output)) for source in sources]
        found: dict[int, list[dict]] = {}
        for number, rows in tqdm(ENGINES[engine](tasks, workers), "videos", len(tasks), unit="video", disable=None):
            found[number] = rows
        rows = _named(sources, found) + [_absent(name) for name in missing]
        write_manifest(output / MANIFEST, rows)
        return write_report(output, rows, settings)


def _digests(settings: PreparationSettings) -> dict[str, str]:
    """What the weights are at the paths of the settings. InputError where there are none, or the size does not fit."""
    found = {"features_digest": digest_of(load_audio_encoder(settings.features)), "autoencoder_digest": ""}
    if not settings.autoencoder:
        return found
    autoencoder = load_autoencoder(settings.autoencoder)
    if settings.size % autoencoder.downscale:
        raise InputError(
            f"The size is {settings.size}, but the autoencoder needs a multiple of {autoencoder.downscale}."
        )
    return found | {"autoencoder_digest": autoencoder.encoder_digest}


def _named(sources, found: dict[int, list[dict]]) -> list[dict]:
    """The rows with their videos' names. What has the same content as a video before it is a copy, and counts once."""
    rows: list[dict] = []
    names: dict[str, str] = {}  # of those that are not copies, by key
    for number, source in enumerate(sources):
        own = found[number]
        key = own[0]["key"]
        if key in names:
            own = [rejected(COPY, f"It has the same content as {names[key]}.") | {"key": key}]
        elif key:
            names[key] = source.name
        rows += [row | {"video": source.name} for row in own]
    return rows


def _absent(name: str) -> dict:
    return rejected(MISSING, "The annotation names it, but there is no such file.") | {"video": name}


@contextlib.contextmanager
def _opened(output: Path, settings: PreparationSettings, digests: dict[str, str]) -> Iterator[None]:
    """The output folder of these settings, for one process at a time."""
    try:
        (output / WORK).mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(output / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"Another process is preparing videos in {output}; wait for it, or stop it.") from None
    except OSError as error:
        raise InputError(f"{output} cannot be made ({error.strerror}); choose another output folder.") from error
    with contextlib.ExitStack() as after:
        after.callback(lock.release)
        _check_settings(output / SETTINGS, json.loads(settings.to_json()) | digests)
        _remove_unfinished(output)  # of a call that was killed
        after.callback(_remove_unfinished, output)  # of processes that ended
        yield


def _remove_unfinished(output: Path) -> None:
    """Remove drafts, and what files were before they were whole (create_part): they can be large."""
    patterns = f"{WORK}/*{DRAFT}", *(f"{folder}/.*.????????.part" for folder in (WORK, SILENT, "train", "eval"))
    for path in itertools.chain(*map(output.glob, patterns)):
        with contextlib.suppress(OSError):
            path.unlink()


def _check_settings(path: Path, wanted: dict) -> None:
    try:
        there = json.loads(path.read_text())
    except FileNotFoundError:
        write_durably(path, json.dumps(wanted, indent=2).encode())
        return
    except (OSError, ValueError):
        raise InputError(f"{path} is damaged; prepare into another folder.") from None
    differing = [name for name in wanted if not isinstance(there, dict) or there.get(name) != wanted[name]]
    if differing:
        raise InputError(
            f"{path.parent} was prepared with another {', '.join(differing)}; give the same settings, or another "
            "folder."
        )
