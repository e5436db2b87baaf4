"""The numbers of one video beside its real clip, and the features that Fréchet distances are of."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.preparation.syncnet import FPS as SYNCNET_FPS
from ..data.preparation.syncnet import SIDE as SYNCNET_SIDE
from ..data.preparation.syncnet import sync_scores
from ..errors import InputError
from ..picture.similarity import similarity
from ..pixels import pixels_to_images, pixels_to_planes
from . import measures
from .clip_sets import RATES_ALIKE, Clip
from .feature_networks import Networks, OnnxJudge
from .followed_face import FaceTrack, cut_out, face_square, follow_face
from .identity import IdentityNet, load_identity
from .measure_table import FOLLOWS, LAGS
from .meter import SIZE, FaceMeter, load_meter
from .report import BLINK, JUDGED_EVERY, METER, OPEN

SOME = slice(None, None, JUDGED_EVERY)
# Where ArcFace's training had eyes, nose and mouth corners, in pixels of 112 (its published template).
ARCFACE = np.array([(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)])
ARCFACE_SIDE = 112


@dataclass(frozen=True)
class RealClip:
    """What the judges see in a real clip: the face's track and square, and the meter's readings of the square."""

    clip: Clip
    track: FaceTrack
    square: np.ndarray
    readings: np.ndarray


class Judges:
    """All networks that look at frames; ours are in the repository."""

    def __init__(self, networks: Networks):
        self.networks = networks
        self.meter: FaceMeter = load_meter(METER)
        self.identity: IdentityNet = load_identity()

    def look(self, clip: Clip) -> RealClip:
        """InputError where the clip shows no face."""
        track, square = follow_face(clip.real, clip.name), face_square(clip.real)
        return RealClip(clip, track, square, self.meter.read(cut_out(clip.real, square, SIZE)))

    def numbers(self, row: str, real: RealClip, clip_frames: int) -> dict[str, float]:
        """The measures of one of the clip's videos; NaN where one has no meaning."""
        clip, networks = real.clip, self.networks
        made = clip.made[row]
        track = real.track if made is clip.real else _track_of_made(made, f"{clip.name} ({row})")
        crops = cut_out(made, real.square, SIZE)
        readings = self.meter.read(crops)
        found = {
            **picture_numbers(made[SOME], clip.real[SOME]),
            **mouth_numbers(readings[:, OPEN], real.readings[:, OPEN]),
            "mouth_r_points": measures.correlation(track.opening, real.track.opening) if track else float("nan"),
            "blinks": measures.blinks_per_minute(readings[:, BLINK], clip.fps),
            "blinks_real": measures.blinks_per_minute(real.readings[:, BLINK], clip.fps),
            "border_jump": measures.border_jump(made, clip_frames),
            **self._person(crops[SOME], cut_out(clip.real[:1], real.square, SIZE)),
        }
        if networks.lpips is not None:
            found["lpips"] = float(networks.lpips(made[SOME], clip.real[SOME]).mean())
        if networks.identity is not None and track is not None:
            portrait = vectors_of(networks.identity, clip.real[:1], real.track.places)
            vectors = vectors_of(networks.identity, made[SOME], track.places[SOME])
            found["identity"] = float((vectors @ portrait[0]).mean())
        if networks.syncnet is not None and clip.waveform is not None and abs(clip.fps - SYNCNET_FPS) < RATES_ALIKE:
            faces = cut_out(made, real.square, SYNCNET_SIDE)
            found["sync_c"], found["sync_d"], _ = sync_scores(networks.syncnet, faces, clip.waveform)
        return found

    def features(self, frames: np.ndarray, square: np.ndarray) -> dict[str, np.ndarray]:
        """What the Fréchet distances are of, [n,D] each, in frames uint8 [F,H,W,3]."""
        networks, crops = self.networks, cut_out(frames[SOME], square, SIZE)
        found = {"readings_frechet": self.meter.read(crops), "judges_frechet": judged(self.meter, self.identity, crops)}
        if networks.inception is not None:
            found["fid"] = networks.inception(frames)
        if networks.i3d is not None:
            found["fvd"] = networks.i3d(frames)
        if networks.expression is not None:
            found["e_fid"] = networks.expression(cut_out(frames[SOME], square, networks.expression.side))
        return found

    def _person(self, crops: np.ndarray, portrait: np.ndarray) -> dict[str, float]:
        distances = 1 - self.identity.read(crops) @ self.identity.read(portrait)[0]
        quarter = max(1, len(distances) // 4)
        drift = distances[-quarter:].mean() - distances[:quarter].mean()
        return {"identity_distance": float(distances.mean()), "identity_drift": float(drift)}


def _track_of_made(frames: np.ndarray, name: str) -> FaceTrack | None:
    """None where what was made shows no face, as a model's does that has hardly begun to learn; a warning says so."""
    try:
        return follow_face(frames, name)
    except InputError as error:
        warnings.warn(f"Landmarks and identity are not measured here. {error}", stacklevel=3)
        return None


@torch.inference_mode()
def judged(meter: FaceMeter, identity: IdentityNet, frames: np.ndarray) -> np.ndarray:
    """What our judges see in frames uint8 [n,S,S,3], before the meter's last layer and after IdentityNet's: [n,176]."""
    images = pixels_to_images(frames)
    return torch.cat([meter.features(images), identity(images)], dim=1).numpy()


def vectors_of(network: OnnxJudge, frames: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """Unit vectors [n,D] of frames uint8 [n,H,W,3], aligned as ArcFace is by five places [5,2] in each."""
    wanted = ARCFACE / ARCFACE_SIDE
    squares = [similarity(five, wanted) for five in places]
    crops = [cut_out(frame[None], square, network.side)[0] for frame, square in zip(frames, squares, strict=False)]
    found = network(np.stack(crops))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def picture_numbers(made: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """SSIM and PSNR of frames uint8 [n,H,W,3]."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    # 0..255, black at 0: SSIM's term of brightness is another one where grey is 0.
    pairs = [[pixels_to_planes(video[i : i + 1]).double() for video in (made, real)] for i in range(len(made))]
    error = np.mean([((a - b) ** 2).mean().item() for a, b in pairs])
    return {
        "ssim": float(np.mean([ssim(a, b, data_range=255.0).item() for a, b in pairs])),
        "psnr": float(10 * np.log10(255**2 / max(error, 255**2 * 1e-10))),
    }


def mouth_numbers(opening: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """How an opening [F] follows the real one [F]."""
    best, lag = measures.lagged_correlation(opening, real, min(LAGS, len(opening) // 4))
    return {
        "mouth_r": measures.correlation(opening, real),
        "mouth_extent": measures.slope(opening, real),
        "lag": float(lag) if best >= FOLLOWS else float("nan"),
    }
