"""One video: its clips measured, judged, and the kept ones written into a shard. Done once for each content."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ...audio.encoder import AudioEncoder, FeatureStream, Samples
from ...audio.load_encoder import load_audio_encoder
from ...audio.recording import Recording
from ...autoencoders import find_autoencoder
from ...errors import InputError
from ...files import cannot_write, check_file, write_durably
from ...picture.autoencoder import Autoencoder
from ..footage.shard_writer import Stretch, encode_frames, write_shard
from ..footage.stretches import CONTEXT, features_around, with_latents
from .clip_filters import FILTERS, UNREADABLE, judge
from .clip_steps import (
    Clip,
    Probe,
    crop_clip,
    cut_clips,
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


class _Unusable(Exception):
    """The video gives no clips; the message says why."""


class _CannotWrite(Exception):
    """Nothing can be written, which is no video's fault; the message says why."""


class _Encoded(NamedTuple):
    """A stretch as a shard holds it, made before write_shard asks for it: what fails in making it is the video's."""

    files: dict

    def members(self) -> dict:
        return self.files


@dataclass(frozen=True)
class Task:
    """What a worker is told: one video, how, and where to. gpu: whether latents are encoded on one, if it sees one."""

    source: VideoSource
    settings: PreparationSettings
    output: str
    gpu: bool = True

    @classmethod
    def of(cls, given: dict) -> Task:
        """Of dataclasses.asdict, also through JSON."""
        source, settings = dict(given["source"]), dict(given["settings"])
        source["box"] = source["box"] and tuple(source["box"])
        settings["thresholds"] = Thresholds(**settings["thresholds"])
        return cls(VideoSource(**source), PreparationSettings(**settings), given["output"], given["gpu"])


def prepare_video(task: Task) -> list[dict]:
    """The rows of a video's clips, kept and rejected; prepared now unless that is done. A video that cannot be read is
    one rejected row. Raises InputError only where nothing can be written."""
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
    video = _Video(task, key, output / split / f"{key}.tar")
    video.write()
    for row in video.rows:
        stored = f"{split}/{key}.tar" if row["kept"] and row["sound"] else row["stored"]
        row |= {"identity": identity, "split": split, "content": content, "key": key, "stored": stored}
    write_durably(output / WORK / f"{key}.json", json.dumps(video.rows).encode())
    return video.rows


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


class _Video:
    """The preparation of one video. rows: one for each clip, once `write` has returned."""

    def __init__(self, task: Task, key: str, shard: Path):
        self.source, self.settings, self.output = task.source, task.settings, Path(task.output)
        self.gpu = task.gpu
        self.key, self.shard, self.rows = key, shard, []
        self.probe: Probe | None = None

    def write(self) -> None:
        """Write the shard, if a clip is kept, and fill the rows."""
        try:
            self._write_clips()
        except _CannotWrite as error:
            raise InputError(str(error)) from error
        except _Unusable as error:
            self._remove()
            self.rows = [rejected(UNREADABLE, str(error))]

    def _write_clips(self) -> None:
        stretches = self._guarded()
        first = next(stretches, None)
        if first is not None:
            _make_folder(self.shard.parent)
            write_shard(self.shard, itertools.chain([first], stretches))
        if not self.rows:
            raise _Unusable("Picture and sound together have not a single frame.")

    def _remove(self) -> None:
        """What was written of a video before it turned out to be unusable."""
        written = (self.output / SILENT).glob(f"{self.key}-*.mp4"), (self.output / WORK).glob(f"{self.key}-*.jpg")
        for path in (self.shard, *itertools.chain(*written)):
            path.unlink(missing_ok=True)

    def _guarded(self) -> Iterator[_Encoded]:
        """What goes wrong with one video is said of that video, whatever it is; what goes wrong in writing is not."""
        try:
            for stretch in self._stretches():
                yield _Encoded(stretch.members())
        except (_Unusable, _CannotWrite):
            raise
        except InputError as error:
            raise _Unusable(str(error).replace(self.source.path, Path(self.source.path).name)) from error
        except Exception as error:
            said = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
            raise _Unusable(f"It cannot be prepared ({said}).") from error

    def _stretches(self) -> Iterator[Stretch]:
        self.probe = probe = probe_video(self.source)
        if not probe.sound and not self.settings.allow_silent:
            raise _Unusable(
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
        stretch = Stretch(
            name=f"{self.key}, {place}",
            fps=self.settings.fps,
            features=features_around(sound.features, clip.start, clip.start + len(clip), CONTEXT),
            context=CONTEXT,
            audio_encoder=sound.encoder.name,
            frames=clip.frames,
            sound=samples,
        )
        if not self.settings.autoencoder:
            return stretch
        return with_latents(stretch, *_autoencoder(self.settings.autoencoder, self.gpu), self.settings.keep_frames)

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


@functools.cache
def _autoencoder(path: str, gpu: bool) -> tuple[Autoencoder, str]:
    """With its encoder_digest."""
    autoencoder = find_autoencoder(path)
    return autoencoder.to("cuda" if gpu and torch.cuda.is_available() else "cpu"), autoencoder.encoder_digest


def _store(path: Path, content: bytes) -> None:
    _make_folder(path.parent)
    try:
        write_durably(path, content)
    except InputError as error:
        raise _CannotWrite(str(error)) from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _CannotWrite(str(cannot_write(path, error))) from error


def _rounded(value: float | None) -> float | None:
    """Four digits after the point: what differs between two machines' arithmetic lies below."""
    return None if value is None else round(float(value), 4)
