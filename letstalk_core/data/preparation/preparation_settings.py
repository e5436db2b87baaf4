"""What a preparation is asked for, and the filters' thresholds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path

from ...audio.load_encoder import BUILT_IN
from ...audio.recording import exact_fps
from ...errors import InputError
from .syncnet import FPS as SYNCNET_FPS

VERSION = 2  # raised when something else is done to a video, or the manifest has other columns
WORK, SILENT = "work", "silent"  # folders of a preparation, beside those of the splits


@dataclass(frozen=True)
class Thresholds:
    """From where on a clip is kept. Units beside each; clip_measures.py says how each is measured."""

    seconds: float = 1.0  # length, least
    face_share: float = 1.0  # of the frames that have a face, least
    faces: float = 1.0  # in a picture, most
    inside: float = 0.95  # of the frames in which the whole face is in the picture and in the square, least
    eyes: float = 30.0  # source pixels between the eyes, least
    sharpness: float = 5.0  # least
    darkest: float = 40.0  # mean grey of the square, 0..255, least
    brightest: float = 215.0  # the same, most
    motion: float = 0.25  # grey levels, least
    speech: float = 0.2  # of the clip's time, least
    lips_r: float = 0.3  # correlation of heard and seen mouth at the best lag, least
    lips_lag: float = 3.0  # frames of that lag, either way, most
    sync_c: float = 3.0  # SyncNet's confidence, least
    sync_lag: float = 3.0  # frames of SyncNet's lag, either way, most


def thresholds_of(changes: Sequence[str]) -> Thresholds:
    """The thresholds with changes as in "sharpness=2". InputError for a name that there is not, and no number."""
    values: dict[str, float] = {}
    names = [each.name for each in fields(Thresholds)]
    for change in changes:
        name, _, value = change.partition("=")
        if name not in names:
            raise InputError(f"There is no threshold {name!r}; choose {', '.join(names)}.")
        try:
            values[name] = float(value)
        except ValueError:
            raise InputError(f"The threshold {name} is {value!r}; it must be a number, as in {name}=1.5.") from None
    return Thresholds(**values)


@dataclass(frozen=True)
class PreparationSettings:
    """What decides the result, beside the videos.

    size: side of the square in pixels. seconds: of the longest clip. features: what the shards' features are made by
    (load_audio_encoder). autoencoder: the path of one whose latents are stored too; without keep_frames only they are.
    lips: compare the sound with the mouth. syncnet: the path of one that compares them too (load_syncnet).
    allow_silent: videos without sound are prepared too, as plain videos beside the shards. eval_share: of the
    identities.
    """

    size: int = 256
    fps: float = 25.0
    seconds: float = 10.0
    features: str = "whisper"
    autoencoder: str = ""
    keep_frames: bool = True
    lips: bool = True
    syncnet: str = ""
    allow_silent: bool = False
    eval_share: float = 0.1
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self):
        if self.size < 16 or self.size % 2:
            raise InputError(f"The size of the frames is {self.size}; it must be an even number, at least 16.")
        if not 1 <= self.seconds <= 60:
            raise InputError(f"Clips of {self.seconds} seconds were asked for; choose 1 to 60.")
        if not self.keep_frames and not self.autoencoder:
            raise InputError("Without an autoencoder the frames have to be kept; give --autoencoder, or keep them.")
        if not 0 <= self.eval_share < 1:
            raise InputError(f"The share of identities for evaluation is {self.eval_share}; choose 0 to below 1.")
        if not 0 < self.thresholds.face_share <= 1:
            raise InputError(
                f"The threshold face_share is {self.thresholds.face_share:g}; choose above 0 to 1: without a face "
                "there is no square to cut out."
            )
        exact_fps(self.fps)
        if self.syncnet and self.rate != SYNCNET_FPS:
            raise InputError(f"SyncNet needs {SYNCNET_FPS:g} frames a second, not {self.fps:g}; leave it out.")

    @property
    def rate(self) -> Fraction:
        return exact_fps(self.fps)

    @property
    def length(self) -> int:
        """Frames of the longest clip."""
        return math.floor(Fraction(self.seconds) * self.rate)

    def with_whole_paths(self) -> PreparationSettings:
        """The same, wherever the process that reads the models was started."""
        features = self.features if self.features in BUILT_IN else str(Path(self.features).absolute())
        autoencoder = self.autoencoder and str(Path(self.autoencoder).absolute())
        syncnet = self.syncnet and str(Path(self.syncnet).absolute())
        return replace(self, features=features, autoencoder=autoencoder, syncnet=syncnet)

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2)

    def split_of(self, identity: str) -> str:
        """ "train" or "eval": the same for all clips of an identity, wherever and whenever it is prepared."""
        number = int(hashlib.sha256(identity.encode()).hexdigest()[:13], 16) / 16**13
        return "eval" if number < self.eval_share else "train"
