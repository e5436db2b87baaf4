"""The nodes: the only part of the pack that imports ComfyUI."""

from __future__ import annotations

import os

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .encode import EncodeAudio, EncodePortrait, LetsTalkAudioFile, LetsTalkExample
from .load import WEIGHTS, LoadLetsTalkModel
from .motion import LetsTalkMotion
from .sample import LetsTalkPasteBack, LetsTalkSampler, MemoryBankLongVideo
from .save import LetsTalkSaveVideo
from .speaker import LetsTalkSpeaker

NODES = [
    LoadLetsTalkModel, EncodeAudio, EncodePortrait, LetsTalkSampler, MemoryBankLongVideo, LetsTalkPasteBack,
    LetsTalkAudioFile, LetsTalkExample, LetsTalkMotion, LetsTalkSaveVideo, LetsTalkSpeaker,
]  # fmt: skip

folder_paths.add_model_folder_path("letstalk", os.path.join(folder_paths.models_dir, "letstalk"))
folder_paths.add_model_folder_path("letstalk", WEIGHTS)
folder_paths.folder_names_and_paths["letstalk"][1].update(folder_paths.supported_pt_extensions)


class LetsTalkExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
