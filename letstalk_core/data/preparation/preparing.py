"""The whole preparation: videos -> shards, a manifest and a report in one folder.

It can be stopped at any time; the same call goes on where it was, by the content of the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
from tqdm import tqdm

from ...audio.encoder import AudioEncoder
from ...audio.load_encoder import load_audio_encoder
from ...autoencoders import find_autoencoder
from ...errors import InputError
from ...files import check_file, write_durably
from ...weights import add_to_digest
from .clip_drafts import DRAFT
from .ear_opening import load_ear
from .engines import ENGINES
from .manifest import MANIFEST, read_manifest, write_manifest
from .preparation_report import write_report
from .preparation_settings import SILENT, WORK, PreparationSettings
from .syncnet import load_syncnet
from .video_clips import Task, content_digest, rejected
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


def kept_shards(output: str | Path) -> list[Path]:
    """The shards of what the last preparation into `output` kept, train and eval. InputError where it kept nothing that
    has sound."""
    rows = read_manifest(Path(output) / MANIFEST)
    shards = sorted({Path(output) / row["stored"] for row in rows if row["kept"] and row["sound"]})
    if not shards:
        example = next((f"{row['video']}: {row['reasons'][0].rstrip('.')}" for row in rows if row["reasons"]), "silent")
        raise InputError(
            f"None of {len({row['video'] for row in rows})} videos can be used ({example}); {output}/report.html says "
            "why of each."
        )
    return shards


def _digests(settings: PreparationSettings) -> dict[str, str]:
    """What the weights are at the paths of the settings. InputError where there are none, or the size does not fit."""
    found = {"features_digest": _digest_of(load_audio_encoder(settings.features))}
    found |= {"autoencoder_digest": "", "syncnet_digest": ""}
    if settings.syncnet:
        load_syncnet(check_file(settings.syncnet, "SyncNet"))
        found["syncnet_digest"] = content_digest(Path(settings.syncnet))
    if not settings.autoencoder:
        return found
    autoencoder = find_autoencoder(settings.autoencoder)
    if settings.size % autoencoder.downscale:
        raise InputError(
            f"The size is {settings.size}, but the autoencoder needs a multiple of {autoencoder.downscale}."
        )
    return found | {"autoencoder_digest": autoencoder.encoder_digest}


def _digest_of(encoder: AudioEncoder) -> str:
    """Of everything that decides an encoder's features."""
    digest = hashlib.sha256(f"{encoder.name} {encoder.settings}".encode())
    add_to_digest(digest, dict(sorted(encoder.state_dict().items())))
    return digest.hexdigest()


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
