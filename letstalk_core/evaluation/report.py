"""Evaluation of a model on held-out drawings and speech, and on real recordings. Writes JSON and contact sheets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from ..audio.recording import read_audio
from ..data.drawn.motion import COLUMN
from ..data.drawn.talking_clips import TalkingClip, talking_clip
from ..errors import InputError
from ..picture.portrait import Portrait
from ..pipeline import LetsTalkPipeline
from ..pixels import images_to_pixels, pixels_to_images
from ..video.clips import ClipSampler, SamplingSettings
from . import measures
from .meter import READINGS, FaceMeter, load_meter
from .speakers import TRACKS, Speaker, draw_speakers, fit_read_out, follow, load_speakers, speakers_table

METER = Path(__file__).resolve().parent / "face_meter.safetensors"
FIRST_PAIR = 10_000  # held-out clips from here on: none was looked at while training was tuned
SPEAKING = 0.05  # deviation of the opening over a clip, below which there is no speech to follow
OPEN, WIDTH, ROUND, BLINK = (READINGS.index(name) for name in ("open", "width", "round", "blink"))


def held_out_clips(count: int, seconds: float) -> Iterator[TalkingClip]:
    """Yield `count` held-out clips in which somebody speaks: a few of the generator's are noise alone, for training."""
    seed = FIRST_PAIR
    while count:
        clip = talking_clip(seed, seconds, split="heldout")
        seed += 1
        if clip.controls[:, COLUMN["open"]].std() > SPEAKING:
            count -= 1
            yield clip


def generate_frames(
    pipeline: LetsTalkPipeline, portrait: torch.Tensor, waveform: np.ndarray, rate: int, settings: SamplingSettings
) -> np.ndarray:
    """The video that a model makes of a portrait image [3,H,W] in -1..1 and mono samples [S]: uint8 [F,H,W,3]."""
    return frames_of(pipeline, portrait, pipeline.encode_audio(torch.from_numpy(waveform)[None], rate), settings)


def frames_of(
    pipeline: LetsTalkPipeline, portrait: torch.Tensor, features: torch.Tensor, settings: SamplingSettings
) -> np.ndarray:
    """Frames uint8 [F,H,W,3] of a portrait image [3,H,W] in -1..1 that speaks features [F,L,E]."""
    square = _whole(portrait)
    sampler, decode = (
        ClipSampler(pipeline.model, pipeline.encode_portrait(square), features, settings),
        pipeline.decoder(square),
    )
    return np.concatenate([images_to_pixels(decode(clip.latents)).numpy() for clip in sampler.clips()])


def _whole(image: torch.Tensor) -> Portrait:
    """An image [3,S,S] in -1..1 as the crop that it is."""
    size = image.shape[-1]
    return Portrait(image, np.eye(2, 3), (size, size))


