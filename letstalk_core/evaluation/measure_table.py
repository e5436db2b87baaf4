"""What `evaluate` measures of videos beside the real clips: names, directions, and how each number is made."""

from __future__ import annotations

from dataclasses import dataclass

from .i3d import WINDOW
from .meter import READINGS
from .report import JUDGED_EVERY

LAGS = 8  # frames, either way
FOLLOWS = 0.3  # r at the best lag, from which on a mouth follows and can be early or late


@dataclass(frozen=True)
class Measure:
    """What a number is: its name in tables, which way is better ("+" or "-", "" for neither), how it is measured, and
    the option that names its network's file, if it needs one."""

    title: str
    better: str
    protocol: str
    network: str = ""


SOME = f"every {JUDGED_EVERY}th frame"
SQUARE = "a square around the face of the real first frame, which stays where it is"

MEASURES = {
    "fid": Measure(
        "FID",
        "-",
        "every frame, whole; torch-fidelity's InceptionV3, 2048 features, resized to 299 as TensorFlow 1 does",
        "inception",
    ),
    "fvd": Measure(
        "FVD",
        "-",
        f"windows of {WINDOW} frames that follow one another, whole, resized to 224 (antialiased bilinear); logits",
        "i3d",
    ),
    "ssim": Measure(
        "SSIM", "+", f"{SOME}, whole; Gaussian window of 11 pixels, sigma 1.5, of 0..255, mean of the colours"
    ),
    "e_fid": Measure(
        "E-FID",
        "-",
        f"{SOME}; Fréchet distance of what the given network says of {SQUARE}",
        "expression",
    ),
    "psnr": Measure("PSNR, dB", "+", f"{SOME}, whole; of the clip's mean squared error, 100 where it is 0"),
    "lpips": Measure("LPIPS", "-", f"{SOME}, whole, not resized; version 0.1, by torchmetrics", "lpips"),
    "identity": Measure(
        "identity, cosine",
        "+",
        f"{SOME}, aligned by eyes, nose and mouth corners; against the real first frame",
        "identity",
    ),
    "sync_c": Measure(
        "Sync-C",
        "+",
        f"{SQUARE}, at 224 pixels; the generated video's own sound, else the real one's",
        "syncnet",
    ),
    "sync_d": Measure("Sync-D", "-", "as Sync-C", "syncnet"),
    "mouth_r": Measure(
        "mouth against the real one, r", "+", f"every frame; the opening as our meter reads it in {SQUARE}; lag 0"
    ),
    "mouth_r_points": Measure(
        "the same by landmarks, r", "+", "every frame; the inner lips' distance by our landmark network; lag 0"
    ),
    "mouth_extent": Measure("mouth's extent, 1 as the real one", "", "slope of our meter's openings on the real ones"),
    "lag": Measure(
        "lag, frames (positive: late)",
        "",
        f"of the best r within {LAGS} frames, in clips where it is {FOLLOWS} or more",
    ),
    "blinks": Measure("blinks a minute", "", "every frame; our meter's lids, closed above 0.5"),
    "blinks_real": Measure("blinks a minute, real", "", "as above"),
    "border_jump": Measure(
        "jump at borders of clips", "-", "mean change of a pixel there over that inside the model's clips"
    ),
    "identity_distance": Measure(
        "identity distance (ours), 0 to 2", "-", f"{SOME}; IdentityNet on {SQUARE}, against the real first frame"
    ),
    "identity_drift": Measure("its drift", "-", "its mean over the last quarter of a clip less that over the first"),
    "readings_frechet": Measure("Fréchet, our meter's readings", "-", f"{SOME}; {', '.join(READINGS)}"),
    "judges_frechet": Measure(
        "Fréchet, our judges' features", "-", f"{SOME}; 128 of the meter's before its last layer and IdentityNet's 48"
    ),
}
FRECHET = ("fid", "fvd", "e_fid", "readings_frechet", "judges_frechet")
