"""The steps from a video to its clips, each a plain function: probe, cut, follow the face, crop, measure.

Frame numbers count from the first sample of sound (from the file's beginning where it has none), at the result's rate.
One clip at a time is in memory, however long a video is: it is decoded twice, small to find clips and faces, and at its
own size to cut out the squares of those clips that may be kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch

from ...audio.encoder import Samples
from ...audio.recording import SAMPLE_RATE
from ...errors import InputError
from ...files import check_file
from ...picture.driving import head_tracks
from ...picture.face import Face
from ...picture.portrait import FRAMING
from ...picture.similarity import cut, square_at
from ...video.reader import open_video
from ..footage.frames import Picture, audio_start, resample, timed_frames, to_rgb
from .clip_filters import Measures
from .clip_measures import brightness, greys, inside_share, motion, sharpness, speech_share
from .ear_opening import Ear
from .face_tracks import FaceTracker, steady_square
from .lip_timing import compare_lips
from .preparation_settings import PreparationSettings
from .shot_cuts import ShotCuts
from .syncnet import SIDE, SyncNet, sync_scores
from .video_sources import VideoSource

LOOKED_AT = 512  # pixels of the shorter side in which faces are followed
BEFORE = 1.0  # seconds before a part of a video at which decoding begins


@dataclass(frozen=True)
class Probe:
    """What is known of a video before it is decoded. origin: the time of frame 0 on the file's clock, in seconds."""

    width: int
    height: int
    fps: float
    sound: bool
    origin: Fraction


@dataclass(eq=False)
class Clip:
    """A part of one shot. Pixels of `faces` are those of the picture as it was looked at; source pixels are `scale`
    times finer. square: the similarity [2,3] from there; frames uint8 [T,S,S,3], once they are cut out."""

    start: int
    size: tuple[int, int]  # width, height
    scale: float
    faces: list[Face | None] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    shown: np.ndarray | None = None  # a picture of it, for the report
    square: np.ndarray | None = None
    frames: np.ndarray | None = None
    measures: Measures = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.faces)


