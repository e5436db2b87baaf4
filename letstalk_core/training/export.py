"""What a training leaves for use after each checkpoint: a model file with the averaged weights, and sample videos."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from ..files import ASSETS
from ..model.checkpoint import BundledAutoencoder, LetsTalkModel, save_checkpoint
from ..model.lora import plain_model, save_lora
from ..picture.autoencoder import Autoencoder
from ..pipeline import LetsTalkPipeline
from ..render.render import write_video
from ..video.clips import SamplingSettings
from .training_config import TransformerTraining

BUNDLED_PARAMETERS = 50e6  # autoencoders up to this size go into the model's file
STEPS_KEY = "trained_steps"  # key of their number in the metadata of what a training writes


def step_of_file(path: Path) -> int | None:
    """How many steps the weights in a training's file were trained; None where it does not say or is not there."""
    try:
        with safe_open(path, "pt") as file:
            return int((file.metadata() or {})[STEPS_KEY])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


class ModelExporter:
    """Writes `model.safetensors` with the averaged weights, `lora.safetensors` beside it where that is what is trained
    (the model then has it merged), and now and then a video in `samples/`. Made before the model is moved or wrapped.
    """

    def __init__(self, config: TransformerTraining, model: LetsTalkModel, autoencoder: Autoencoder | None, accelerator):
        self.config, self.accelerator = config, accelerator
        self.path, self.lora = Path(config.run) / "model.safetensors", Path(config.run) / "lora.safetensors"
        if not accelerator.is_main_process:
            return
        self.model, self.autoencoder = copy.deepcopy(model), None
        if autoencoder is not None and sum(p.numel() for p in autoencoder.parameters()) <= BUNDLED_PARAMETERS:
            weights = {name: value.cpu().clone() for name, value in autoencoder.model.state_dict().items()}
            config = {**autoencoder.config, "scaling_factor": autoencoder.latent_scale}
            self.autoencoder = BundledAutoencoder(config, weights)

    def __call__(self, step: int, average: dict[str, Tensor]) -> None:
        """Write the files of a step; average: the averaged state dict of a Denoiser."""
        if self.accelerator.is_main_process:
            self.model.load_state_dict({name.removeprefix("model."): value for name, value in average.items()})
            notes = {STEPS_KEY: str(step)}
            model = self.model
            if self.config.lora_rank:
                save_lora(self.lora, model, notes=notes)
                model = plain_model(model, merged=True)
            save_checkpoint(self.path, model, self.autoencoder, notes=notes)
            if self.config.sample_every and step % self.config.sample_every == 0:
                self._sample(step)
        self.accelerator.wait_for_everyone()

    def _sample(self, step: int) -> None:
        """Write a video of held-out speech. What goes wrong here must not end a training: it is said."""
        config, folder = self.config, Path(self.config.run) / "samples"
        folder.mkdir(exist_ok=True)
        try:
            pipeline = LetsTalkPipeline.load(
                self.path,
                "cpu" if config.device == "cpu" else "auto",
                autoencoder=None if self.autoencoder else config.autoencoder or None,
                audio_encoder=config.audio_encoder or None,
            )
            write_video(
                pipeline,
                config.sample_portrait or ASSETS / "portrait.jpg",
                config.sample_audio or ASSETS / "speech.wav",
                folder / f"step-{step:08d}.mp4",
                SamplingSettings(steps=config.sample_steps or None),
                max_seconds=config.sample_seconds,
                resume=False,
            )
        except (InputError, RuntimeError, OSError) as error:
            warnings.warn(f"no sample video of step {step}: {error}", stacklevel=1)
