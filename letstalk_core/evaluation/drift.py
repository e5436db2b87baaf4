"""How a long video changes: a row of numbers for each second, their slopes, and a plot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..files import check_file, create_part, write_durably
from ..picture.picture_file import read_image
from ..picture.portrait import crop_portrait
from ..pixels import images_to_pixels, pixels_to_pictures
from ..video.reader import iter_video_frames, probe
from .identity import load_identity
from .meter import REDUCED

FROZEN_BELOW = 0.02  # mean change of a pixel, in levels of 255, below which a frame repeats the one before it
IDENTITY_FRAMES = 5  # frames a second that the identity is read from
SERIES = {  # what is measured, by its name in the report
    "identity": "distance of the person to the portrait, 0 (the same) to 2",
    "brightness": "mean L* of the picture, 0 to 100",
    "colour": "distance of the mean colour from the first second's, in a* b* units",
    "sharpness": "standard deviation of the Laplacian, in levels of 255",
    "frozen": "share of frames that repeat the one before",
    "change": "mean change of a pixel from frame to frame inside clips, in levels of 255",
    "border": "the same at the borders of clips",
}


def measure_drift(video: str | Path, portrait: str | Path | None = None, clip_frames: int = 16) -> dict:
    """Measure a video: series of one value a second for the names in SERIES, their means and slopes a minute.

    Returns {"seconds", "border_jump", "means", "slopes_per_minute", "series"}, ready for JSON.

    portrait: the picture that the video was made of, cropped here as it was then; None takes the video's first second.
    clip_frames: of the model, F. A value that a second does not have (no border in it) is None. InputError where the
    files are not what they should be, or there is less than two seconds.
    """
    info = probe(video)
    fps = round(info.fps)
    if info.frames < 2 * fps:
        raise InputError(f"{video} lasts {info.duration:.1f} s; drift takes two seconds at least.")
    net, reference = load_identity(), None
    if portrait is not None:
        image = crop_portrait(read_image(portrait), REDUCED, on_missing="crop").image
        reference = net.read(images_to_pixels(image[None]).numpy())[0]
    rows, held, before, first_colour = [], [], None, None
    for number, frame in enumerate(iter_video_frames(video)):
        held.append(_measures(frame, before, number % clip_frames == 0))
        before = frame
        if len(held) < fps and number < info.frames - 1:
            continue
        if len(held) > fps // 2:  # what is left of a second says too little
            pictures = [row["picture"] for row in held[:: max(1, fps // IDENTITY_FRAMES)]]
            vectors = net.read(np.stack(pictures))
            if reference is None:
                reference = vectors.mean(0) / np.linalg.norm(vectors.mean(0))
            colour = np.mean([row["colour"] for row in held], 0)
            first_colour = colour if first_colour is None else first_colour
            rows.append(_second(held, float(1 - (vectors @ reference).mean()), colour - first_colour))
        held = []
    series = {name: [row[name] if np.isfinite(row[name]) else None for row in rows] for name in SERIES}
    return {"seconds": len(rows), **summarise_series(series), "series": series}


def summarise_series(series: dict[str, list]) -> dict:
    """Means and slopes a minute of series of one value a second, and the change at borders over that inside clips."""
    means, slopes = {}, {}
    for name, values in series.items():
        values = np.array(values, float)
        known = np.isfinite(values)
        means[name] = float(values[known].mean()) if known.any() else None
        line = np.polyfit(np.flatnonzero(known) / 60, values[known], 1) if known.sum() > 1 else [None]
        slopes[name] = None if line[0] is None else float(line[0])
    jump = means["border"] / means["change"] if means["change"] and means["border"] is not None else None
    return {"border_jump": jump, "means": means, "slopes_per_minute": slopes}


def _measures(frame: np.ndarray, before: np.ndarray | None, at_border: bool) -> dict:
    """The numbers of one frame uint8 [H,W,3], with the frame before it, and the frame reduced for IdentityNet."""
    lab = cv2.cvtColor(pixels_to_pictures(frame), cv2.COLOR_RGB2LAB)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    change = np.nan if before is None else float(np.abs(frame.astype(np.int16) - before).mean())
    return {
        "brightness": float(lab[..., 0].mean()),
        "colour": lab[..., 1:].mean((0, 1)),
        "sharpness": float(cv2.Laplacian(grey, cv2.CV_32F).std()),
        "frozen": change < FROZEN_BELOW,
        "change": np.nan if at_border else change,
        "border": change if at_border else np.nan,
        "picture": cv2.resize(frame, (REDUCED, REDUCED), interpolation=cv2.INTER_AREA),
    }


def _second(held: list[dict], identity: float, colour: np.ndarray) -> dict:
    """One value for each name in SERIES from the numbers of a second's frames."""

    def mean(name: str) -> float:
        values = np.array([row[name] for row in held], float)
        return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")

    plain = {name: mean(name) for name in ("brightness", "sharpness", "frozen", "change", "border")}
    return {"identity": identity, "colour": float(np.linalg.norm(colour)), **plain}


def draw(reports: dict[str, dict], path: Path) -> None:
    """Plot reports of measure_drift, by their labels, into a file: a panel for each series, a line for each report."""
    from matplotlib.figure import Figure

    figure = Figure((10, 8), layout="constrained")
    for axes, (name, text) in zip(figure.subplots(4, 2).flat, SERIES.items(), strict=False):
        for label, report in reports.items():
            values = np.array(report["series"][name], float)
            axes.plot(np.arange(len(values))[np.isfinite(values)], values[np.isfinite(values)], lw=0.8, label=label)
        axes.set_title(f"{name}: {text}", fontsize=7)
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
    figure.axes[-1].axis("off")
    figure.axes[-1].legend(*figure.axes[0].get_legend_handles_labels(), loc="center")
    figure.supxlabel("seconds", fontsize=8)
    figure.savefig(path, dpi=100)


def drift(video: str | Path, portrait: str | Path | None, clip_frames: int, output: Path | None) -> str:
    """Measure a video and write OUTPUT.json and OUTPUT.png (default: beside the video); returns means and slopes."""
    if clip_frames < 1:
        raise InputError(f"The length of a clip is {clip_frames} frames; it is at least 1.")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("The plot needs matplotlib; run pip install matplotlib.")
    video = check_file(video, "video")
    stem = output or video.with_name(f"{video.stem}-drift")
    create_part(Path(f"{stem}.json")).unlink()  # before the work: can it be written?
    report = measure_drift(video, portrait, clip_frames)
    write_durably(Path(f"{stem}.json"), json.dumps(report, indent=2).encode())
    draw({video.stem: report}, Path(f"{stem}.png"))
    told = {name: value for name, value in report.items() if name != "series"}
    return json.dumps({**told, "written": [f"{stem}.json", f"{stem}.png"]}, indent=2)
