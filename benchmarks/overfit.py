"""One clip of real footage learned by heart: the autoencoder on its frames, then a small model on its one stretch.

    python benchmarks/overfit.py CLIP.mp4 [WORK]

Writes into WORK (default runs/overfit) and prints JSON: PSNR of the autoencoder, of the generated video and of a still
portrait against the clip, and what the loss was. WORK/loss.png and WORK/sheet.png (rows: clip, autoencoder, generated)
are for looking at. Needs requirements-dev.txt.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.data.footage.shard_index import index_shard  # noqa: E402
from letstalk_core.data.footage.shards import ShardSource  # noqa: E402
from letstalk_core.data.source import Window  # noqa: E402
from letstalk_core.evaluation.measures import masked_psnr  # noqa: E402
from letstalk_core.evaluation.report import contact_sheet  # noqa: E402
from letstalk_core.picture.portrait import Portrait  # noqa: E402
from letstalk_core.pipeline import BUNDLED_MODEL, LetsTalkPipeline  # noqa: E402
from letstalk_core.pixels import images_to_pixels, normalise  # noqa: E402
from letstalk_core.training.train import train  # noqa: E402
from letstalk_core.training.training_config import AutoencoderTraining, TransformerTraining  # noqa: E402
from letstalk_core.video.clips import ClipSampler, SamplingSettings  # noqa: E402

SIZE, AUTOENCODER_STEPS, STEPS = 256, 2000, 3000
MODEL = dict(
    depth=4, width=128, heads=4, mlp_ratio=2.0, latent_channels=32, patch_size=2, clip_frames=16, memory_frames=2,
    audio_tokens=4, audio_width=192, audio_hidden=256, audio_window=9, audio_convolutions=True, objective="x0",
    learn_variance=False, time_shift=6.0, image_size=SIZE, default_steps=4, default_sampler="euler",
    relative_latents=True, portrait_each_frame=False, add_portrait=True, autoencoder="portrait",
)  # fmt: skip


def common(run: Path, steps: int, rate: float, videos: Path) -> dict:
    return dict(
        run=str(run), data="videos", data_path=str(videos), steps=steps, learning_rate=rate, schedule="cosine",
        warmup_steps=100, beta2=0.98, gradient_clip=1.0, gradient_clip_start=0, ema_decay=0.99, device="cpu",
        batch_size=8, workers=0, save_every=500, keep_checkpoints=1,
    )  # fmt: skip


def learn(clip: Path, work: Path) -> tuple[Path, list[Path]]:
    """The model's file and the shards that the clip was prepared to; what is there is not done again."""
    videos = work / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    if not (videos / clip.name).exists():
        shutil.copyfile(clip, videos / clip.name)
    autoencoder = train(
        AutoencoderTraining(
            **common(work / "autoencoder", AUTOENCODER_STEPS, 5e-4, videos),
            image_size=SIZE,
            init_from=str(BUNDLED_MODEL),
        )
    )
    config = TransformerTraining(
        **common(work / "transformer", STEPS, 1e-3, videos), preset="tiny", model=MODEL, init_from=str(BUNDLED_MODEL),
        autoencoder=str(autoencoder), audio_dropout=0.0, first_guess_share=0.35, memory_pixel_noise=False,
        memory_shared_noise=0.5,
    )  # fmt: skip
    return train(config), sorted((work / "transformer" / "prepared").rglob("*.tar"))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return masked_psnr(a, b, np.ones(a.shape[1:3], bool))


@torch.inference_mode()
def judge(model: Path, shards: list[Path], work: Path) -> dict:
    pipeline = LetsTalkPipeline.load(model, "cpu")
    config = pipeline.config
    length = index_shard(shards[0])[0].frames
    window = Window(length, 0, config.audio.window)
    source = ShardSource(shards, window, latents_digest=None, features_shape=(4, 80))
    whole = source.read(0, np.random.default_rng(0))
    truth = whole["clip"].permute(0, 2, 3, 1).numpy()  # [T,H,W,3]
    features = whole["features"][:, config.audio.window // 2]  # [T,L,E]
    latents = pipeline.autoencoder.encode(normalise(whole["clip"]))
    first = normalise(whole["clip"][0])
    decode = pipeline.decoder(Portrait(first, np.eye(2, 3), (SIZE, SIZE)))
    decoded = images_to_pixels(decode(latents)).numpy()
    sampler = ClipSampler(pipeline.model, latents[:1], features, SamplingSettings())
    made = np.concatenate([images_to_pixels(chunk.frames).numpy() for chunk in sampler.chunks(decode)])
    contact_sheet(work / "sheet.png", [truth, decoded, made])
    log = [json.loads(line) for line in (work / "transformer" / "log.jsonl").read_text().splitlines()]
    draw(log, work / "loss.png")
    return {
        "frames": length,
        "psnr_autoencoder": psnr(decoded, truth),
        "psnr_generated": psnr(made, truth),
        "psnr_generated_against_autoencoder": psnr(made, decoded),
        "psnr_still_portrait": psnr(np.repeat(truth[:1], length, 0), truth),
        "loss_first": log[0]["loss"],
        "loss_last": log[-1]["loss"],
    }


def draw(log: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    axes.plot([line["step"] for line in log], [line["loss"] for line in log])
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    torch.set_flush_denormal(True)
    target = Path(sys.argv[2] if len(sys.argv) > 2 else REPOSITORY / "runs" / "overfit")
    found = judge(*learn(Path(sys.argv[1]), target), target)
    (target / "result.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
