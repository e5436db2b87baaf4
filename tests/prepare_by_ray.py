"""Prepares a folder with Ray, in a process of its own, as Ray's threads stay in the one that started them:

    python -m tests.prepare_by_ray FOLDER OUTPUT whole|dies|full

whole: as it is. dies: the video b.mp4 ends the process that reads it. full: nothing can be written.
"""

import os
import sys
from pathlib import Path

from letstalk_core.data.preparation import engines, video_clips
from letstalk_core.data.preparation.preparation_settings import PreparationSettings
from letstalk_core.data.preparation.preparing import prepare

QUICK = PreparationSettings(size=64, features="mel", lips=False, eval_share=0.0)


def dies_of_b(task):
    if task.source.name.endswith("b.mp4"):
        os._exit(1)
    return video_clips.prepare_video(task)


def _break(kind: str) -> None:
    stage = engines._clips

    def dies(row):  # a function of a function: Ray's workers get it by value
        if "b.mp4" in row["task"]:
            os._exit(1)
        return stage(row)

    def full(row):
        return [{"number": -1, "clip": "It cannot be written (No space left on device)."}]

    if kind == "dies":
        engines.prepare_video = dies_of_b  # of the process that tries it once more
    if kind != "whole":
        engines._clips = {"dies": dies, "full": full}[kind]


if __name__ == "__main__":
    _break(sys.argv[3])
    prepare([Path(sys.argv[1])], Path(sys.argv[2]), QUICK, engine="ray", workers=2)
