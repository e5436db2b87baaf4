"""One video: its clips measured, judged, and the kept ones written into a shard. Done once for each content.

With latents that is the first of two stages: it leaves a draft, of which clip_latents.py makes the shard.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...audio.encoder import AudioEncoder, FeatureStream, Samples
from ...audio.load_encoder import load_audio_encoder
from ...audio.recording import Recording
from ...errors import InputError
from ...files import cannot_write, check_file, write_durably
from ..footage.shard_writer import Stretch, encode_frames, write_shard
from ..footage.stretches import CONTEXT, features_around
from .clip_drafts import DRAFT, draft_members, draft_of
from .clip_filters import FILTERS, UNREADABLE, judge
from .clip_steps import (
    Clip,
    Probe,
    crop_clip,
    cut_clips,
    head_of,
    measure_faces,
    measure_lips,
    measure_pictures,
    measure_sound,
    measure_sync,
    numbered_pictures,
    probe_video,
    thumbnail,
)
from .ear_opening import load_ear
from .preparation_settings import SILENT, WORK, PreparationSettings, Thresholds
from .syncnet import SyncNet, load_syncnet
from .video_sources import VideoSource

THUMBNAIL = 112  # pixels
MEASURES = tuple(dict.fromkeys(each.measure for each in FILTERS))


class Unusable(Exception):
    """The video gives no clips; the message says why."""


class NoVideosFault(Exception):
    """Nothing can be written, or a GPU fails; the message says why. All ends."""


class Encoded(NamedTuple):
    """A stretch as a shard holds it, made before write_shard asks for it: what fails in making it is the video's."""

    files: dict

    def members(self) -> dict:
        return self.files


@dataclass(frozen=True)
class Task:
    """What a worker is told: one video, how, and where to."""

    source: VideoSource
    settings: PreparationSettings
    output: str

    @classmethod
    def of(cls, given: dict) -> Task:
        """Of dataclasses.asdict, also through JSON."""
        source, settings = dict(given["source"]), dict(given["settings"])
        source["box"] = source["box"] and tuple(source["box"])
        settings["thresholds"] = Thresholds(**settings["thresholds"])
        return cls(VideoSource(**source), PreparationSettings(**settings), given["output"])


def prepare_video(task: Task) -> list[dict]:
    """The rows of a video's clips, kept and rejected; prepared now unless that is done. A video that cannot be read is
    one rejected row. Raises InputError only where nothing can be written.

    Where latents are asked for, the kept clips are `stored` in a draft, and the video is not done before add_latents.
    """
    output = Path(task.output)
    try:
        content = content_digest(Path(task.source.path))
    except (InputError, OSError) as error:
        return [rejected(UNREADABLE, str(error))]  # not for ever: permissions may change
    key = clip_key(content, task.source)
    done = read_rows(output, key)
    if done is not None:
        return done
    identity = task.source.identity or f"video/{content[:12]}"
    split = task.settings.split_of(identity)
    # A draft's name is new each time: two processes may have copies of a video at once, and each removes its own.
    draft = f"{WORK}/{key}-{secrets.token_hex(4)}{DRAFT}"
    shard = draft if task.settings.autoencoder else f"{split}/{key}.tar"
    video = _Video(task, key, output / shard)
    video.write()
    for row in video.rows:
        stored = shard if row["kept"] and row["sound"] else row["stored"]
        row |= {"identity": identity, "split": split, "content": content, "key": key, "stored": stored}
    if draft_of(video.rows) is None:
        write_rows(output, video.rows)
    return video.rows


def write_rows(output: Path, rows: list[dict]) -> None:
    """Note that a video is done, with its rows."""
    write_durably(output / WORK / f"{rows[0]['key']}.json", json.dumps(rows).encode())


def read_rows(output: Path, key: str) -> list[dict] | None:
    """What was stored of a video; None where it has to be prepared (again)."""
    try:
        rows = json.loads((output / WORK / f"{key}.json").read_text())
        whole = all((output / row["stored"]).exists() for row in rows if row["kept"])
        return rows if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged, as after a power cut: made anew


