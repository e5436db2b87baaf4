"""Prepares a folder with Ray, in a process of its own, as Ray's threads stay in the one that started them:

    python -m tests.prepare_by_ray FOLDER OUTPUT whole|dies|full|gpu [AUTOENCODER]

whole: as it is. dies: the video b.mp4 ends the process that reads it. full: nothing can be written. gpu: Ray is told of
a GPU that is not there, and what the stages hold is noted beside OUTPUT.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from letstalk_core.data.preparation import clip_latents, engines, video_clips
from letstalk_core.data.preparation.preparation_settings import PreparationSettings
from letstalk_core.data.preparation.preparing import prepare

QUICK = PreparationSettings(size=64, features="mel", lips=False, eval_share=0.0)


def dies_of_b(task):
    if task.source.name.endswith("b.mp4"):
        os._exit(1)
    return video_clips.prepare_video(task)


def encoder_dies_of_b(task, rows, gpu):
    if task.source.name.endswith("b.mp4"):
        os._exit(1)
    return clip_latents.add_latents(task, rows, gpu)


def _break(kind: str) -> None:
    stage = engines._clips

    def dies(row):  # a function of a function: Ray's workers get it by value
        if "b.mp4" in row["task"]:
            os._exit(1)
        return stage(row)

    def full(row):
        return [{"number": -1, "clip": "It cannot be written (No space left on device)."}]

    if kind == "dies":
        engines.prepare_whole = dies_of_b  # of the process that tries it once more
    if kind != "whole":
        engines._clips = {"dies": dies, "full": full}[kind]


def _pretend_gpu(notes: Path) -> None:
    import ray

    ray.init(num_gpus=1, log_to_driver=False, include_dashboard=False, configure_logging=False)
    cut, encoder = engines._cut, engines._Encoder

    def note(name: str) -> None:
        held = ray.get_runtime_context().get_assigned_resources()
        (notes / f"{name}.json").write_text(json.dumps({"CPU": held.get("CPU", 0), "GPU": held.get("GPU", 0)}))

    def noted(row):
        note("cut")
        return cut(row)

    class Noted(encoder):
        def __call__(self, row):
            note("encoder")
            return super().__call__(row)

    engines._cut, engines._Encoder = noted, Noted


if __name__ == "__main__":
    folder, output, kind, *autoencoder = sys.argv[1:]
    if kind == "gpu":
        _pretend_gpu(Path(output).parent)
    else:
        _break(kind)
    settings = replace(QUICK, autoencoder=autoencoder[0]) if autoencoder else QUICK
    prepare([Path(folder)], Path(output), settings, engine="ray", workers=2)
