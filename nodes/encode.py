"""The nodes that encode what is given, and the example of the pack."""

from __future__ import annotations

import os

import folder_paths
import torch
from comfy_api.latest import io

from ..letstalk_core.defaults import FACE_MARGIN
from ..letstalk_core.errors import InputError
from ..letstalk_core.files import ASSETS
from .load import CATEGORY
from .runtime import on_device, showing_warnings
from .types import AudioSocket, EncodedAudio, EncodedPortrait, LoadedModel, ModelSocket, PortraitSocket

SOUNDS = ["audio", "video"]
FACES = ("largest", "by index", "none", "left", "right")
CHANNELS = ("all", "left", "right")
MISSING = {"centred crop": "crop", "stop with an error": "error"}
EXAMPLES = {"portrait": "portrait.jpg", "drawing": "drawing.png", "scene": "scene.jpg", "two people": "two.jpg"}


class EncodeAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EncodeAudio",
            display_name="LetsTalk Encode Audio",
            category=CATEGORY,
            description="What the mouth will say: any recording, at any rate, mono, stereo or more.",
            search_aliases=["speech to mouth", "voice", "lip sync audio"],
            inputs=[
                ModelSocket.Input("letstalk_model", tooltip="From LetsTalk Load Model."),
                io.Audio.Input("audio", tooltip="The recording, from Load Audio or any other node."),
                io.Float.Input(
                    "start", default=0.0, min=0.0, max=86400.0, step=0.1, tooltip="Where to begin, in seconds."
                ),
                io.Float.Input(
                    "duration",
                    default=0.0,
                    min=0.0,
                    max=86400.0,
                    step=0.1,
                    tooltip="How many seconds to take; 0 takes all that is left.",
                ),
                channel_input(),
            ],
            outputs=[
                AudioSocket.Output("letstalk_audio", tooltip="For the samplers."),
                io.Int.Output("frames", display_name="frames", tooltip="How many frames of video the recording lasts."),
                io.Audio.Output("audio", display_name="audio", tooltip="The part that was taken, for Create Video."),
            ],
        )

    @classmethod
    def execute(cls, letstalk_model, audio, start: float, duration: float, channel: str = "all") -> io.NodeOutput:
        if audio is None:
            raise InputError("There is no sound here: the video that it comes from has none; connect a recording.")
        waveform, rate = _part(audio, start, duration), audio["sample_rate"]
        encoded = _encoded(letstalk_model, (waveform, rate), channel)
        frames = encoded.recording.frames(letstalk_model.pipeline.config.fps)
        return io.NodeOutput(encoded, frames, {"waveform": waveform[None], "sample_rate": rate})


def _part(audio: dict, start: float, duration: float) -> torch.Tensor:
    """The part of ComfyUI's [1, channels, S] that was asked for, [channels, samples]."""
    waveform, rate = audio["waveform"], audio["sample_rate"]
    if waveform.shape[0] != 1:
        raise InputError(f"The audio is a batch of {waveform.shape[0]} recordings; connect one.")
    first = round(start * rate)
    part = waveform[0, :, first : first + round(duration * rate) if duration else None].float().cpu()
    if part.shape[-1] == 0:
        seconds = waveform.shape[-1] / rate
        raise InputError(f"The audio lasts {seconds:.2f} seconds, so nothing is left from {start} on; start earlier.")
    return part


def channel_input() -> io.Input:
    return io.Combo.Input(
        "channel",
        options=list(CHANNELS),
        default="all",
        optional=True,
        advanced=True,
        tooltip="What is heard: all channels, or the left or right one, where each has a speaker of its own.",
    )


def _encoded(model: LoadedModel, source, channel: str) -> EncodedAudio:
    from ..letstalk_core.audio.dialogue import Channel
    from ..letstalk_core.audio.recording import Recording

    recording = Recording(source)
    return EncodedAudio(recording if channel == "all" else Channel(recording, channel), model.name)


class LetsTalkAudioFile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folder_paths.filter_files_content_types(os.listdir(folder_paths.get_input_directory()), SOUNDS)
        return io.Schema(
            node_id="LetsTalkAudioFile",
            display_name="LetsTalk Audio File",
            category=CATEGORY,
            description="A recording of any length, read from its file as it is needed, for LetsTalk Long Video: hours "
            "of sound take no memory.",
            search_aliases=["long audio", "stream audio", "audiobook"],
            inputs=[
                ModelSocket.Input("letstalk_model", tooltip="From LetsTalk Load Model."),
                io.Combo.Input(
                    "audio",
                    options=sorted(files),
                    upload=io.UploadType.audio,
                    tooltip="A sound file, or a video with sound, in ComfyUI's input folder.",
                ),
                channel_input(),
            ],
            outputs=[
                AudioSocket.Output("letstalk_audio", tooltip="For the samplers."),
                io.Int.Output("frames", display_name="frames", tooltip="How many frames of video the recording lasts."),
            ],
        )

    @classmethod
    def execute(cls, letstalk_model, audio: str, channel: str = "all") -> io.NodeOutput:
        encoded = _encoded(letstalk_model, folder_paths.get_annotated_filepath(audio), channel)
        return io.NodeOutput(encoded, encoded.recording.frames(letstalk_model.pipeline.config.fps))

    @classmethod
    def fingerprint_inputs(cls, letstalk_model, audio: str, channel: str = "all"):
        """A file that was replaced is read again."""
        stat = os.stat(folder_paths.get_annotated_filepath(audio))
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def validate_inputs(cls, audio: str):
        return folder_paths.exists_annotated_filepath(audio) or f"There is no file {audio} in the input folder."