def probe_video(source: VideoSource) -> Probe:
    """InputError where there is no such file, or no picture in it."""
    path = check_file(source.path, "video")
    with open_video(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        sound = bool(container.streams.audio)
        about = stream.width, stream.height, float(rate), sound
    if min(about[:2]) < 1:
        raise InputError(f"{path} has a picture without size: it is damaged.")
    return Probe(*about, audio_start(path) if sound else Fraction(0))


def numbered_pictures(
    source: VideoSource, probe: Probe, settings: PreparationSettings, end: float
) -> Iterator[tuple[int, Picture]]:
    """Yield (frame number, decoded picture) at the constant rate of the result, of the source's part.

    end: the frame before which the sound ends.
    """
    rate = settings.rate
    first = max(math.ceil((Fraction(source.start) - probe.origin) * rate), 0)
    if source.end is not None:
        end = min(end, math.floor((Fraction(source.end) - probe.origin) * rate))
    pictures = timed_frames(Path(source.path), max(source.start - BEFORE, 0.0))
    for number, picture in resample(pictures, rate, probe.origin):
        if number >= end:
            return
        if number >= first:
            yield number, picture


def cut_clips(
    pictures: Iterator[tuple[int, Picture]], source: VideoSource, settings: PreparationSettings
) -> Iterator[Clip]:
    """Yield the clips of a video: parts of shots of at most settings.length frames, with the face followed through."""
    cuts, tracker, clip = ShotCuts(settings.rate), FaceTracker(source.box), None
    for number, picture in pictures:
        pixels = to_rgb(picture, LOOKED_AT)
        cut_here = cuts.begins(pixels)
        if clip is not None and (cut_here or len(clip) == settings.length):
            yield clip
            clip = None
        if cut_here:
            tracker.restart()
        if clip is None:
            height, width = pixels.shape[:2]
            clip = Clip(number, (width, height), _shorter_side(picture) / min(width, height))
        face, count = tracker.follow(pixels)
        clip.faces.append(face)
        if count is not None:
            clip.counts.append(count)
        if len(clip) == 1 or len(clip) == settings.length // 2:
            clip.shown = pixels
    if clip is not None:
        yield clip


def _shorter_side(picture: Picture) -> int:
    frame, ratio = picture
    return min(round(frame.width * ratio) if ratio else frame.width, frame.height)


def measure_faces(clip: Clip, settings: PreparationSettings) -> None:
    """The measures of length and of faces, and the clip's square, where it has a face."""
    faces = [face for face in clip.faces if face is not None]
    clip.measures["seconds"] = float(len(clip) / settings.rate)
    clip.measures["face_share"] = len(faces) / len(clip)
    clip.measures["faces"] = float(max(clip.counts, default=0))
    if not faces:
        return
    clip.measures["eyes"] = clip.scale * float(np.median([face.eyes for face in faces]))
    clip.square = steady_square(faces, settings.size * FRAMING)
    clip.measures["inside"] = inside_share(faces, clip.square, settings.size, *clip.size)


def crop_clip(clip: Clip, pictures: Iterator[tuple[int, Picture]], settings: PreparationSettings) -> None:
    """Cut the clip's square out of its frames; `pictures` are the video's, and are taken up to the clip's last."""
    finer = np.column_stack([clip.square[:, :2] / clip.scale, clip.square[:, 2]])
    last, frames = clip.start + len(clip) - 1, []
    for number, picture in pictures:
        if number >= clip.start:
            frames.append(cut(to_rgb(picture), finer, settings.size))
        if number >= last:
            break
    if len(frames) != len(clip):
        raise InputError("Its pictures cannot be decoded twice alike: it is damaged.")
    clip.frames = np.stack(frames)


def measure_pictures(clip: Clip) -> None:
    """Sharpness, brightness and motion of the cut-out frames."""
    grey = greys(clip.frames)
    clip.measures |= {"sharpness": sharpness(grey), "brightness": brightness(grey), "motion": motion(grey)}


def measure_sound(clip: Clip, samples: Samples, settings: PreparationSettings) -> torch.Tensor:
    """The clip's sound at 16 kHz, float32 [S], and how much of it is speech."""
    edges = (math.floor(number * SAMPLE_RATE / settings.rate) for number in (clip.start, clip.start + len(clip)))
    sound = samples.take(*edges)
    clip.measures["speech"] = speech_share(sound)
    return sound


def head_of(clip: Clip, settings: PreparationSettings) -> dict[str, np.ndarray]:
    """How the head moves: tracks [T] of controls, which a model is told of."""
    return head_tracks(clip.faces, np.arange(len(clip)) / settings.fps)


def measure_lips(clip: Clip, ear: Ear, features) -> None:
    """How the mouth that is heard follows the one that is seen; features: Ear.features of the whole recording."""
    heard = ear.opening(features[clip.start : clip.start + len(clip)])
    r, lag = compare_lips(heard, openings(clip.faces))
    clip.measures |= {"lips_r": r, "lips_lag": None if lag is None else float(lag)}


def measure_sync(clip: Clip, net: SyncNet, samples: torch.Tensor) -> None:
    """SyncNet's confidence, and its lag, of the cut-out frames and the clip's sound; as for Sync-C in evaluation."""
    square = square_at(0, 0, clip.frames.shape[1], SIDE)
    confidence, _, lag = sync_scores(
        net, np.stack([cut(frame, square, SIDE) for frame in clip.frames]), samples.numpy()
    )
    if not math.isnan(confidence):  # of a clip long enough for one shift
        clip.measures |= {"sync_c": confidence, "sync_lag": float(lag)}


def openings(faces: list[Face | None]) -> np.ndarray:
    """How far the mouth is open [T]; over frames without a face it is interpolated."""
    seen = [number for number, face in enumerate(faces) if face is not None]
    return np.interp(np.arange(len(faces)), seen, [faces[number].opening for number in seen])


def thumbnail(clip: Clip, side: int) -> bytes:
    """A JPEG of `side` pixels square: the middle frame of the crop, or what was looked at with bars beside it."""
    pixels = clip.shown if clip.frames is None else clip.frames[len(clip.frames) // 2]
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    small = cv2.resize(
        pixels, (max(round(width * scale), 1), max(round(height * scale), 1)), interpolation=cv2.INTER_AREA
    )
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    canvas = np.full((side, side, 3), 40, np.uint8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return cv2.imencode(".jpg", canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
