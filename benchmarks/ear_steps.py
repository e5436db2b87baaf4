"""What each part of the ear gives: small audio projections, alike but for one part, judged on real people's mouths.

    python benchmarks/ear_steps.py FOLDER --work FOLDER [--minutes 60] [--steps 500] [--only NAME ...]

FOLDER: people with tracks (letstalk_core/evaluation/speakers.py). --work keeps the neural voices' utterances; give the
`audio` folder of a train-portraits run to use its own. A row is one training of one seed, so 0.02 is noise. Prints a
table: r with the people's own mouths (mean and median of their best lags, mean at lag 0, another's sound) and, of
held-out clips as each row makes them, the median r. Needs espeak-ng and requirements-train.txt; some five minutes a
row, and as long as the neural voices take to speak (half of what they speak) the first time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from letstalk_core.audio import whisper
from letstalk_core.audio.encoder import AudioEncoder
from letstalk_core.audio.load_encoder import load_audio_encoder
from letstalk_core.audio.recording import SAMPLE_RATE
from letstalk_core.config import LetsTalkConfig
from letstalk_core.data.speech import spoken_clips, visemes
from letstalk_core.data.speech.utterances import KeptUtterances
from letstalk_core.evaluation.measures import correlation
from letstalk_core.evaluation.speakers import follow, load_speakers
from letstalk_core.presets import PRESETS
from letstalk_core.training.bundled.train_ear import MouthReader

SECONDS, BATCH, PEAK = 8.0, 32, 1e-3
HELD_OUT_CLIPS = 40
SPEAKING = 0.05  # deviation of an opening
LOOK_AHEAD = 5  # outputs of Whisper, 0.1 s, that a layer may see of what is to come
AS_SHIPPED = dict(spoken_clips.NEURAL_SHARES)


@dataclass(frozen=True)
class Step:
    """One row: what the ear hears through, who speaks, and what else is changed."""

    name: str
    encoder: str = "whisper"
    hidden: int = 128
    window: int = 9
    voices: tuple[tuple[str, float], ...] = tuple(AS_SHIPPED.items())
    clean: bool = False  # no augmentation, music or babble
    jaw: int = visemes.JAW_TAPS
    look_ahead: int | None = None  # of each of Whisper's layers, in its outputs


STEPS = (
    Step("mel, espeak-ng", "mel", voices=()),
    Step("mel, Kokoro", "mel", voices=(("kokoro", 1.0),)),
    Step("mel, Hibari", "mel", voices=(("hibari", 1.0),)),
    Step("mel, all voices", "mel"),
    Step("Whisper, espeak-ng", voices=()),
    Step("Whisper, all voices"),
    Step("without augmentation", clean=True),
    Step("jaws without inertia", jaw=1),
    Step("5 frames of context", window=5),
    Step("13 frames of context", window=13),
    Step("256 wide", hidden=256),
    Step("0.1 s of look-ahead a layer", look_ahead=LOOK_AHEAD),
)


@contextmanager
def changed(step: Step) -> Iterator[None]:
    """Speech as the row wants it."""
    with ExitStack() as stack:
        patch = lambda owner, name, value: stack.enter_context(mock.patch.object(owner, name, value))  # noqa: E731
        patch(spoken_clips, "NEURAL_SHARES", dict(step.voices))
        patch(visemes, "JAW_TAPS", step.jaw)
        if step.clean:
            patch(spoken_clips, "augment", lambda waveform, *_, **__: waveform)
        yield


def encoder_of(step: Step) -> AudioEncoder:
    encoder = load_audio_encoder(step.encoder)
    if step.look_ahead is not None:
        encoder = whisper.load_whisper()
        positions = torch.arange(whisper.POSITIONS)
        ahead = (positions[None] - positions[:, None]) > step.look_ahead
        mask = torch.zeros(ahead.shape).masked_fill(ahead, torch.finfo(torch.float32).min)[None, None]
        for layer in encoder.model.layers:
            layer.self_attn.register_forward_pre_hook(
                lambda module, args, kwargs: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
            )
    return encoder


def small_ear(step: Step, encoder: AudioEncoder) -> LetsTalkConfig:
    return PRESETS["bundled"].with_changes(
        audio_encoder=step.encoder, audio_hidden=step.hidden, audio_window=step.window,
        audio_blocks=encoder.blocks, audio_channels=encoder.channels,
    )  # fmt: skip


def clips(step: Step, encoder: AudioEncoder, count: int, split: str, work: Path) -> tuple[Tensor, Tensor]:
    """Features [count,F,L,E] and openings [count,F] of spoken clips."""
    utterances = KeptUtterances(work / "utterances")
    features, openings = [], []
    with changed(step):
        for number in range(count):
            rng = np.random.default_rng((number, 77))
            waveform, mouth = spoken_clips.speech_clip(rng, split, SECONDS, utterances=utterances)
            features.append(encoder.encode(torch.from_numpy(waveform), SAMPLE_RATE, spoken_clips.FPS).half())
            openings.append(torch.from_numpy(mouth[:, 0]))
    return torch.stack(features), torch.stack(openings)


def train(reader: MouthReader, features: Tensor, openings: Tensor, steps: int) -> None:
    reach = reader.projection.config.audio.window // 2
    optimizer = torch.optim.AdamW(reader.parameters(), PEAK, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    scale = openings.std()
    for _ in range(steps):
        chosen = torch.from_numpy(rng.integers(0, len(features), BATCH))
        heard = features[chosen].float()
        heard = torch.nn.functional.dropout(heard + 0.1 * torch.randn_like(heard), 0.3)
        loss = ((reader.along(heard)[..., 0] - openings[chosen, reach:-reach]) / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def opening(reader: MouthReader, features: Tensor) -> np.ndarray:
    """Features [F,L,E] -> openings [F]."""
    reach = reader.projection.config.audio.window // 2
    frames = torch.arange(-reach, len(features) + reach).clamp(0, len(features) - 1)
    return reader.along(features[frames][None].float())[0, :, 0].numpy()


def row(step: Step, people: list, arguments: argparse.Namespace) -> str:
    encoder = encoder_of(step)
    torch.manual_seed(0)
    reader = MouthReader(small_ear(step, encoder))
    made = clips(step, encoder, round(60 * arguments.minutes / SECONDS), "train", arguments.work)
    train(reader, *made, arguments.steps)
    features, truth = clips(step, encoder, HELD_OUT_CLIPS, "heldout", arguments.work)
    own = [
        correlation(opening(reader, x), y.numpy()) for x, y in zip(features, truth, strict=True) if y.std() > SPEAKING
    ]
    heard = []
    for person in people:
        samples = torch.cat(list(person.recording.mono_16k()))
        heard.append(encoder.encode(samples[None], SAMPLE_RATE, spoken_clips.FPS)[: len(person.opening)])
    found = follow([opening(reader, x) for x in heard], people)
    mean = {name: np.mean([values[name] for values in found["speakers"].values()]) for name in ("r", "r_at_lag_0")}
    return (
        f"| {step.name} | {mean['r']:.2f} | {found['median']['r']:.2f} | {mean['r_at_lag_0']:.2f} | "
        f"{found['median']['r_of_anothers_sound']:.2f} | {np.median(own):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="of speech that each ear learns from")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], metavar="NAME")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    people = load_speakers(arguments.folder, spoken_clips.FPS)
    print("| | mean r | median r | mean r at lag 0 | another's sound | held-out voices |\n|---|---|---|---|---|---|")
    for step in STEPS:
        if not arguments.only or step.name in arguments.only:
            print(row(step, people, arguments), flush=True)


if __name__ == "__main__":
    main()