class EncodePortrait(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EncodePortrait",
            display_name="LetsTalk Encode Portrait",
            category=CATEGORY,
            description="Who will speak: finds the face in a picture, crops it and encodes the crop.",
            search_aliases=["face crop", "face detection", "portrait", "avatar", "talking photo"],
            inputs=[
                ModelSocket.Input("letstalk_model", tooltip="From LetsTalk Load Model."),
                io.Image.Input("image", tooltip="One picture of any size, with or without transparency."),
                io.Combo.Input(
                    "face",
                    options=list(FACES),
                    default="largest",
                    tooltip="Which face speaks; left and right are the outermost. none: the picture's centred square.",
                ),
                io.Int.Input(
                    "face_index",
                    default=0,
                    min=0,
                    max=99,
                    advanced=True,
                    tooltip="With 'by index': 0 is the largest face, 1 the next.",
                ),
                io.Float.Input(
                    "margin",
                    default=FACE_MARGIN,
                    min=0.5,
                    max=4.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Side of the crop in sides of the face. The bundled model was trained on 1.42.",
                ),
                io.Combo.Input(
                    "no_face",
                    options=list(MISSING),
                    default="stop with an error",
                    advanced=True,
                    tooltip="What to do when no face is found.",
                ),
                io.Mask.Input(
                    "matte",
                    optional=True,
                    tooltip="White where the person is, for another background in LetsTalk Long Video. Without it the "
                    "image's own transparency is taken, or the person is found.",
                ),
            ],
            outputs=[
                PortraitSocket.Output("letstalk_portrait", tooltip="For the samplers and Paste Back."),
                io.Image.Output("crop", display_name="crop", tooltip="The square that will speak."),
                io.Mask.Output("mask", display_name="mask", tooltip="Where the crop lies in the picture."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, letstalk_model, image, face: str, face_index: int, margin: float, no_face: str, matte=None
    ) -> io.NodeOutput:
        from ..letstalk_core.picture.paste_back import portrait_mask
        from ..letstalk_core.picture.picture_file import without_alpha
        from ..letstalk_core.picture.portrait import crop_portrait
        from ..letstalk_core.pixels import images_to_pictures

        original = _one_picture(image)
        picture, matte = without_alpha(original), matte if matte is None else _matte_of(original, matte)
        with showing_warnings(cls.hidden.unique_id):
            portrait = crop_portrait(
                picture.numpy(),
                letstalk_model.pipeline.config.image_size,
                face_index if face == "by index" else face,
                margin,
                MISSING[no_face],
            )
        with on_device(letstalk_model) as pipeline:
            latents = pipeline.encode_portrait(portrait)
            reconstruction = pipeline.decoder(portrait)(latents)[0].cpu()
        transparent = original if original.shape[-1] == 4 else None
        encoded = EncodedPortrait(
            latents.cpu(), portrait, picture, reconstruction, letstalk_model.name, matte, transparent
        )
        crop = images_to_pictures(portrait.image[None])
        return io.NodeOutput(encoded, crop, portrait_mask(portrait)[None])


def _one_picture(image: torch.Tensor) -> torch.Tensor:
    """ComfyUI's IMAGE [1,H,W,3 or 4] -> [H,W,3 or 4]."""
    if image.shape[0] != 1:
        raise InputError(
            f"The image is a batch of {image.shape[0]} pictures; connect one (Image From Batch takes one)."
        )
    return image[0].float().cpu()


def _matte_of(picture: torch.Tensor, matte: torch.Tensor) -> torch.Tensor:
    """ComfyUI's MASK [1,H,W] for a picture [H,W,3 or 4] -> [H,W] in 0..1."""
    matte = matte.reshape(-1, *matte.shape[-2:]).float().cpu().clamp(0, 1)
    if len(matte) != 1 or matte.shape[1:] != picture.shape[:2]:
        (height, width), (rows, columns) = picture.shape[:2], matte.shape[1:]
        raise InputError(
            f"The image is {width}x{height}, but the matte has {len(matte)} of {columns}x{rows}; connect one mask of "
            "that image's size, white where the person is."
        )
    if not matte.any():
        raise InputError(
            "The matte is black everywhere, so nobody would be left; it has to be white where the person is (Invert "
            "Mask turns it round)."
        )
    return matte[0]


class LetsTalkExample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetsTalkExample",
            display_name="LetsTalk Example",
            category=CATEGORY,
            description="The portrait and the recording that come with the pack. Put Load Image and Load Audio in its "
            "place for your own.",
            search_aliases=["example portrait", "example speech", "demo"],
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=list(EXAMPLES),
                    default="portrait",
                    tooltip="portrait: a photograph of somebody who does not exist. drawing: a drawn face. scene: a "
                    "face that is a small part of a photograph. two people: with a dialogue, one in either channel.",
                )
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="A photograph or a drawing."),
                io.Audio.Output("audio", display_name="audio", tooltip="A spoken sentence, or a dialogue."),
            ],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        from ..letstalk_core.audio.recording import read_audio
        from ..letstalk_core.picture.picture_file import read_image

        waveform, rate = read_audio(ASSETS / ("dialogue.flac" if picture == "two people" else "speech.wav"))
        image = torch.from_numpy(read_image(ASSETS / EXAMPLES[picture]))[None]
        return io.NodeOutput(image, {"waveform": waveform[None], "sample_rate": rate})
