"""Evaluation of a model on held-out people and speech, and on real recordings. Writes JSON and contact sheets."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from ..audio.recording import read_audio
from ..errors import InputError
from ..picture.portrait import Portrait
from ..pipeline import LetsTalkPipeline
from ..pixels import images_to_pixels, pixels_to_images
from ..video.clips import ClipSampler, SamplingSettings
from ..video.controls import AskedFor
from . import measures
from .held_out import Pair, held_out_pairs, held_out_portrait
from .meter import READINGS, FaceMeter, load_meter
from .speakers import TRACKS, Speaker, draw_speakers, fit_read_out, follow, load_speakers, speakers_table

METER = Path(__file__).resolve().parent / "face_meter.safetensors"
OPEN, BLINK = READINGS.index("open"), READINGS.index("blink")
SHEET_FRAMES = 48  # of each recording on a contact sheet
JUDGED_EVERY = 5  # frames: one that SSIM and the autoencoder are judged on, which take longest
STILL = 0.02  # deviation of a control over a clip, below which there is nothing to follow


def generate_frames(
    pipeline: LetsTalkPipeline, portrait: torch.Tensor, waveform: np.ndarray, rate: int, settings: SamplingSettings
) -> np.ndarray:
    """The video that a model makes of a portrait image [3,H,W] in -1..1 and mono samples [S]: uint8 [F,H,W,3]."""
    return frames_of(pipeline, portrait, pipeline.encode_audio(torch.from_numpy(waveform)[None], rate), settings)


def frames_of(
    pipeline: LetsTalkPipeline, portrait: torch.Tensor, features: torch.Tensor, settings: SamplingSettings
) -> np.ndarray:
    """Frames uint8 [F,H,W,3] of a portrait image [3,H,W] in -1..1 that speaks features [F,L,E]."""
    square = whole_portrait(portrait)
    sampler, decode = (
        ClipSampler(pipeline.model, pipeline.encode_portrait(square), features, settings),
        pipeline.decoder(square),
    )
    return np.concatenate([images_to_pixels(decode(clip.latents)).numpy() for clip in sampler.clips()])


def whole_portrait(image: torch.Tensor) -> Portrait:
    """An image [3,S,S] in -1..1 as the crop that it is."""
    size = image.shape[-1]
    return Portrait(image, np.eye(2, 3), (size, size))


def score_pair(pair: Pair, frames: np.ndarray, true_frames: np.ndarray, meter: FaceMeter, pipeline) -> dict:
    """Every number of one held-out pair, of frames uint8 [F,H,W,3]; those under "_" are for pooling over the pairs."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    read, read_true = meter.read(frames), meter.read(true_frames)
    truth = {name: pair.track(name) for name in READINGS}
    best, lag = measures.lagged_correlation(read[:, OPEN], truth["open"])
    mouth, portrait = pair.mouth(), pair.portrait
    everywhere = np.ones_like(mouth)
    still_frames = images_to_pixels(portrait).numpy()[None].repeat(len(frames), 0)
    some = slice(None, None, JUDGED_EVERY)
    made, real, still = (pixels_to_images(video[some]) for video in (frames, true_frames, still_frames))
    decode = pipeline.decoder(whole_portrait(portrait))
    reconstructed = images_to_pixels(decode(pipeline.autoencoder.encode(real))).numpy()
    outside = measures.masked_psnr(frames, true_frames, ~mouth)
    followed = {}
    for i, name in enumerate(READINGS):
        moves = truth[name].std() > STILL
        for label, reading in ((f"{name}_r", read), (f"{name}_r_of_true_frames", read_true)):
            followed[label] = measures.correlation(reading[:, i], truth[name]) if moves else np.nan
        # 1 where the face moves as far as the true one: r is blind to a mouth that hardly opens
        followed[f"{name}_extent"] = measures.slope(read[:, i], read_true[:, i]) if moves else np.nan
    return {
        **followed,
        "open_r_best": best,
        "open_lag": lag,
        "border_jump": measures.border_jump(frames, pipeline.config.transformer.clip_frames),
        "psnr": measures.masked_psnr(frames, true_frames, everywhere),
        "psnr_outside_mouth": outside,
        "psnr_outside_mouth_still_head": outside if pair.still else np.nan,
        "psnr_still_portrait": measures.masked_psnr(still_frames, true_frames, everywhere),
        "ssim": float(ssim(made, real, data_range=2.0)),
        "ssim_still_portrait": float(ssim(still, real, data_range=2.0)),
        "autoencoder_psnr": measures.masked_psnr(reconstructed, true_frames[some], everywhere),
        "autoencoder_psnr_mouth": measures.masked_psnr(reconstructed, true_frames[some], mouth),
        "_closed": pair.closed,
        "_rest": read_true[pair.closed, OPEN].mean() if pair.closed.any() else read_true[:, OPEN].min(),
        "_true_frames_open": read_true[:, OPEN],
        "_blink": read[:, BLINK],
        "_true_frames_blink": read_true[:, BLINK],
        "_open": read[:, OPEN],
        "_true_open": truth["open"],
    }