def score_pair(clip: TalkingClip, frames: np.ndarray, true_frames: np.ndarray, meter: FaceMeter, pipeline) -> dict:
    """Every number of one held-out pair, of frames uint8 [F,H,W,3]; those under "_" are for pooling over the pairs."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    read, read_true = meter.read(frames), meter.read(true_frames)
    truth = {name: clip.controls[:, COLUMN[name]] for name in READINGS}
    best, lag = measures.lagged_correlation(read[:, OPEN], truth["open"])
    mouth = clip.avatar.region("mouth")
    made, real = pixels_to_images(frames), pixels_to_images(true_frames)
    start = pixels_to_images(clip.portrait[None])
    decode = pipeline.decoder(_whole(start[0]))
    reconstructed = images_to_pixels(decode(pipeline.autoencoder.encode(real))).numpy()
    return {
        "open_r": measures.correlation(read[:, OPEN], truth["open"]),
        "open_r_best": best,
        "open_lag": lag,
        "open_r_of_true_frames": measures.correlation(read_true[:, OPEN], truth["open"]),
        "width_r": measures.correlation(read[:, WIDTH], truth["width"]),
        "round_r": measures.correlation(read[:, ROUND], truth["round"]),
        "border_jump": measures.border_jump(frames, pipeline.config.transformer.clip_frames),
        "psnr": measures.masked_psnr(frames, true_frames, np.ones_like(mouth)),
        "psnr_outside_mouth": measures.masked_psnr(frames, true_frames, ~mouth),
        "psnr_still_portrait": measures.masked_psnr(
            np.repeat(clip.portrait[None], len(frames), 0), true_frames, mouth | ~mouth
        ),
        "ssim": float(ssim(made, real, data_range=2.0)),
        "ssim_still_portrait": float(ssim(start.expand_as(real).contiguous(), real, data_range=2.0)),
        "autoencoder_psnr": measures.masked_psnr(reconstructed, true_frames, np.ones_like(mouth)),
        "autoencoder_psnr_mouth": measures.masked_psnr(reconstructed, true_frames, mouth),
        "_closed": measures.closed_share(read[:, OPEN], clip.closed),
        "_closed_true": measures.closed_share(read_true[:, OPEN], clip.closed),
        "_blink": read[:, BLINK],
        "_open": read[:, OPEN],
        "_true_open": truth["open"],
    }


def summarise_pairs(rows: list[dict], fps: float) -> dict:
    """The rows of score_pair in one: means over the pairs, shares that reach a bar, and counts over all frames."""
    result = {}
    for name in (key for key in rows[0] if not key.startswith("_")):
        values = np.array([row[name] for row in rows], float)
        result[name] = {"mean": values.mean(), "median": np.median(values), "least": values.min(), "most": values.max()}
    shuffled = [
        measures.correlation(row["_open"], rows[(i + 1) % len(rows)]["_true_open"]) for i, row in enumerate(rows)
    ]
    result["open_r_shuffled"] = {"mean": float(np.mean(shuffled)), "mean_size": float(np.mean(np.abs(shuffled)))}
    result["share_open_r_at_least_0.9"] = float(np.mean([row["open_r"] >= 0.9 for row in rows]))
    for name in ("_closed", "_closed_true"):
        closed, all_frames = np.sum([row[name] for row in rows], axis=0)
        result[f"mbp_closed{name.removeprefix('_closed')}"] = float(closed / max(1, all_frames))
    result["mbp_frames"] = int(all_frames)
    result["blinks_per_minute"] = measures.blinks_per_minute(np.concatenate([row["_blink"] for row in rows]), fps)
    return result


def contact_sheet(path: Path, rows: list[np.ndarray], columns: int = 12) -> None:
    """Write a PNG with one row of evenly spaced frames for each video uint8 [F,H,W,3]."""
    strips = [np.concatenate(list(frames[np.linspace(0, len(frames) - 1, columns).astype(int)]), 1) for frames in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(strips, 0), cv2.COLOR_RGB2BGR))


def recordings_in(folder: Path) -> list[Path]:
    """The files of a folder by their names. InputError for fewer than two: shuffling needs another one."""
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if len(paths) < 2:
        raise InputError(f"{folder} holds {len(paths)} recordings; give a folder with at least two.")
    return paths


def evaluate_speech(pipeline, meter: FaceMeter, paths: list[Path], output: Path, settings: SamplingSettings) -> dict:
    """Correlation of the mouth's opening with each recording's own envelope, and with the next one's ("r_shuffled").

    Returns them by file names; writes the contact sheet recordings.png.
    """
    openings, envelopes, sheets = [], [], []
    for i, path in enumerate(tqdm(paths, desc="recordings", disable=None)):
        waveform, rate = read_audio(path, duration=8.0)
        mono = waveform.mean(0).numpy()
        portrait = pixels_to_images(talking_clip(FIRST_PAIR + i, 1.0, split="heldout").portrait[None])[0]
        frames = generate_frames(pipeline, portrait, mono, rate, settings)
        openings.append(meter.read(frames)[:, OPEN])
        envelopes.append(measures.envelope(mono, rate, len(frames), pipeline.config.fps))
        sheets.append(frames[: min(len(frames), 48)])
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
    pipeline, meter: FaceMeter, speakers: list[Speaker], output: Path, settings: SamplingSettings
) -> dict:
    """How the mouth follows real people's own, by what it is read from ("tokens", "frames"): see speakers.follow.

    Each of them is spoken by another held-out drawing. Writes the plot speakers.png and, to stderr, a table.
    """
    read_out, ours = fit_read_out(pipeline), {"tokens": [], "frames": []}
    for i, speaker in enumerate(tqdm(speakers, desc="speakers", disable=None)):
        stream = pipeline.stream_audio(speaker.recording)
        features = stream[0 : len(stream)]
        portrait = pixels_to_images(talking_clip(FIRST_PAIR + i, 1.0, split="heldout").portrait[None])[0]
        ours["tokens"].append(read_out(features))
        ours["frames"].append(meter.read(frames_of(pipeline, portrait, features, settings))[:, OPEN])
    report = {kind: follow(openings, speakers) for kind, openings in ours.items()}
    output.mkdir(parents=True, exist_ok=True)
    draw_speakers(speakers, ours, report, pipeline.config.fps, output / "speakers.png")
    tqdm.write(speakers_table(report), file=sys.stderr)
    return report


def evaluate(
    model: Path, output: Path, pairs: int, seconds: float, speech: Path | None = None, memory_noise: float = 0.0
) -> str:
    """Generate and score held-out pairs, write output/report.json and contact sheets; returns the JSON.

    speech: a folder of real recordings, scored against their envelopes, or of people with tracks.npz (speakers.py),
    scored against their own mouths. pairs 0: only that.
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
    pipeline, meter, people, recordings = LetsTalkPipeline.load(model, "cpu"), load_meter(METER), [], []
    if speech is not None and (speech / TRACKS).exists():
        people = load_speakers(speech, pipeline.config.fps)
    elif speech is not None:
        recordings = recordings_in(speech)
    rows, sheets = [], []
    for i, clip in enumerate(tqdm(held_out_clips(pairs, seconds), total=pairs, desc="pairs", disable=None)):
        settings = SamplingSettings(seed=i, memory_noise=memory_noise)
        portrait = pixels_to_images(clip.portrait[None])[0]
        frames, true_frames = generate_frames(pipeline, portrait, clip.waveform, 16000, settings), clip.frames()
        rows.append(score_pair(clip, frames, true_frames, meter, pipeline))
        if i < 6:
            sheets += [true_frames, frames]
    report = {"model": Path(model).name, "pairs": pairs, "seconds": seconds}
    settings = SamplingSettings(memory_noise=memory_noise)
    if pairs:
        contact_sheet(output / "pairs.png", sheets)
        report |= summarise_pairs(rows, pipeline.config.fps)
    if recordings:
        report["recordings"] = evaluate_speech(pipeline, meter, recordings, output, settings)
    if people:
        report["people"] = evaluate_speakers(pipeline, meter, people, output, settings)
    text = json.dumps(report, indent=2)
    (output / "report.json").write_text(text + "\n")
    return text
