"""The node for pictures in which several people speak."""

from __future__ import annotations

from comfy_api.latest import io

from .load import CATEGORY
from .types import AudioSocket, MotionSocket, PortraitSocket, SpeakersSocket, TalkingFace


class LetsTalkSpeaker(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetsTalkSpeaker",
            display_name="LetsTalk Speaker",
            category=CATEGORY,
            description="One more face of the same picture, with its own sound, for LetsTalk Long Video. Each listens "
            "while another speaks.",
            search_aliases=["two speakers", "dialogue", "conversation", "podcast", "interview", "duet"],
            inputs=[
                PortraitSocket.Input(
                    "letstalk_portrait", tooltip="From LetsTalk Encode Portrait, of the same picture: another face."
                ),
                AudioSocket.Input(
                    "letstalk_audio",
                    tooltip="What this face says; it begins when the others' sound begins.",
                ),
                MotionSocket.Input(
                    "letstalk_motion", optional=True, tooltip="How this face moves; from LetsTalk Motion."
                ),
                SpeakersSocket.Input(
                    "letstalk_speakers", optional=True, tooltip="Of another LetsTalk Speaker, for three faces and more."
                ),
            ],
            outputs=[SpeakersSocket.Output("letstalk_speakers", tooltip="For LetsTalk Long Video.")],
        )

    @classmethod
    def execute(
        cls, letstalk_portrait, letstalk_audio, letstalk_motion=None, letstalk_speakers: tuple[TalkingFace, ...] = ()
    ) -> io.NodeOutput:
        return io.NodeOutput((TalkingFace(letstalk_portrait, letstalk_audio, letstalk_motion), *letstalk_speakers))
