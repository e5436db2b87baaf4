"""The node that loads a model."""

from __future__ import annotations

import os
import weakref

import comfy.model_management as management
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import nn

from .runtime import showing_warnings
from .types import LoadedModel, ModelSocket

CATEGORY = "LetsTalk"
WEIGHTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "weights")
BUNDLED = "bundled in the model's file"
NAMED = "as the model's file says"
NO_LORA = "none"
_loaded: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # what is in use is loaded once


def model_files() -> list[str]:
    """Files of the category `letstalk`, the pack's own first."""
    bundled = os.listdir(WEIGHTS) if os.path.isdir(WEIGHTS) else []
    return sorted(folder_paths.get_filename_list("letstalk"), key=lambda name: (name not in bundled, name))


def _fingerprint(*paths: str | None) -> tuple:
    stats = [(path, os.stat(path)) for path in paths if path]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


class LoadLetsTalkModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadLetsTalkModel",
            display_name="LetsTalk Load Model",
            category=CATEGORY,
            description="Loads a talking-portrait model. The bundled one needs nothing else.",
            search_aliases=["talking head", "lip sync", "lipsync", "talking portrait", "letstalk loader"],
            inputs=[
                io.Combo.Input(
                    "model", options=model_files(), tooltip="A file of models/letstalk, or the model that comes along."
                ),
                io.Combo.Input(
                    "autoencoder",
                    options=[BUNDLED, *folder_paths.get_filename_list("vae")],
                    default=BUNDLED,
                    advanced=True,
                    tooltip="Images to latents and back. Only models that don't bundle theirs need a DC-AE or SD-VAE "
                    "file of models/vae (or the weights in a diffusers folder there).",
                ),
                io.Combo.Input(
                    "audio_encoder",
                    options=[NAMED, *folder_paths.get_filename_list("audio_encoders")],
                    default=NAMED,
                    advanced=True,
                    tooltip="Only models trained on wav2vec2 need a file of models/audio_encoders.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp32", "bf16", "fp16"],
                    default="auto",
                    advanced=True,
                    tooltip="auto: bf16 where the graphics card computes in it, else fp32; a CPU that has bf16 decodes "
                    "pictures in it.",
                ),
                io.Combo.Input(
                    "lora",
                    options=[NO_LORA, *folder_paths.get_filename_list("loras")],
                    default=NO_LORA,
                    optional=True,
                    advanced=True,
                    tooltip="A fine-tuning of this model: a LetsTalk LoRA of models/loras. LoRAs of other models don't "
                    "fit.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="How much of the LoRA: 1 is as it was trained, 0 is the model without it.",
                ),
            ],
            outputs=[ModelSocket.Output("letstalk_model", tooltip="For the other LetsTalk nodes.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: str,
        autoencoder: str,
        audio_encoder: str,
        precision: str,
        lora: str = NO_LORA,
        lora_strength: float = 1.0,
    ) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("letstalk", model)
        autoencoder_path, encoder_path, lora_path = cls._parts(autoencoder, audio_encoder, lora)
        loras = [(lora_path, lora_strength)] if lora_path else []
        device = management.get_torch_device()
        if precision == "auto" and device.type != "cpu":  # on a CPU the pipeline chooses, as on the command line
            precision = "bf16" if management.should_use_bf16(device) else "fp32"
        key = (_fingerprint(path, autoencoder_path, encoder_path, lora_path), precision, *loras)
        loaded = _loaded.get(key)
        if loaded is None:
            chosen = [part for part in (autoencoder, audio_encoder) if part not in (BUNDLED, NAMED)]
            with showing_warnings(cls.hidden.unique_id):
                name = " with ".join([model, *chosen])
                loaded = _load(name, path, autoencoder_path, encoder_path, precision, loras)
            _loaded[key] = loaded
        return io.NodeOutput(loaded)

    @classmethod
    def _parts(cls, autoencoder: str, audio_encoder: str, lora: str) -> list[str | None]:
        """Paths of the files beside the model's, None for those that are not chosen."""
        choices = (("vae", autoencoder, BUNDLED), ("audio_encoders", audio_encoder, NAMED), ("loras", lora, NO_LORA))
        return [
            None if chosen == nothing else folder_paths.get_full_path_or_raise(category, chosen)
            for category, chosen, nothing in choices
        ]

    @classmethod
    def fingerprint_inputs(cls, model: str, autoencoder: str, audio_encoder: str, lora: str = NO_LORA, **_):
        """A file that was replaced is loaded again."""
        parts = cls._parts(autoencoder, audio_encoder, lora)
        return str(_fingerprint(folder_paths.get_full_path("letstalk", model), *parts))


def _load(
    name: str,
    path: str,
    autoencoder: str | None,
    audio_encoder: str | None,
    precision: str,
    loras: list[tuple[str, float]],
) -> LoadedModel:
    from ..letstalk_core.pipeline import LetsTalkPipeline

    pipeline = LetsTalkPipeline.load(path, "cpu", precision, autoencoder, audio_encoder, loras)
    weights = nn.ModuleDict(
        {"model": pipeline.model, "autoencoder": pipeline.autoencoder, "audio_encoder": pipeline.audio_encoder}
    )
    return LoadedModel(
        name, pipeline, ModelPatcher(weights, management.get_torch_device(), management.unet_offload_device())
    )
