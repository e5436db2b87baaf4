"""Training data from a folder of videos: stretches of one face, with their sound as features, in shards.

Nothing is held that grows with a video's length: one stretch at a time is in memory. docs/data.md tells what is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import filelock
import torch
from torch import Tensor
from tqdm import tqdm

from ...audio.encoder import AudioEncoder, FeatureStream
from ...audio.recording import Recording, exact_fps
from ...errors import InputError
from ...files import check_file, find_files, write_durably
from ...picture.autoencoder import Autoencoder
from ...pixels import pixels_to_images
from ...weights import add_to_digest
from .frames import audio_start, crop_stretch, resample, timed_frames, to_rgb
from .shard_writer import Stretch, write_shard

VERSION = 1  # raised when something else is done to a video, which makes another folder
SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".ogv", ".3gp"),
)
CONTEXT = 8  # frames of features on either side of a stretch: for audio windows of up to 17 frames
SHARD_STRETCHES = 16  # stretches of a shard, which an interruption can lose
CHUNK = 16  # frames that are encoded to latents at a time


class _Unusable(Exception):
    """A video cannot be read or is too short; the message says why."""


def prepare_videos(
    folder: str | Path,
    output: str | Path,
    *,
    size: int,
    fps: float,
    audio_encoder: AudioEncoder,
    autoencoder: Autoencoder | None = None,
    keep_frames: bool = True,
    seconds: float = 10.0,
    face: str | int = "largest",
    progress: bool = True,
) -> list[Path]:
    """Prepare every video of a folder and of the folders in it as shards of stretches; returns the shards.

    A second call with the same arguments finds everything done; after an interruption it goes on with the shard that
    was being written. Videos that have changed are prepared again. Other arguments make another folder in `output`.

    Args:
        size: side of the frames in pixels.
        fps: frames a second of the result; the nearest frames of the video are taken.
        audio_encoder: makes the features.
        autoencoder: its latents are stored too, under its encoder_digest.
        keep_frames: store the frames; without them there must be an autoencoder.
        seconds: the longest stretch, 1 to 60.
        face: "largest", a number (0 is the largest), or "none" for the centred square of the picture.
        progress: a bar, on a terminal.

    A video without sound or picture, damaged, or shorter than a second is left out with a warning. Raises InputError
    for a missing or empty folder, where no video can be used, and where nothing can be written.
    """
    folder, videos = Path(folder), find_videos(folder)
    preparation = _Preparation(size, fps, audio_encoder, autoencoder, keep_frames, seconds, face)
    shards: list[Path] = []
    reasons: list[str] = []
    with (
        preparation.open_folder(Path(output)) as target,
        tqdm(videos, desc="videos", unit="video", disable=None if progress else True) as bar,
    ):
        for video in bar:
            report = preparation.prepare(target, folder, video, bar)
            if report["left_out"]:
                reasons.append(f"{report['video']}: {report['left_out']}")
                warnings.warn(f"A video is left out. {reasons[-1]}", stacklevel=2)
            shards += [target / name for name in report["shards"]]
    if not shards:
        raise InputError(
            f"None of the {len(videos)} videos in {folder} can be used ({reasons[0].rstrip('.')}); training needs "
            "videos with picture and sound that last a second or more."
        )
    return shards


def find_videos(folder: str | Path) -> list[Path]:
    """The videos in a folder and below, by their names; InputError where there is no folder or no video."""
    return find_files(folder, SUFFIXES, "videos")


class _Preparation:
    """The arguments of prepare_videos, checked, and what is done to one video."""

    def __init__(self, size, fps, audio_encoder, autoencoder, keep_frames, seconds, face):
        if size < 16:
            raise InputError(f"The size of the frames is {size}; it must be at least 16 pixels.")
        if not 1 <= seconds <= 60:
            raise InputError(f"Stretches of {seconds} seconds were asked for; choose 1 to 60.")
        if autoencoder is None and not keep_frames:
            raise InputError("Without an autoencoder the frames have to be kept; turn that on, or give an autoencoder.")
        if autoencoder is not None and size % autoencoder.downscale:
            raise InputError(f"The size is {size}, but the autoencoder needs a multiple of {autoencoder.downscale}.")
        if face not in ("largest", "none") and not str(face).isdecimal():
            raise InputError(f"face is {face!r}; it must be 'largest', 'none' or a number.")
        self.size, self.rate, self.fps = size, exact_fps(fps), float(fps)
        self.encoder, self.autoencoder, self.keep_frames = audio_encoder, autoencoder, keep_frames
        self.latents_digest = None if autoencoder is None else autoencoder.encoder_digest
        self.length = math.floor(Fraction(seconds) * self.rate)  # frames of a stretch
        self.face = None if face == "none" else 0 if face == "largest" else int(face)

    @contextlib.contextmanager
    def open_folder(self, output: Path) -> Iterator[Path]:
        """The folder of these settings in `output`, for one process at a time."""
        settings = {
            **{"version": VERSION, "size": self.size, "fps": str(self.rate), "frames": self.length, "face": self.face},
            **{"autoencoder": self.latents_digest, "keep_frames": self.keep_frames, "audio_encoder": self.encoder.name},
            "audio_encoder_digest": digest_of(self.encoder),
        }
        content = json.dumps(settings, indent=2).encode()
        digest = hashlib.sha256(content).hexdigest()[:8]
        target = output / f"{self.size}px-{self.fps:g}fps-{self.encoder.name}-{digest}"
        try:
            target.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(target / ".lock", timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise InputError(f"Another process is preparing videos in {target}; wait for it, or stop it.") from None
        except OSError as error:
            raise InputError(f"{target} cannot be made ({error.strerror}); choose another output folder.") from error
        try:
            if not (target / "settings.json").exists():
                write_durably(target / "settings.json", content)
            yield target
        finally:
            lock.release()

    def prepare(self, target: Path, folder: Path, video: Path, bar: tqdm) -> dict:
        """Prepare a video, unless that is done; returns its report {"video", "shards", "left_out": None or why}."""
        name = video.relative_to(folder).as_posix()
        try:
            stat = check_file(video, "video").stat()
        except (InputError, OSError) as error:
            return {"video": name, "shards": [], "left_out": str(error)}  # not for ever: permissions may change
        slug = re.sub(r"[^A-Za-z0-9_-]+", "_", video.stem)[:40]
        prefix = f"{slug}-{_digest(str(video.resolve()))}-"
        key = f"{prefix}{_digest(f'{stat.st_size} {stat.st_mtime_ns}')}"
        report_file = target / f"{key}.json"
        if report_file.exists():
            report = json.loads(report_file.read_text())
            if all((target / shard).exists() for shard in report["shards"]):
                return report
        for old in target.glob(f"{prefix}*"):
            if not old.name.startswith(key):  # the video has changed since
                old.unlink()
        try:
            report = {"video": name, "shards": self._write_shards(target, key, video, name, bar), "left_out": None}
        except _Unusable as error:
            for shard in target.glob(f"{key}-*.tar"):
                shard.unlink()
            report = {"video": name, "shards": [], "left_out": str(error)}
        write_durably(report_file, json.dumps(report, indent=2).encode())
        return report

    def _write_shards(self, target: Path, key: str, video: Path, name: str, bar: tqdm) -> list[str]:
        """Write the shards of a video that are not there yet; returns the names of all."""
        shards = [f"{key}-{number:04d}.tar" for number in range(_consecutive(target, key))]
        without_face: list[str] = []
        stretches = self._stretches(video, name, len(shards) * SHARD_STRETCHES, without_face)
        for first in stretches:
            bar.set_postfix_str(first.name)
            shards.append(f"{key}-{len(shards):04d}.tar")
            rest = itertools.islice(stretches, SHARD_STRETCHES - 1)
            write_shard(target / shards[-1], map(self._with_latents, itertools.chain([first], rest)))
        if not shards:
            raise _Unusable("Picture and sound together last less than a second.")
        if without_face:
            warnings.warn(
                f"No face was found in {len(without_face)} stretches of {name} (the first at {without_face[0]}); the "
                "middle of the picture is used there.",
                stacklevel=4,
            )
        return shards

    def _stretches(self, video: Path, name: str, skip: int, without_face: list[str]) -> Iterator[Stretch]:
        """Stretches of a video from number `skip` on, without latents; raises _Unusable where it cannot be read.

        Frame f is the picture whose time stamp is nearest to f / fps seconds after the beginning of the sound, and the
        sound's features are of f / fps to (f + 1) / fps: so they belong together.
        """
        try:
            features = FeatureStream(self.encoder, Recording(video, strict=True), self.fps)
            total = len(features)
            pictures = resample(timed_frames(video), self.rate, audio_start(video))
            pictures = itertools.takewhile(lambda numbered: numbered[0] < total, pictures)
            pictures = itertools.islice(pictures, skip * self.length, None)
            for start, picture in pictures:
                part = itertools.chain([picture], (p for _, p in itertools.islice(pictures, self.length - 1)))
                frames, found = crop_stretch(map(to_rgb, part), self.size, self.face)
                if len(frames) < self.rate:  # less than a second: the rest at the end
                    return
                place = f"{float(start / self.rate):.1f} s"
                if not found:
                    without_face.append(place)
                yield Stretch(
                    name=f"{name}, {place}",
                    fps=self.fps,
                    features=features_around(features, start, start + len(frames), CONTEXT),
                    context=CONTEXT,
                    audio_encoder=self.encoder.name,
                    frames=frames,
                )
        except InputError as error:
            raise _Unusable(str(error)) from error

    def _with_latents(self, stretch: Stretch) -> Stretch:
        if self.autoencoder is None:
            return stretch
        return with_latents(stretch, self.autoencoder, self.latents_digest, self.keep_frames)


def with_latents(stretch: Stretch, autoencoder: Autoencoder, digest: str, keep_frames: bool) -> Stretch:
    """The stretch with latents of its frames, and without the frames where they are not to be kept. digest: the
    autoencoder's encoder_digest, which takes long to make."""
    device, parts = next(autoencoder.parameters()).device, []
    for begin in range(0, len(stretch.frames), CHUNK):
        pixels = torch.from_numpy(stretch.frames[begin : begin + CHUNK]).to(device)
        with torch.no_grad():
            parts.append(autoencoder.encode(pixels_to_images(pixels)).cpu())
    frames = stretch.frames if keep_frames else None
    size = tuple(stretch.frames.shape[1:3])
    latents = torch.cat(parts)
    return replace(stretch, frames=frames, size=size, latents=latents, autoencoder=digest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def digest_of(encoder: AudioEncoder) -> str:
    """The digest of everything that decides an encoder's features."""
    digest = hashlib.sha256(f"{encoder.name} {encoder.settings}".encode())
    add_to_digest(digest, dict(sorted(encoder.state_dict().items())))
    return digest.hexdigest()


def _consecutive(target: Path, key: str) -> int:
    """How many shards of a video are there, from the first on."""
    return next(number for number in itertools.count() if not (target / f"{key}-{number:04d}.tar").exists())


def features_around(features: FeatureStream, first: int, last: int, context: int) -> Tensor:
    """Features [n, L, E] of frames first - context .. last + context - 1.

    Frames beyond the recording repeat its first and last frame.
    """
    low, high = max(first - context, 0), min(last + context, len(features))
    return features[low:high][torch.arange(first - context, last + context).clamp(low, high - 1) - low]
