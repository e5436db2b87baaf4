"""A puppet speaks: what the bundled model learns from, as a video with its sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...picture.autoencoder import Autoencoder
from ...video.writer import VideoWriter
from ..drawn.motion import FPS
from ..speech.synthesis import SAMPLE_RATE, Speech, Voice, synthesize
from ..speech.visemes import mouth_track
from .cast import random_puppet
from .geometry import SIZE
from .gestures import control_track
from .portraits import load_person, people
from .puppet import CONTROLS, Puppet

AT_ONCE = 16  # frames
SENTENCE = "Good morning! Photographs can speak. Every mouth follows the sound: very simple, but five years of work."


def speak(text: str, voice: str = "en-us") -> Speech:
    """The text spoken by espeak-ng's voice of that language. InputError for an empty text."""
    if not text.strip():
        raise InputError("There is no text to speak; give a sentence.")
    return synthesize(text, Voice("espeak", voice, "m3"), rate=150)


def choose_puppet(person: int | None, seed: int) -> Puppet:
    """That of one of the people as photographed, or, for None, number `seed` of those who are mixed of the held-out."""
    if person is None:
        return random_puppet(seed, held_out=True)[0]
    if person not in range(len(people()) + len(people(held_out=True))):
        raise InputError(f"There is no person {person}; choose 0 to 199 (those ending in 5 are never trained on).")
    return Puppet(load_person(person), np.random.default_rng(seed))


def frames_of(
    puppet: Puppet, speech: Speech, seed: int, head: float | None = None, autoencoder: Autoencoder | None = None
) -> Iterator[Tensor]:
    """Frames [n,3,256,W] in -1..1 of a puppet that speaks.

    With an autoencoder three pictures lie side by side: the portrait, the puppet, and the puppet through the
    autoencoder. InputError where that has no latents of such pictures.
    """
    count = int(np.ceil(speech.duration * FPS))
    controls = control_track(np.random.default_rng((seed, 8)), mouth_track(speech, count, FPS), head)
    portrait = puppet.render(np.zeros((1, len(CONTROLS)), np.float32), natural=True) * 2 - 1
    seen = autoencoder and autoencoder.look_at(portrait)
    for start in range(0, count, AT_ONCE):
        frames = puppet.render(controls[start : start + AT_ONCE]) * 2 - 1
        if autoencoder is not None:
            with torch.inference_mode():
                decoded = autoencoder.decode(autoencoder.encode(frames), seen)
            frames = torch.cat([portrait.expand_as(frames), frames, decoded], -1)
        yield frames


def write_video(
    output: str | Path, puppet: Puppet, speech: Speech, seed: int, head: float | None = None,
    autoencoder: Autoencoder | None = None,
) -> None:  # fmt: skip
    """Write the puppet's frames (frames_of) with their sound."""
    sound = torch.from_numpy(speech.waveform)[None], SAMPLE_RATE
    with VideoWriter(output, SIZE if autoencoder is None else 3 * SIZE, SIZE, FPS, sound) as writer:
        for frames in frames_of(puppet, speech, seed, head, autoencoder):
            writer.write(frames)
