"""What travels between the nodes. None of it is changed after it was made: ComfyUI caches outputs and hands them on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

if TYPE_CHECKING:  # nothing heavy is imported before a node runs
    from ..letstalk_core.audio.recording import Recording
    from ..letstalk_core.picture.portrait import Portrait
    from ..letstalk_core.pipeline import LetsTalkPipeline
    from ..letstalk_core.video.memory import MemoryBank
    from ..letstalk_core.video.motion_keys import Motion

ModelSocket = io.Custom("LETSTALK_MODEL")
AudioSocket = io.Custom("LETSTALK_AUDIO")
PortraitSocket = io.Custom("LETSTALK_PORTRAIT")
MemorySocket = io.Custom("LETSTALK_MEMORY")
SpeakersSocket = io.Custom("LETSTALK_SPEAKERS")  # a tuple of TalkingFace
MotionSocket = io.Custom("LETSTALK_MOTION")  # a letstalk_core.video.motion_keys.Motion


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """LETSTALK_MODEL: a pipeline whose weights ComfyUI's memory management moves.

    name says which files it is of, but for a LoRA: what one model has encoded fits it with and without.
    """

    name: str
    pipeline: LetsTalkPipeline = field(repr=False)
    patcher: ModelPatcher = field(repr=False)


@dataclass(frozen=True, eq=False)
class EncodedAudio:
    """LETSTALK_AUDIO: a recording, and the model whose encoder its features are for; they are computed as needed."""

    recording: Recording = field(repr=False)
    model: str


@dataclass(frozen=True, eq=False)
class EncodedPortrait:
    """LETSTALK_PORTRAIT: latents [1,C,h,w] on the CPU, and what paste-back needs.

    picture [H,W,3] in 0..1 is the original; reconstruction [3,size,size] the portrait through the autoencoder. matte
    [H,W] in 0..1: that of the person, if one was given, and transparent the original with its own transparency [H,W,4].
    """

    latents: Tensor = field(repr=False)
    portrait: Portrait = field(repr=False)
    picture: Tensor = field(repr=False)
    reconstruction: Tensor = field(repr=False)
    model: str
    matte: Tensor | None = field(repr=False, default=None)
    transparent: Tensor | None = field(repr=False, default=None)


@dataclass(frozen=True, eq=False)
class TalkingFace:
    """A face, what it says, and how it moves where that is led."""

    portrait: EncodedPortrait
    audio: EncodedAudio
    motion: Motion | None = None


@dataclass(frozen=True, eq=False)
class Memory:
    """LETSTALK_MEMORY: the memory bank at the last border of clips, and the first frame that is still to come."""

    bank: MemoryBank = field(repr=False)
    next_frame: int
    model: str