def summarise_pairs(rows: list[dict], fps: float) -> dict:
    """The rows of score_pair in one: means over the pairs, shares that reach a bar, and counts over all frames."""
    result = {}
    for name in (key for key in rows[0] if not key.startswith("_")):
        values = np.array([row[name] for row in rows], float)
        values = values[np.isfinite(values)]
        if len(values):  # nobody smiles in these pairs
            parts = {"mean": values.mean(), "median": np.median(values), "least": values.min(), "most": values.max()}
            result[name] = {**parts, "interval": measures.bootstrap_interval(values)}
    shuffled = [
        measures.correlation(row["_open"], rows[(i + 1) % len(rows)]["_true_open"]) for i, row in enumerate(rows)
    ]
    result["open_r_shuffled"] = {"mean": float(np.mean(shuffled)), "mean_size": float(np.mean(np.abs(shuffled)))}
    result["share_open_r_at_least_0.9"] = float(np.mean([row["open_r"] >= 0.9 for row in rows]))
    another = [rows[(i + 1) % len(rows)]["_closed"] for i in range(len(rows))]
    for name, reading, frames in (
        ("mbp_closed", "_open", [row["_closed"] for row in rows]),
        ("mbp_closed_true", "_true_frames_open", [row["_closed"] for row in rows]),
        ("mbp_closed_shuffled", "_open", another),
    ):
        found = [measures.closed_share(row[reading], at, row["_rest"]) for row, at in zip(rows, frames, strict=True)]
        closed, every = np.sum(found, axis=0)
        result[name] = float(closed / max(1, every))
    result["mbp_frames"] = int(sum(row["_closed"].sum() for row in rows))
    for name, reading in (("blinks_per_minute", "_blink"), ("blinks_per_minute_true", "_true_frames_blink")):
        result[name] = measures.blinks_per_minute(np.concatenate([row[reading] for row in rows]), fps)
    return result


def evenly_spaced(frames: np.ndarray, count: int = 12) -> np.ndarray:
    """A copy of so many frames of a video [F,H,W,3], the first and the last among them."""
    return frames[np.linspace(0, len(frames) - 1, count).astype(int)]


def contact_sheet(path: Path, rows: list[np.ndarray]) -> None:
    """Write a PNG with one row of evenly spaced frames for each video uint8 [F,H,W,3]."""
    strips = [np.concatenate(list(evenly_spaced(frames)), 1) for frames in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(strips, 0), cv2.COLOR_RGB2BGR))


def recordings_in(folder: Path) -> list[Path]:
    """The files of a folder by their names. InputError for fewer than two: shuffling needs another one."""
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if len(paths) < 2:
        raise InputError(f"{folder} holds {len(paths)} recordings; give a folder with at least two.")
    return paths


def evaluate_speech(
    pipeline, meter: FaceMeter, paths: list[Path], output: Path, settings: SamplingSettings, drawings: bool
) -> dict:
    """Correlation of the mouth's opening with each recording's own envelope, and with the next one's ("r_shuffled").

    Returns them by file names; writes the contact sheet recordings.png.
    """
    openings, envelopes, sheets = [], [], []
    for i, path in enumerate(tqdm(paths, desc="recordings", disable=None)):
        waveform, rate = read_audio(path, duration=8.0)
        mono = waveform.mean(0).numpy()
        portrait = held_out_portrait(i, pipeline.config.image_size, drawings)
        frames = generate_frames(pipeline, portrait, mono, rate, settings)
        openings.append(meter.read(frames)[:, OPEN])
        envelopes.append(measures.envelope(mono, rate, len(frames), pipeline.config.fps))
        sheets.append(frames[:SHEET_FRAMES])
    contact_sheet(output / "recordings.png", sheets)
    result = {}
    for i, path in enumerate(paths):
        other = envelopes[(i + 1) % len(paths)]
        length = min(len(other), len(openings[i]))
        result[path.name] = {
            "r": measures.correlation(openings[i], envelopes[i]),
            "r_shuffled": measures.correlation(openings[i][:length], other[:length]),
        }
    return result


