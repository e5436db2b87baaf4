"""The command for data: prepare."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_data_commands(commands) -> None:
    prepare = commands.add_parser("prepare", help="make training data of videos: shards, a manifest and a report")
    prepare.add_argument("source", nargs="+", metavar="SOURCE", help="videos, folders of them, HDTF or CelebV-HQ")
    prepare.add_argument("--output", required=True, metavar="DIR", help="the same command goes on from there")
    prepare.add_argument("--size", type=int, choices=(256, 512), default=256, help="of the square, in pixels")
    prepare.add_argument("--seconds", type=float, default=10.0, help="of the longest clip, 1 to 60 (default: 10)")
    prepare.add_argument(
        "--features", default="whisper", metavar="whisper|mel|PATH", help="of the sound; PATH is a wav2vec2 model"
    )
    prepare.add_argument("--autoencoder", default="", metavar="PATH", help="store its latents of the frames, too")
    prepare.add_argument(
        "--keep-frames", action=argparse.BooleanOptionalAction, default=True, help="beside the latents"
    )
    prepare.add_argument("--engine", choices=("local", "ray"), default="local", help="a process pool, or Ray Data")
    prepare.add_argument("--workers", type=int, metavar="N", help="videos at once; default: one a processor")
    prepare.add_argument("--eval-share", type=float, default=0.1, metavar="SHARE", help="of identities (default: 0.1)")
    prepare.add_argument("--allow-silent", action="store_true", help="keep pictures without sound, beside the shards")
    prepare.add_argument("--no-lips", dest="lips", action="store_false", help="do not compare the sound with the mouth")
    prepare.add_argument("--syncnet", default="", metavar="FILE", help="SyncNet, to compare sound and mouth by it, too")
    prepare.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of a filter; docs/datasets.md lists them",
    )
    prepare.set_defaults(run=_prepare)


def _prepare(arguments) -> None:
    from ..data.preparation.preparation_settings import PreparationSettings, thresholds_of
    from ..data.preparation.preparing import prepare

    names = (
        "size", "seconds", "features", "autoencoder", "keep_frames", "lips", "syncnet", "allow_silent", "eval_share",
    )  # fmt: skip
    given = {name: getattr(arguments, name) for name in names}
    settings = PreparationSettings(**given, thresholds=thresholds_of(arguments.threshold))
    print(prepare(arguments.source, Path(arguments.output), settings, arguments.engine, arguments.workers))
