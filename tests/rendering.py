"""Renderings of a tiny model for tests: jobs of 38 frames in segments of 8, and ways to stop them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from letstalk_core.audio.recording import Recording
from letstalk_core.picture.portrait import Portrait
from letstalk_core.render.job import Speaker, VideoJob
from letstalk_core.render.render import Observer, render_video
from letstalk_core.render.segments import work_folder_of
from letstalk_core.video.clips import SamplingSettings

from .media_files import tone

SECONDS = 1.5  # 38 frames: five segments of 8 and what is left
RATE = 11025


def make_job(
    pipeline, seed=3, value=0.1, pitch=1.0, seconds=SECONDS, paste_back=None, voice=None, **options
) -> VideoJob:
    sound = torch.from_numpy(tone(round(RATE * pitch), int(RATE * seconds), 2))
    portrait = Portrait(torch.full((3, 64, 64), value), np.eye(2, 3), (64, 64))
    voice = voice or Recording((sound, RATE))
    speaker = Speaker(portrait, voice, SamplingSettings(seed=seed), paste_back)
    return VideoJob(pipeline, (speaker,), **options)


class StopAt(Observer):
    """Ends a rendering when so many frames are made; remembers what it is told."""

    def __init__(self, frames=10**9, error=KeyboardInterrupt):
        self.frames, self.error, self.estimate, self.made = frames, error, None, []

    def begin(self, estimate):
        self.estimate = estimate

    def advance(self, frames, picture):
        self.made.append(frames)
        if frames >= self.frames:
            raise self.error


def stopped(job, output, frames=20, **options) -> Path:
    """A rendering that ended early; its work folder."""
    with pytest.raises(KeyboardInterrupt):
        render_video(job, output, StopAt(frames), **options)
    return options.get("work") or work_folder_of(output, job.fingerprint)