def evaluate_speakers(
    pipeline, meter: FaceMeter, speakers: list[Speaker], output: Path, settings: SamplingSettings, drawings: bool
) -> dict:
    """How the mouth follows real people's own, by what it is read from ("tokens", "frames"): see speakers.follow.

    Each of them is spoken by somebody else who was held out. Writes the plot speakers.png, the contact sheet
    people.png and, to stderr, a table.
    """
    read_out, sheets, ours = fit_read_out(pipeline), [], {"tokens": [], "frames": []}
    for i, speaker in enumerate(tqdm(speakers, desc="speakers", disable=None)):
        stream = pipeline.stream_audio(speaker.recording)
        features = stream[0 : len(stream)]
        frames = frames_of(pipeline, held_out_portrait(i, pipeline.config.image_size, drawings), features, settings)
        ours["tokens"].append(read_out(features))
        ours["frames"].append(meter.read(frames)[:, OPEN])
        sheets.append(frames[:SHEET_FRAMES])
    report = {kind: follow(openings, speakers) for kind, openings in ours.items()}
    output.mkdir(parents=True, exist_ok=True)
    draw_speakers(speakers, ours, report, pipeline.config.fps, output / "speakers.png")
    contact_sheet(output / "people.png", sheets)
    tqdm.write(speakers_table(report), file=sys.stderr)
    return report


def evaluate(
    model: Path, output: Path, pairs: int, seconds: float, speech: Path | None = None,
    settings: SamplingSettings | None = None, drawings: bool = False,
) -> str:  # fmt: skip
    """Generate and score held-out pairs, write output/report.json and contact sheets; returns the JSON.

    speech: a folder of real recordings, scored against their envelopes, or of people with tracks.npz (speakers.py),
    scored against their own mouths. pairs 0: only that. settings: of the sampling; every pair has a seed of its own.
    drawings: they speak instead of people.
    """
    try:
        import matplotlib  # noqa: F401
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise InputError(f"evaluate needs {error.name}; run pip install -r requirements-dev.txt.") from None
    if pairs < 2 and (pairs or speech is None):
        raise InputError(f"The number of pairs is {pairs}; shuffled audio needs at least 2, or 0 with --speech.")
    if not 1 <= seconds <= 60:
        raise InputError(f"The length of a pair is {seconds} seconds; choose 1 to 60.")
    settings = settings or SamplingSettings()
    pipeline, meter, people, recordings = LetsTalkPipeline.load(model, "cpu"), load_meter(METER), [], []
    if speech is not None and (speech / TRACKS).exists():
        people = load_speakers(speech, pipeline.config.fps)
    elif speech is not None:
        recordings = recordings_in(speech)
    report = {"model": Path(model).name, "pairs": pairs, "seconds": seconds, "drawings": drawings}
    report |= {"memory_noise": settings.memory_noise, "articulation": settings.articulation}
    if pairs:
        report |= evaluate_pairs(pipeline, meter, pairs, seconds, output, settings, drawings)
    if recordings:
        report["recordings"] = evaluate_speech(pipeline, meter, recordings, output, settings, drawings)
    if people:
        report["people"] = evaluate_speakers(pipeline, meter, people, output, settings, drawings)
    text = json.dumps(report, indent=2)
    (output / "report.json").write_text(text + "\n")
    return text


def evaluate_pairs(
    pipeline, meter: FaceMeter, count: int, seconds: float, output: Path, settings: SamplingSettings, drawings: bool
) -> dict:
    """The numbers of `count` held-out pairs in one; the first six are drawn on the contact sheet pairs.png.

    The model is asked for the truth's own motion, as far as it can be.
    """
    rows, sheets, size = [], [], pipeline.config.image_size
    pairs = held_out_pairs(count, seconds, size, drawings)
    for i, pair in enumerate(tqdm(pairs, total=count, desc="pairs", disable=None)):
        asked = AskedFor(tracks=pair.asked(pipeline.config.departures.controls))
        own = replace(settings, seed=i, asked=asked)
        frames = generate_frames(pipeline, pair.portrait, pair.waveform, 16000, own)
        true_frames = pair.frames()
        rows.append(score_pair(pair, frames, true_frames, meter, pipeline))
        if i < 6:
            sheets += [true_frames, frames]
    contact_sheet(output / "pairs.png", sheets)
    return summarise_pairs(rows, pipeline.config.fps)
