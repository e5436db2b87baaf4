"""What both samplers ask for, and the core's settings of it."""

from __future__ import annotations

from comfy_api.latest import io

from ..letstalk_core.config import MOST_GUIDANCE, SAMPLERS, TIMESTEPS
from ..letstalk_core.defaults import BLINKS, MOST_ARTICULATION, MOST_BLINKS, MOST_HEAD_MOTION, MOST_SIZE
from .types import AudioSocket, ModelSocket, MotionSocket, PortraitSocket

DEFAULT_SAMPLER = "as the model says"
SAMPLER_NAMES = [DEFAULT_SAMPLER, *SAMPLERS]
MEMORY_NOISE = 0.0  # the core's default


def encoded_inputs() -> list[io.Input]:
    """What both samplers take from the nodes before them."""
    return [
        ModelSocket.Input("letstalk_model", tooltip="From LetsTalk Load Model."),
        PortraitSocket.Input("letstalk_portrait", tooltip="From LetsTalk Encode Portrait."),
        AudioSocket.Input("letstalk_audio", tooltip="From LetsTalk Encode Audio."),
    ]


def sampling_inputs() -> list[io.Input]:
    """Inputs that both samplers share."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Blinks, gaze and head motion. The same seed gives the same frames.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=TIMESTEPS,
            tooltip="Denoising steps of each clip; 0 takes the model's own number (1 for the bundled one).",
        ),
        io.Combo.Input(
            "sampler",
            options=SAMPLER_NAMES,
            default=DEFAULT_SAMPLER,
            advanced=True,
            tooltip="How noise becomes latents; euler goes with the bundled model, the others with the paper's.",
        ),
        io.Float.Input(
            "cfg",
            display_name="guidance scale",
            default=0.0,
            min=0.0,
            max=MOST_GUIDANCE,
            step=0.1,
            tooltip="How strongly the speech moves the mouth; 0 takes the model's own (1 for the bundled one), which "
            "is neutral and twice as fast as any other.",
        ),
        io.Float.Input(
            "memory_noise",
            display_name="memory noise",
            default=MEMORY_NOISE,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Noise on what a clip remembers of the one before, as in training: against errors that add up. "
            "The bundled model has no memory.",
        ),
        # Optional, so that prompts that were saved before these inputs still run.
        io.Float.Input(
            "blinks",
            default=BLINKS,
            min=0.0,
            max=MOST_BLINKS,
            step=1.0,
            optional=True,
            tooltip="Blinks a minute.",
        ),
        io.Float.Input(
            "head_motion",
            display_name="head motion",
            default=1.0,
            min=0.0,
            max=MOST_HEAD_MOTION,
            step=0.1,
            optional=True,
            tooltip="Of head, brows and gaze: 0 still, 1 as people do. For models that know it.",
        ),
        io.Float.Input(
            "expression",
            default=0.0,
            min=-1.0,
            max=1.0,
            step=0.1,
            optional=True,
            tooltip="-1 sad to 1 smiling, beside what the portrait has. For models that know it.",
        ),
    ]


def last_inputs() -> list[io.Input]:
    """What came later: at the end, so that widgets that were saved before keep their places."""
    return [
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=MOST_SIZE,
            step=8,
            optional=True,
            advanced=True,
            tooltip="Side of the square frames in pixels; 0 is the model's own (256). Larger frames are as sharp as "
            "the picture. A full picture has its own size.",
        ),
        MotionSocket.Input(
            "letstalk_motion",
            optional=True,
            tooltip="From LetsTalk Motion; it comes before blinks, head motion and expression.",
        ),
    ]


def articulation_input() -> io.Input:
    """Of both, the last of all."""
    return io.Float.Input(
        "articulation",
        default=1.0,
        min=0.0,
        max=MOST_ARTICULATION,
        step=0.05,
        optional=True,
        tooltip="How far quiet sounds move the mouth: 1 as trained; more where it hardly opens.",
    )


def sampling_settings(
    frames: int,
    fps: float,
    motion,
    seed: int,
    steps: int,
    sampler: str,
    cfg: float,
    memory_noise: float,
    articulation: float = 1.0,
    **asked: float,
):
    """For a recording of so many frames; motion: from LetsTalk Motion, or None."""
    from ..letstalk_core.video.clips import SamplingSettings
    from ..letstalk_core.video.controls import AskedFor

    named = None if sampler == DEFAULT_SAMPLER else sampler
    wanted = AskedFor(**asked)
    if motion is not None:
        wanted = motion.added_to(wanted, frames, fps)
    return SamplingSettings(seed, steps or None, named, cfg or None, memory_noise, wanted, articulation)
