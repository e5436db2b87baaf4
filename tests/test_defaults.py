"""What users are offered is the same in the core, on the command line and in the nodes."""

import pytest

from letstalk_core import defaults
from letstalk_core.cli import build_parser
from letstalk_core.picture import portrait
from letstalk_core.render import render
from letstalk_core.video.controls import AskedFor


def test_the_core_and_the_command_line():
    assert AskedFor().blinks == build_parser().parse_args(["demo"]).blinks == defaults.BLINKS
    assert (render.LEAST_SIZE, render.MOST_SIZE) == (defaults.LEAST_SIZE, defaults.MOST_SIZE)
    assert (portrait.FACE_MARGIN, portrait.MOST_DETAIL) == (defaults.FACE_MARGIN, defaults.MOST_SIZE)


@pytest.mark.comfyui
def test_the_nodes(node_info):
    def offered(node: str, name: str) -> dict:
        groups = node_info[node]["input"]
        return next(groups[group][name][1] for group in groups if name in groups[group])

    for sampler in ("LetsTalkSampler", "MemoryBankLongVideo"):
        blinks = offered(sampler, "blinks")
        assert (blinks["default"], blinks["max"]) == (defaults.BLINKS, defaults.MOST_BLINKS)
        assert offered(sampler, "head_motion")["max"] == defaults.MOST_HEAD_MOTION
        assert offered(sampler, "size")["max"] == defaults.MOST_SIZE
    assert offered("EncodePortrait", "margin")["default"] == defaults.FACE_MARGIN
