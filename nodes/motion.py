"""The node that says how the head and the face move."""

from __future__ import annotations

import torch
from comfy_api.latest import Input, io, ui

from .load import CATEGORY
from .types import MotionSocket


class LetsTalkMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetsTalkMotion",
            display_name="LetsTalk Motion",
            category=CATEGORY,
            description="How head, lids, brows, smile and gaze move over time: written down, taken from the head of a "
            "driving video, or both. Shown as curves.",
            search_aliases=["head motion", "driving video", "expression", "blink", "control track"],
            inputs=[
                io.String.Input(
                    "keys",
                    default="{}",
                    multiline=True,
                    tooltip="JSON: for each control one value, or keys [seconds, value]. Controls: eyelids 0 to 1, yaw "
                    "-25 to 25, pitch -16 to 16 and roll -17 to 17 degrees, brows, smile, gaze_x and gaze_y -1 to 1.",
                ),
                io.Video.Input(
                    "driving_video",
                    optional=True,
                    tooltip="Yaw, pitch and roll of the largest face in it; what the keys lead comes before them.",
                ),
                MotionSocket.Input(
                    "letstalk_motion", optional=True, tooltip="Another motion, for the controls that this one leaves."
                ),
            ],
            outputs=[
                MotionSocket.Output("letstalk_motion", tooltip="For the samplers."),
                io.Image.Output("curves", display_name="curves", tooltip="The motion, drawn over time."),
            ],
        )

    @classmethod
    def execute(cls, keys: str, driving_video=None, letstalk_motion=None) -> io.NodeOutput:
        from ..letstalk_core.pixels import pixels_to_pictures
        from ..letstalk_core.video.motion_keys import Motion, draw

        motion = Motion.parse(keys)
        if driving_video is not None:
            motion = motion.over(_driven(driving_video))
        motion = motion.over(letstalk_motion)
        curves = torch.from_numpy(pixels_to_pictures(draw(motion)))[None]
        return io.NodeOutput(motion, curves, ui=ui.PreviewImage(curves, cls=cls))


def _driven(video: Input.Video):
    from ..letstalk_core.picture.driving import head_motion
    from ..letstalk_core.video.motion_keys import Motion

    times, tracks = head_motion(_timed_pictures(video))
    return Motion.of_tracks(tracks, times)


def _timed_pictures(video: Input.Video):
    """(seconds, picture float [H,W,3] in 0..1) of each frame. A file's are decoded one at a time."""
    from ..letstalk_core.pixels import pixels_to_pictures
    from ..letstalk_core.video.driving_video import driving_frames
    from .runtime import show_progress

    if type(video).get_stream_source is Input.Video.get_stream_source:  # it would be encoded; its images are there
        parts = video.get_components()
        for number, image in enumerate(parts.images, 1):
            show_progress(number, len(parts.images))
            yield (number - 0.5) / float(parts.frame_rate), image[..., :3].numpy()
        return
    for seconds, frame in driving_frames(video.get_stream_source(), *video.get_active_trim_window(), show_progress):
        yield seconds, pixels_to_pictures(frame)
