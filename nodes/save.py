"""The node that saves a video for good: marked, labelled and signed if asked for, in that order."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types, io, ui

from ..letstalk_core.errors import InputError
from ..letstalk_core.video.marks import COMPOSITE, GENERATED, append_xmp, tags
from .load import CATEGORY
from .runtime import show_progress

AS_IT_SAYS = "as the video says"
SOURCE_TYPES = {"all generated": GENERATED, "face in a real picture": COMPOSITE}


class LetsTalkSaveVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetsTalkSaveVideo",
            display_name="LetsTalk Save Video",
            category=CATEGORY,
            description="Saves a video to the output folder, marked as synthetic for machines and, if you like, with a "
            "label for people and a C2PA signature.",
            search_aliases=["save talking video", "content credentials", "c2pa", "ai label", "watermark"],
            inputs=[
                io.Video.Input("video", tooltip="From LetsTalk Long Video, Create Video, or any other."),
                io.String.Input(
                    "filename_prefix", default="video/LetsTalk", tooltip="Of the file's name; folders may be in it."
                ),
                io.String.Input(
                    "label",
                    default="",
                    tooltip="A text for the lower left corner of every frame; the frames are encoded once more then.",
                ),
                io.Combo.Input(
                    "source",
                    options=[AS_IT_SAYS, *SOURCE_TYPES],
                    default=AS_IT_SAYS,
                    advanced=True,
                    tooltip="What the mark says of the pictures. LetsTalk Long Video has said it; others count as all "
                    "generated unless you choose.",
                ),
                io.String.Input(
                    "sign_key",
                    display_name="signing key",
                    default="",
                    advanced=True,
                    tooltip="Path of your private key (PEM) for a C2PA signature; needs pip install c2pa-python.",
                ),
                io.String.Input(
                    "sign_certificate",
                    display_name="signing certificate",
                    default="",
                    advanced=True,
                    tooltip="Path of that key's certificate with its chain (PEM).",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, sign_key: str = "", sign_certificate: str = "") -> bool | str:
        """Before the graph runs, which may take hours."""
        try:
            if signature := _signature(sign_key, sign_certificate):
                from ..letstalk_core.video.signing import check_signing

                check_signing(signature, Path("video.mp4"))
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, video, filename_prefix: str, label: str, source: str, sign_key: str, sign_certificate: str
    ) -> io.NodeOutput:
        from ..letstalk_core.files import move_into_place
        from ..letstalk_core.video.label import label_video
        from ..letstalk_core.video.remux import copy_packets
        from ..letstalk_core.video.signing import check_signing, sign_video
        from ..letstalk_core.video.verify import synthetic_type

        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), *video.get_dimensions()
        )
        transparent = _transparent_file(video)
        suffix = ".webm" if transparent else ".mp4"
        file = f"{name}_{counter:05}_{suffix}"
        signature = _signature(sign_key, sign_certificate)
        if signature and transparent:
            check_signing(signature, Path(file))
        os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder_paths.get_temp_directory()) as temporary:
            whole, labelled, made = (Path(temporary, f"{name}{suffix}") for name in ("whole", "labelled", "made"))
            if transparent:
                whole = transparent
            else:
                video.save_to(str(whole), format=Types.VideoContainer.MP4)
            source_type = SOURCE_TYPES.get(source) or synthetic_type(whole) or GENERATED
            if label:
                label_video(whole, labelled, label, source_type, show_progress)
                whole = labelled
            # A copy of the packets, with the graph in its metadata as Save Video has it. Signed last: nothing that
            # comes after may change a byte.
            if transparent:  # ComfyUI's own copy would forget its alpha
                graph = {key: json.dumps(value) for key, value in _graph(cls.hidden).items()}
                copy_packets(whole, made, tags(source_type, matroska=True) | graph)
            else:
                InputImpl.VideoFromFile(str(whole)).save_to(str(made), metadata=tags(source_type) | _graph(cls.hidden))
                append_xmp(made, source_type)
            if signature:
                sign_video(made, signature, source_type, file)
            move_into_place(made, Path(folder, file))
        return io.NodeOutput(ui=ui.PreviewVideo([ui.SavedResult(file, subfolder, io.FolderType.output)]))


def _transparent_file(video) -> Path | None:
    """The file of a transparent video that is whole, as LetsTalk Long Video makes it; None for any other."""
    from ..letstalk_core.video.reader import is_transparent

    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    if not isinstance(source, str) or not source.endswith(".webm") or any(video.get_active_trim_window()):
        return None
    return Path(source) if is_transparent(source) else None


def _graph(hidden) -> dict:
    """The graph as it goes into a file's metadata, unless ComfyUI was started with --disable-metadata."""
    if args.disable_metadata:
        return {}
    return {**(hidden.extra_pnginfo or {}), **({"prompt": hidden.prompt} if hidden.prompt is not None else {})}


def _signature(key: str, certificate: str):
    """What a video is signed with; None where neither is given."""
    from ..letstalk_core.video.signing import Signature

    return Signature(key or None, certificate or None) if key or certificate else None
