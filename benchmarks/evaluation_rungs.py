"""Does `evaluate` put what it should know into order? The bundled model on held-out people, beside the truth, a still
first frame, and the same model with another's sound.

    python benchmarks/evaluation_rungs.py [WORK [CLIPS [SECONDS]]]    # defaults: runs/evaluation-rungs 12 4

The people are puppets of photographs that training never saw, who speak sentences and voices that it never heard. Their
videos are prepared and measured as by `prepare` and `evaluate --data --rungs`. WORK keeps videos and shards by the
arguments that they are of. Needs requirements-dev.txt and espeak-ng.
"""

import sys
import tempfile
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.data.preparation.preparation_settings import PreparationSettings  # noqa: E402
from letstalk_core.data.preparation.preparing import kept_shards, prepare  # noqa: E402
from letstalk_core.evaluation.comparison_report import evaluate_on_shards  # noqa: E402
from letstalk_core.evaluation.held_out import held_out_pairs  # noqa: E402
from letstalk_core.pipeline import BUNDLED_MODEL, LetsTalkPipeline  # noqa: E402
from letstalk_core.video.writer import VideoWriter  # noqa: E402


def write_videos(folder: Path, clips: int, seconds: float, size: int, fps: float) -> None:
    """A folder that is there with all of its videos or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        part = Path(temporary, "part")
        part.mkdir()
        for i, pair in enumerate(held_out_pairs(clips, seconds, size)):
            sound = torch.from_numpy(pair.waveform)[None], 16000
            with VideoWriter(part / f"person-{i:02d}.mp4", size, size, fps, sound, crf=12) as writer:
                writer.write(pair.frames())
        part.rename(folder)


def main(work: Path, clips: int, seconds: float) -> None:
    pipeline = LetsTalkPipeline.load(device="cpu")
    size, fps = pipeline.config.image_size, pipeline.config.fps
    footage = work / f"{clips}-clips-{seconds:g}-s-{size}-px-{fps:g}-fps"
    videos = footage / "videos"
    if not videos.exists():
        write_videos(videos, clips, seconds, size, fps)
    prepared, settings = footage / "prepared", PreparationSettings(size=size, fps=fps, eval_share=0.0)
    print(prepare([videos], prepared, settings))
    shards = kept_shards(prepared)[0].parent
    print(evaluate_on_shards(BUNDLED_MODEL, shards, work, seconds=seconds, rungs=True, files={}), end="")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        Path(given[0]) if given else REPOSITORY / "runs" / "evaluation-rungs",
        int(given[1]) if len(given) > 1 else 12,
        float(given[2]) if len(given) > 2 else 4.0,
    )
