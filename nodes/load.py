"""LoadLetsTalkModel."""

from __future__ import annotations

import os
import weakref

import comfy.model_management as management
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import nn

from .types import LoadedModel, ModelSocket

CATEGORY = "LetsTalk"
WEIGHTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "weights")
BUNDLED = "bundled in the model's file"
NAMED = "as the model's file says"
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
            search_aliases=["talking head", "lip sync", "talking portrait", "letstalk loader"],
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
                    tooltip="auto: bf16 where the graphics card computes in it, else fp32.",
                ),
            ],
            outputs=[ModelSocket.Output("letstalk_model", tooltip="For the other LetsTalk nodes.")],
        )

    @classmethod
    def execute(cls, model: str, autoencoder: str, audio_encoder: str, precision: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("letstalk", model)
        images, sounds = cls._parts(autoencoder, audio_encoder)
        if precision == "auto":
            precision = "bf16" if management.should_use_bf16(management.get_torch_device()) else "fp32"
        key = (_fingerprint(path, images, sounds), precision)
        loaded = _loaded.get(key)
        if loaded is None:
            chosen = [part for part in (autoencoder, audio_encoder) if part not in (BUNDLED, NAMED)]
            loaded = _load(" with ".join([model, *chosen]), path, images, sounds, precision)
            _loaded[key] = loaded
        return io.NodeOutput(loaded)

    @classmethod
    def _parts(cls, autoencoder: str, audio_encoder: str) -> tuple[str | None, str | None]:
        images = None if autoencoder == BUNDLED else folder_paths.get_full_path_or_raise("vae", autoencoder)
        sounds = (
            None if audio_encoder == NAMED else folder_paths.get_full_path_or_raise("audio_encoders", audio_encoder)
        )
        return images, sounds

    @classmethod
    def fingerprint_inputs(cls, model: str, autoencoder: str, audio_encoder: str, precision: str):
        """A file that was replaced is loaded again."""
        return str(_fingerprint(folder_paths.get_full_path("letstalk", model), *cls._parts(autoencoder, audio_encoder)))


def _load(name: str, path: str, images: str | None, sounds: str | None, precision: str) -> LoadedModel:
    from ..letstalk_core.pipeline import LetsTalkPipeline

    pipeline = LetsTalkPipeline.load(path, "cpu", precision, autoencoder=images, audio_encoder=sounds)
    weights = nn.ModuleDict(
        {"model": pipeline.model, "autoencoder": pipeline.autoencoder, "audio_encoder": pipeline.audio_encoder}
    )
    return LoadedModel(
        name, pipeline, ModelPatcher(weights, management.get_torch_device(), management.unet_offload_device())
    )