@functools.lru_cache(maxsize=4096)
def _digest_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 of a file. InputError where it is missing, empty or may not be read."""
    stat = check_file(path, "video").stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


def clip_key(content: str, source: VideoSource) -> str:
    """The name of everything that is made of a video: of its content and what an annotation says, not of its name."""
    said = f"{content} {source.identity} {source.start} {source.end} {source.box}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def rejected(name: str, reason: str) -> dict:
    """The row of a video that gave no clips."""
    row = {"clip": 0, "start": 0.0, "seconds": 0.0, "kept": False, "sound": False, "filters": [name]}
    row |= {"reasons": [reason], "width": 0, "height": 0, "fps": 0.0, "stored": "", "thumbnail": ""}
    row |= {"identity": "", "split": "", "content": "", "key": ""}
    return row | {name: None for name in MEASURES if name != "seconds"}


@contextlib.contextmanager
def blaming(source: VideoSource) -> Iterator[None]:
    """What goes wrong with one video is said of that video, whatever it is; what goes wrong in writing is not."""
    try:
        yield
    except (Unusable, NoVideosFault):
        raise
    except InputError as error:
        raise Unusable(str(error).replace(source.path, Path(source.path).name)) from error
    except Exception as error:
        said = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
        raise Unusable(f"It cannot be prepared ({said}).") from error


def remove_written(output: Path, key: str, shard: Path) -> None:
    """What was written of a video before it turned out to be unusable."""
    written = (output / SILENT).glob(f"{key}-*.mp4"), (output / WORK).glob(f"{key}-*.jpg")
    for path in (shard, *itertools.chain(*written)):
        path.unlink(missing_ok=True)


class _Video:
    """The preparation of one video. rows: one for each clip, once `write` has returned."""

    def __init__(self, task: Task, key: str, shard: Path):
        self.source, self.settings, self.output = task.source, task.settings, Path(task.output)
        self.key, self.shard, self.rows = key, shard, []
        self.probe: Probe | None = None

    def write(self) -> None:
        """Write the shard, if a clip is kept, and fill the rows."""
        try:
            self._write_clips()
        except NoVideosFault as error:
            raise InputError(str(error)) from error
        except Unusable as error:
            remove_written(self.output, self.key, self.shard)
            self.rows = [rejected(UNREADABLE, str(error))]

    def _write_clips(self) -> None:
        stretches = self._guarded()
        first = next(stretches, None)
        if first is not None:
            make_folder(self.shard.parent)
            write_shard(self.shard, itertools.chain([first], stretches))
        if not self.rows:
            raise Unusable("Picture and sound together have not a single frame.")

    def _guarded(self) -> Iterator[Encoded]:
        with blaming(self.source):
            for stretch in self._stretches():
                if self.settings.autoencoder:
                    yield Encoded(draft_members(stretch, self.settings.keep_frames))
                else:
                    yield Encoded(stretch.members())

    def _stretches(self) -> Iterator[Stretch]:
        self.probe = probe = probe_video(self.source)
        if not probe.sound and not self.settings.allow_silent:
            raise Unusable(
                "It has no sound; prepare --allow-silent keeps the pictures of such videos beside the shards."
            )
        sound = _Sound(self.source, self.settings) if probe.sound else None
        end = math.inf if sound is None else len(sound.features)
        decoded = [numbered_pictures(self.source, probe, self.settings, end) for _ in range(2)]
        for clip in cut_clips(decoded[0], self.source, self.settings):
            samples = self._measure(clip, decoded[1], sound)
            reasons = judge(clip.measures, self.settings.thresholds)
            self._add_row(clip, reasons, sound is not None)
            if reasons:
                continue
            if sound is None:
                self._write_silent(clip)
            else:
                yield self._stretch(clip, sound, samples)

    def _measure(self, clip: Clip, pictures, sound: _Sound | None):
        """Take the measures as far as the clip may still be kept; returns its sound."""
        settings, samples = self.settings, None
        measure_faces(clip, settings)
        if sound is not None:
            samples = measure_sound(clip, sound.samples, settings)
        if judge(clip.measures, settings.thresholds):
            return samples
        crop_clip(clip, pictures, settings)
        measure_pictures(clip)
        if sound is not None and settings.lips:
            measure_lips(clip, sound.ear, sound.heard)
        if sound is not None and settings.syncnet and not judge(clip.measures, settings.thresholds):
            measure_sync(clip, _syncnet(settings.syncnet), samples)
        return samples

    def _stretch(self, clip: Clip, sound: _Sound, samples) -> Stretch:
        place = f"{float(clip.start / self.settings.rate):.1f} s"
        return Stretch(
            name=f"{self.key}, {place}",
            fps=self.settings.fps,
            features=features_around(sound.features, clip.start, clip.start + len(clip), CONTEXT),
            context=CONTEXT,
            audio_encoder=sound.encoder.name,
            frames=clip.frames,
            sound=samples,
            controls=head_of(clip, self.settings),
        )

    def _write_silent(self, clip: Clip) -> None:
        path = self.output / SILENT / f"{self.key}-{len(self.rows) - 1:04d}.mp4"
        _store(path, encode_frames(clip.frames, self.settings.fps))
        self.rows[-1]["stored"] = path.relative_to(self.output).as_posix()

    def _add_row(self, clip: Clip, reasons: list[tuple[str, str]], sound: bool) -> None:
        number, picture = len(self.rows), self.output / WORK / f"{self.key}-{len(self.rows):04d}.jpg"
        _store(picture, thumbnail(clip, THUMBNAIL))
        measures = {name: _rounded(clip.measures.get(name)) for name in MEASURES}
        row = rejected("", "") | measures
        row |= {"clip": number, "start": _rounded(float(clip.start / self.settings.rate)), "kept": not reasons}
        row |= {"filters": [name for name, _ in reasons], "reasons": [reason for _, reason in reasons]}
        row |= {"width": self.probe.width, "height": self.probe.height, "fps": _rounded(self.probe.fps), "sound": sound}
        self.rows.append(row | {"thumbnail": picture.relative_to(self.output).as_posix()})


class _Sound:
    """A video's sound as the steps need it, all read forward only, so that nothing grows with its length."""

    def __init__(self, source: VideoSource, settings: PreparationSettings):
        self.encoder = _encoder(settings.features)
        self.features = FeatureStream(self.encoder, Recording(source.path, strict=True), settings.fps)
        self.samples = Samples(Recording(source.path, strict=True).mono_16k())
        if settings.lips:
            self.ear = load_ear()
            self.heard = FeatureStream(self.ear.encoder, Recording(source.path, strict=True), settings.fps)


@functools.cache
def _encoder(name: str) -> AudioEncoder:
    return load_audio_encoder(name)


@functools.cache
def _syncnet(path: str) -> SyncNet:
    return load_syncnet(path)


def _store(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    try:
        write_durably(path, content)
    except InputError as error:
        raise NoVideosFault(str(error)) from error


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoVideosFault(str(cannot_write(path, error))) from error


def _rounded(value: float | None) -> float | None:
    """Four digits after the point: what differs between two machines' arithmetic lies below."""
    return None if value is None else round(float(value), 4)
