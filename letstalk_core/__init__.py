"""LetsTalk (arXiv 2411.16748): one portrait and a speech recording become a talking video.

`load_checkpoint(path)` gives a model, `LetsTalkPipeline.load()` everything that makes a video. Names are imported when
they are first used, so that importing the package costs nothing.
"""

import importlib

_HOMES = {
    "ClipSampler": "video.clips",
    "LetsTalkConfig": "config",
    "LetsTalkModel": "model.checkpoint",
    "LetsTalkPipeline": "pipeline",
    "Observer": "render.render",
    "SamplingSettings": "video.clips",
    "load_checkpoint": "model.checkpoint",
    "save_checkpoint": "model.checkpoint",
    "write_video": "render.render",
    "InputError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
