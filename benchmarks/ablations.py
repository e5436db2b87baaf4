"""The paper's ablations at a scale that two CPU cores can bear: every variant with the same budget, seeds and test.

    mkdir -p runs/ablations
    git show 68c550d:weights/teacher.safetensors > runs/ablations/teacher.safetensors
    git show 474b488:weights/letstalk-avatar-128.safetensors > runs/ablations/drawn.safetensors
    python benchmarks/ablations.py fusion [WORK]    # Tables 3 and 4 and the diversity experiment: 5 models x 3 seeds
    python benchmarks/ablations.py portrait [WORK]  # Table 3 under one change at a time: why is its order so?
    python benchmarks/ablations.py memory [WORK]    # each part of the noise regularisation, on 60 seconds of video
    python benchmarks/ablations.py table [WORK]     # writes docs/ablations.json and prints its tables as Markdown

WORK (default runs/ablations) keeps puppets, speech, clips, models and results; what is there is not done again.
`fusion` is of puppets of photographs in latents of the bundled autoencoder, which takes the person from the portrait
itself; `portrait` and `memory` are of drawn people in latents of the small DC-AE that was bundled before, which hold
all of a picture. Needs requirements-dev.txt and espeak-ng.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.autoencoders import find_autoencoder  # noqa: E402
from letstalk_core.config import CONTROLS  # noqa: E402
from letstalk_core.data.people.pictures import PuppetPictures  # noqa: E402
from letstalk_core.data.source import Window  # noqa: E402
from letstalk_core.data.speech.pairs import SpokenPairs  # noqa: E402
from letstalk_core.data.stored_clips import CONTEXT, StoredClipSource  # noqa: E402
from letstalk_core.evaluation import report  # noqa: E402
from letstalk_core.evaluation.clip_judges import judged  # noqa: E402
from letstalk_core.evaluation.frechet import frechet_distance  # noqa: E402
from letstalk_core.evaluation.held_out import held_out_pairs  # noqa: E402
from letstalk_core.evaluation.identity import load_identity  # noqa: E402
from letstalk_core.evaluation.meter import load_meter  # noqa: E402
from letstalk_core.pipeline import BUNDLED_MODEL, LetsTalkPipeline  # noqa: E402
from letstalk_core.pixels import images_to_pixels  # noqa: E402
from letstalk_core.training.build import build_model  # noqa: E402
from letstalk_core.training.bundled.teacher import Teacher  # noqa: E402
from letstalk_core.training.bundled.told_clips import ToldClips  # noqa: E402
from letstalk_core.training.loop import make_accelerator  # noqa: E402
from letstalk_core.training.train import train, train_transformer  # noqa: E402
from letstalk_core.training.training_config import TransformerTraining  # noqa: E402
from letstalk_core.video.clips import SamplingSettings  # noqa: E402

SIZE = 256  # pixels
STEPS, SEEDS, PAIRS, SECONDS, CLIPS = 700, 3, 12, 2.56, 3000
DRAWN_STEPS, DRAWN_CLIPS = 400, 3000
PUPPETS, SPOKEN = 1000, 1650  # what the told clips are of: people, and stretches of speech
LENGTH, AT_ONCE = 20, 8  # frames of a told clip; clips that are told at a time
MEMORY_SEEDS, ROLL_OUTS = 1, 3
PEOPLE, DRAWS = 8, 4  # of the diversity experiment: portraits, and videos of each

# Without the bundled model's departures: the portrait reaches the frames through its fusion alone, and clips stand
# alone, so that no memory carries the portrait past it.
MODEL = dict(
    depth=4, width=96, heads=6, mlp_ratio=2.0, latent_channels=32, patch_size=2, clip_frames=16, memory_frames=0,
    audio_encoder="whisper", audio_blocks=2, audio_channels=768, audio_tokens=4, audio_width=192, audio_hidden=256,
    audio_window=9, audio_convolutions=True,
    controls=tuple(CONTROLS), objective="x0", learn_variance=False, time_shift=6.0, image_size=SIZE, default_steps=4,
    default_sampler="euler", autoencoder="portrait",
)  # fmt: skip
FUSIONS = [("direct", "direct"), ("siamese", "direct"), ("symbiotic", "direct"), ("symbiotic", "siamese"),
           ("symbiotic", "symbiotic")]  # fmt: skip
PORTRAITS = [fusion for fusion, audio in FUSIONS if audio == "direct"]
DRAWN = dict(image_size=128, autoencoder="dc-ae")
CHANGES = {  # of `portrait`, one at a time; those that it is of; seeds
    "as before": (dict(), PORTRAITS, 1),
    "four times the steps": (dict(steps=4), PORTRAITS, 1),
    "softmax attention": (dict(attention="softmax"), PORTRAITS, SEEDS),
    "relative latents": (dict(relative_latents=True), PORTRAITS, 1),
    "one set of portrait tokens": (dict(portrait_each_frame=False), ["symbiotic"], 1),
}
OFF = dict(memory_pixel_noise=False, memory_noise_steps=0, memory_mask=0.0)
PARTS = {
    "none": OFF,
    "pixel noise": {**OFF, "memory_pixel_noise": True},
    "latent noise": {**OFF, "memory_noise_steps": 50},
    "mask": {**OFF, "memory_mask": 0.25},
    "all three": dict(memory_pixel_noise=True, memory_noise_steps=50, memory_mask=0.25),
    "shared noise": {**OFF, "memory_shared_noise": 0.5},  # our addition, which the drawn model before was trained with
}


class ToldPuppets:
    """Clips of puppets of photographs who speak, as the teacher tells their latents, kept in a folder: StoredClips
    (data/stored_clips.py) without pixels. latents: float16 of the frames [n,T,C,h,w] and of the portraits [n,C,h,w].
    """

    count, length = CLIPS, LENGTH

    def __init__(self, work: Path):
        folder = work / "told"
        if not (folder / "starts.npy").exists():
            self.make(work, folder)
        read = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        self.features, self.regions, self.starts, self.told = (
            read[name] for name in ("features", "regions", "starts", "told")
        )
        self.latents = read["clips"], read["portraits"]

    def make(self, work: Path, folder: Path) -> None:
        workers = os.cpu_count() or 1
        pairs = SpokenPairs(work / "audio" / "pairs", SPOKEN, MODEL["audio_encoder"], work / "audio" / "utterances")
        people = PuppetPictures(work / "puppets", PUPPETS).make(workers)
        teacher, autoencoder = Teacher.load(work / "teacher.safetensors"), find_autoencoder(str(BUNDLED_MODEL))
        window = Window(LENGTH, 0, 2 * CONTEXT + 1, controls=MODEL["controls"])
        told = ToldClips([(people, 1)], pairs.make(workers), autoencoder, teacher, window, torch.device("cpu"))
        plans, parts = told.plans(AT_ONCE), []
        for step in tqdm(range(CLIPS // AT_ONCE), desc="told clips"):
            plan = plans(step)
            batch = told.batch(plan)
            beginning = plan.features[:, :1] == plan.features[:, 1 : CONTEXT + 1]  # what lies before it is its first
            parts.append(
                {
                    "clips": batch["clip"].half().numpy(), "portraits": batch["portrait"].half().numpy(),
                    "features": plan.features, "told": plan.told, "regions": batch["regions"].numpy(),
                    "starts": beginning.all((1, 2, 3)),
                }
            )  # fmt: skip
        folder.mkdir(exist_ok=True)
        for name in parts[0]:
            np.save(folder / f"{name}.npy", np.concatenate([part[name] for part in parts]))

    def asked(self, index: int, around: slice, names: tuple[str, ...]) -> np.ndarray:
        return self.told[index, around][:, [MODEL["controls"].index(name) for name in names]]


def settings(work: Path, name: str, seed: int, model: dict, steps: int = STEPS, **other) -> TransformerTraining:
    autoencoder = work / "drawn.safetensors" if model.get("image_size") == DRAWN["image_size"] else BUNDLED_MODEL
    return TransformerTraining(
        run=str(work / "models" / f"{name}-{seed}"), preset="tiny", model={**MODEL, **model},
        autoencoder=str(autoencoder),
        init_from=str(BUNDLED_MODEL), frozen="^audio_projection",  # of the shapes here only that one fits
        data="avatar", data_path=str(work / "clips"), avatar_clips=DRAWN_CLIPS, seed=seed, steps=steps, batch_size=8,
        learning_rate=2e-3, schedule="cosine", warmup_steps=50, beta2=0.98, gradient_clip=1.0, gradient_clip_start=0,
        ema_decay=0.99, device="cpu", workers=0, first_guess_share=0.35, mouth_weight=8.0, eye_weight=3.0,
        blink_weight=3.0, save_every=500, keep_checkpoints=1, **other,
    )  # fmt: skip


def trained(config: TransformerTraining, puppets: ToldPuppets | None = None) -> Path:
    """The file of one model, trained if it is not there: on puppets, or on the drawn clips that the settings name."""
    done = Path(config.run) / "done.safetensors"
    if done.exists():
        return done
    if puppets is None:
        return train(config).rename(done)
    accelerator = make_accelerator(config, Path(config.run))
    torch.manual_seed(config.seed)
    autoencoder = find_autoencoder(config.autoencoder)
    model = build_model(config, autoencoder, accelerator)
    window = Window.of(model.config, config.first_clip_share, config.memory_pixel_noise)
    source = StoredClipSource(puppets, window, puppets.latents)
    return train_transformer(config, model, autoencoder, source, accelerator).rename(done)


def kept(path: Path, make) -> dict:
    """The JSON at path, made if it is not there."""
    if not path.exists():
        values = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n")
    return json.loads(path.read_text())


class Judge:
    """Held-out people and speech with their true frames, rendered once, and the networks that read faces."""

    def __init__(self, size: int, drawings: bool):
        self.clips = list(held_out_pairs(PAIRS, SECONDS, size, drawings))
        self.truth = [clip.frames() for clip in self.clips]
        self.meter, self.identity = load_meter(report.METER), load_identity()

    def score(self, path: Path) -> dict:
        """How like the true frames, the person and the speech a model's videos are."""
        pipeline = LetsTalkPipeline.load(path, "cpu")
        rows, made, true, distances = [], [], [], []
        for i, (clip, truth) in enumerate(zip(self.clips, self.truth, strict=True)):
            frames = report.generate_frames(pipeline, clip.portrait, clip.waveform, 16000, SamplingSettings(seed=i))
            rows.append(report.score_pair(clip, frames, truth, self.meter, pipeline))
            made.append(judged(self.meter, self.identity, frames))
            true.append(judged(self.meter, self.identity, truth))
            distances.append(float(self.distance(frames, images_to_pixels(clip.portrait[None]).numpy()).mean()))
        summary = report.summarise_pairs(rows, pipeline.config.fps)
        return {
            "identity_distance": float(np.mean(distances)),
            "frechet_distance": frechet_distance(np.concatenate(made), np.concatenate(true)),
            **{name: summary[name]["mean"] for name in ("psnr", "psnr_outside_mouth", "ssim", "open_r", "width_r")},
            "open_r_shuffled": summary["open_r_shuffled"]["mean"],
        }

    def distance(self, frames: np.ndarray, portraits: np.ndarray) -> np.ndarray:
        """Of the person in each frame from the first portrait's, 0 (the same) to 2."""
        return 1 - self.identity.read(frames) @ self.identity.read(portraits)[0]

    def diversity(self, path: Path) -> dict:
        """Motion without audio (tokens of zeros): how much videos of one portrait differ, and how much each moves."""
        pipeline, between, within, jumps = LetsTalkPipeline.load(path, "cpu"), [], [], []
        projection = pipeline.model.audio_projection
        hook = projection.register_forward_hook(lambda module, arguments, tokens: torch.zeros_like(tokens))
        for clip in self.clips[:PEOPLE]:
            portrait, silence = clip.portrait, np.zeros(16000 * 16 // 25, np.float32)
            videos = np.stack(
                [
                    report.generate_frames(pipeline, portrait, silence, 16000, SamplingSettings(seed=100 + i))
                    for i in range(DRAWS)
                ]
            ).astype(np.float32)  # [draws,F,H,W,3]
            between.append(videos.std(0).mean())
            within.append(videos.std(1).mean())
            jumps.append(np.abs(np.diff(videos, axis=1)).mean())
        hook.remove()
        names = ("diversity_between_videos", "diversity_within_video", "frame_change_without_audio")
        return dict(zip(names, (float(np.mean(values)) for values in (between, within, jumps)), strict=True))

    def roll_out(self, path: Path) -> dict:
        """Sixty seconds of each of some people: how far first and last ten seconds are from the portrait."""
        pipeline, rows = LetsTalkPipeline.load(path, "cpu"), []
        for i, clip in enumerate(self.clips[:ROLL_OUTS]):
            speech = np.resize(clip.waveform, 60 * 16000)
            frames = report.generate_frames(pipeline, clip.portrait, speech, 16000, SamplingSettings(seed=i))
            portrait = images_to_pixels(clip.portrait[None]).numpy()
            away = self.distance(frames[::5], portrait)
            outside = ~clip.mouth()
            still = np.repeat(portrait, 250, 0)
            row = {"identity_first_10_s": away[:50].mean(), "identity_last_10_s": away[-50:].mean()}
            row["psnr_to_portrait_first_10_s"] = report.measures.masked_psnr(frames[:250], still, outside)
            row["psnr_to_portrait_last_10_s"] = report.measures.masked_psnr(frames[-250:], still, outside)
            row["sharpness_last_over_first"] = sharpness(frames[-250:]) / sharpness(frames[:250])
            row["border_jump"] = report.measures.border_jump(frames, pipeline.config.transformer.clip_frames)
            rows.append(row)
            report.contact_sheet(path.parent / f"roll-out-{i}.png", [frames])
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def sharpness(frames: np.ndarray) -> float:
    """Mean size of the differences between neighbouring pixels."""
    return float(np.abs(np.diff(frames.astype(np.float32), axis=2)).mean())


def fusion(work: Path) -> None:
    judge, puppets = Judge(SIZE, drawings=False), ToldPuppets(work)
    for seed in range(SEEDS):
        for portrait, audio in FUSIONS:
            name = f"{portrait}-{audio}"
            config = settings(work, name, seed, dict(portrait_fusion=portrait, audio_fusion=audio), **OFF)
            path = trained(config, puppets)
            found = kept(
                work / "results" / f"{name}-{seed}.json",
                lambda path=path: {**judge.score(path), **judge.diversity(path)},
            )
            print(name, seed, found, flush=True)


def portrait(work: Path) -> None:
    judge = Judge(DRAWN["image_size"], drawings=True)
    scale = None  # of latents relative to the portrait, so that their deviation is 1
    for change, (changed, ways, seeds) in CHANGES.items():
        for way, seed in itertools.product(ways, range(seeds)):
            model = dict(DRAWN, portrait_fusion=way, **changed)
            if model.get("relative_latents"):
                scale = scale or relative_scale(work)
                model["relative_scale"] = scale
            name, steps = f"{change} {way}", DRAWN_STEPS * model.pop("steps", 1)
            path = trained(settings(work, name, seed, model, steps, **OFF))
            file = work / "results" / f"{name}-{seed}.json"
            print(name, seed, kept(file, lambda path=path: judge.score(path)), flush=True)


def relative_scale(work: Path) -> float:
    """One over the deviation of what the latents of drawn people differ from their portraits'."""
    latents = np.load(next((work / "clips").glob("latents-*.npy")), mmap_mode="r")[:64].astype(np.float32)
    return float(1 / (latents[:, 1:] - latents[:, :1]).std())


def memory(work: Path) -> None:
    judge = Judge(DRAWN["image_size"], drawings=True)
    for seed in range(MEMORY_SEEDS):
        for name, parts in PARTS.items():
            path = trained(settings(work, f"memory {name}", seed, dict(DRAWN, memory_frames=2), DRAWN_STEPS, **parts))
            file = work / "results" / f"memory {name}-{seed}.json"
            print(name, seed, kept(file, lambda path=path: judge.roll_out(path)))


def table(work: Path) -> None:
    """Write what there is in the work folder into docs/ablations.json, and leave what else stands there."""
    written = REPOSITORY / "docs" / "ablations.json"
    told = json.loads(written.read_text())
    told["settings"] = dict(steps=STEPS, batch_size=8, clips=CLIPS, pairs=PAIRS, seconds=SECONDS, model=MODEL)
    told["settings of drawn people"] = dict(steps=DRAWN_STEPS, clips=DRAWN_CLIPS, model=DRAWN)
    for title, rows, seeds in (
        ("fusion", [f"{portrait}-{audio}" for portrait, audio in FUSIONS], SEEDS),
        ("portrait", [f"{change} {way}" for change, (_, ways, _) in CHANGES.items() for way in ways], SEEDS),
        ("memory", [f"memory {name}" for name in PARTS], MEMORY_SEEDS),
    ):
        found = {}
        for row in rows:
            paths = [work / "results" / f"{row}-{seed}.json" for seed in range(seeds)]
            values = [json.loads(path.read_text()) for path in paths if path.exists()]
            if values:
                found[row] = {key: [value[key] for value in values] for key in values[0]}
        if found:
            told[title] = found
            print(markdown(found), end="\n\n")
    written.write_text(json.dumps(told, indent=1) + "\n")


def markdown(rows: dict) -> str:
    """A line for each number, a column for each model: the mean and, in brackets, least and most of several seeds."""

    def cell(values: list[float]) -> str:
        spread = f" ({min(values):.3g}, {max(values):.3g})" if len(values) > 1 else ""
        return f"{np.mean(values):.3g}{spread}"

    lines = ["| | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for key in next(iter(rows.values())):
        lines.append(f"| {key.replace('_', ' ')} | " + " | ".join(cell(values[key]) for values in rows.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("fusion", "portrait", "memory", "table"):
        raise SystemExit(__doc__)
    torch.set_flush_denormal(True)
    {"fusion": fusion, "portrait": portrait, "memory": memory, "table": table}[sys.argv[1]](
        Path(sys.argv[2] if len(sys.argv) > 2 else REPOSITORY / "runs" / "ablations")
    )
