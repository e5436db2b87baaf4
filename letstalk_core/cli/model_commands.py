"""The commands for models: convert, info, train, train-portraits, puppet, evaluate, drift."""

from __future__ import annotations

import os
from pathlib import Path

SAMPLED = ("memory_noise", "articulation")  # options of evaluate that generate has as well
OF_PUPPETS = ("pairs", "speech", *SAMPLED, "drawings")  # options of evaluate without real clips
FEATURE_NETWORKS = {
    "inception": "FID",
    "i3d": "FVD",
    "lpips": "LPIPS",
    "syncnet": "Sync-C and Sync-D",
    "identity": "identity",
    "expression": "E-FID",
}


def add_model_commands(commands) -> None:
    convert = commands.add_parser("convert", help="convert a checkpoint of the official layout")
    convert.add_argument("source", metavar="IN.ckpt")
    convert.add_argument("target", metavar="OUT.safetensors")
    for name in ("num-heads", "memory-frames", "clip-frames", "audio-blocks", "audio-channels"):
        convert.add_argument(f"--{name}", type=int, help="what the tensors' shapes don't say")
    convert.set_defaults(run=_convert)

    info = commands.add_parser("info", help="describe a checkpoint")
    info.add_argument("file", metavar="FILE.safetensors")
    info.set_defaults(run=_info)


def add_training_commands(commands) -> None:
    train = commands.add_parser("train", help="train or fine-tune a model on footage, shards or drawn people")
    train.add_argument("changes", nargs="*", metavar="key=value", help="changes to the configuration: model.depth=4")
    train.add_argument("--config", metavar="FILE.yaml", help="configs/ has one for every variant of the paper")
    train.add_argument("--init-from", metavar="FILE", help="begin with the weights of this model, as far as they fit")
    train.add_argument("--dry-run", action="store_true", help="say what it would take, on this hardware, and end")
    train.add_argument("--devices", type=int, default=1, metavar="N", help="of the hardware, for --dry-run")
    train.set_defaults(run=_train)

    train = commands.add_parser("train-portraits", help="train a model for photographs and drawings, in a given time")
    train.add_argument("--minutes", type=float, required=True, help="of all trainings; making the data takes more")
    train.add_argument("--work", default="runs/portraits", metavar="FOLDER", help="everything is kept here and resumed")
    train.add_argument("--output", default="runs/portraits/letstalk-portraits-256.safetensors", metavar="FILE")
    train.add_argument("--speech", metavar="FILE", help="speech prepared beforehand; default: synthesisers speak here")
    train.add_argument("--start", metavar="FILE", help="go on from this model: its ear and transformer learn on")
    train.add_argument("--puppets", type=int, help="people in all poses (2600)")
    train.add_argument("--speaking", type=int, help="people and drawings who speak (2400)")
    train.add_argument("--pairs", type=int, help="spoken clips of 8 s, without --speech (8000)")
    train.add_argument("--batch", type=int, help="clips of a step of the transformer's (64 on a GPU, else 12)")
    train.add_argument("--device", default="auto")
    train.set_defaults(run=_train_portraits)

    puppet = commands.add_parser("puppet", help="a photograph of the training's speaks a text, by its true mouth")
    puppet.add_argument("text", nargs="?", help="what espeak-ng says; default: an English sentence")
    puppet.add_argument("--voice", default="en-us", metavar="LANGUAGE", help="of espeak-ng, such as de or ja")
    puppet.add_argument("--person", type=int, metavar="0..199", help="default: somebody mixed of those held out")
    puppet.add_argument("--seed", type=int, default=0, help="who is mixed, teeth, and how the head moves")
    puppet.add_argument(
        "--head", type=float, metavar="SIZE", help="of its motion, 0 still, 9 far; default: by the seed"
    )
    puppet.add_argument(
        "--autoencoder", metavar="FILE", help="show the portrait, the puppet, and what this makes of it"
    )
    puppet.add_argument("--output", default="puppet.mp4", metavar="FILE.mp4")
    puppet.set_defaults(run=_puppet)


def add_evaluation_commands(commands) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="measure a model on held-out people or prepared footage, or videos against real ones"
    )
    evaluate.add_argument("--model", metavar="FILE.safetensors")
    evaluate.add_argument("--output", default="runs/evaluation", metavar="FOLDER")
    evaluate.add_argument("--pairs", type=int, help="people who are judged (40); 0 with --speech: only that")
    evaluate.add_argument(
        "--seconds", type=float, help="of each clip (4; with --generated its whole length), from its start"
    )
    evaluate.add_argument("--speech", metavar="FOLDER", help="also: real recordings, or people with their tracks.npz")
    for name in SAMPLED:
        evaluate.add_argument(f"--{name.replace('_', '-')}", type=float, help="as in generate")
    evaluate.add_argument("--drawings", action="store_true", help="drawings speak instead of people")
    evaluate.add_argument("--data", metavar="SHARDS", help="what the model makes of prepared footage, against it")
    evaluate.add_argument("--generated", metavar="FOLDER", help="videos that were made, against --real")
    evaluate.add_argument("--real", metavar="FOLDER", help="the real videos, of the same names")
    evaluate.add_argument("--size", type=int, metavar="PIXELS", help="side that square frames are resized to first")
    evaluate.add_argument(
        "--rungs", action="store_true", help="also the truth, a still first frame and, with --data, another's sound"
    )
    evaluate.add_argument("--clip-frames", type=int, help="of the model that made --generated (16)")
    for name, measure in FEATURE_NETWORKS.items():
        evaluate.add_argument(f"--{name}", metavar="FILE", help=f"network for {measure}; docs/evaluation.md names it")
    evaluate.set_defaults(run=_evaluate)

    drift = commands.add_parser("drift", help="how a long video changes, second by second, with a plot")
    drift.add_argument("video", metavar="VIDEO")
    drift.add_argument("--portrait", metavar="IMAGE", help="that it was made of; default: its own first second")
    drift.add_argument("--clip-frames", type=int, default=16, help="of the model that made it")
    drift.add_argument("--output", metavar="STEM", help="of STEM.json and STEM.png; default: VIDEO-drift")
    drift.set_defaults(run=_drift)


def _convert(arguments) -> None:
    from ..model.official import convert_checkpoint

    names = ("num_heads", "memory_frames", "clip_frames", "audio_blocks", "audio_channels")
    convert_checkpoint(arguments.source, arguments.target, **{name: getattr(arguments, name) for name in names})
    print(f"{arguments.target} written")


def _info(arguments) -> None:
    from ..model.checkpoint import describe_checkpoint

    print(describe_checkpoint(arguments.file))


def _train(arguments) -> None:
    from ..training.config_file import load_config

    changes = arguments.changes + ([f"init_from={arguments.init_from}"] if arguments.init_from else [])
    config = load_config(arguments.config, changes)
    if arguments.dry_run:
        from ..training.dry_run import describe_training

        print(describe_training(config, arguments.devices))
        return
    from ..training.train import train

    path = train(config)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{path} written" if path else f"stopped; the same command goes on from {config.run}")


def _train_portraits(arguments) -> None:
    from ..precision import choose_device
    from ..training.bundled.train_portraits import Plan, train_portraits

    given = {name: getattr(arguments, name) for name in ("puppets", "speaking", "pairs", "batch")}
    given = {name: value for name, value in given.items() if value is not None}
    files = {name: Path(path) for name in ("speech", "start") if (path := getattr(arguments, name))}
    plan = Plan(Path(arguments.work), arguments.minutes, device=choose_device(arguments.device), **given, **files)
    print(f"{train_portraits(plan, Path(arguments.output))} written")


def _puppet(arguments) -> None:
    from ..autoencoders import find_autoencoder
    from ..data.people import show

    autoencoder = find_autoencoder(arguments.autoencoder or "")
    puppet = show.choose_puppet(arguments.person, arguments.seed)
    speech = show.speak(show.SENTENCE if arguments.text is None else arguments.text, arguments.voice)
    show.write_video(arguments.output, puppet, speech, arguments.seed, arguments.head, autoencoder)
    print(f"{arguments.output} written")


def _evaluate(arguments) -> None:
    from ..errors import InputError
    from ..pipeline import BUNDLED_MODEL

    if bool(arguments.generated) != bool(arguments.real):
        raise InputError("--generated and --real go together: give both folders.")
    if arguments.generated and (arguments.data or arguments.model):
        raise InputError("--generated compares finished videos; give it without --model and --data.")
    model = arguments.model or BUNDLED_MODEL
    if arguments.generated or arguments.data:
        print(_compare(arguments, model), end="")
    else:
        print(_evaluate_pairs(arguments, model))


def _compare(arguments, model: str | Path) -> str:
    from ..errors import InputError
    from ..evaluation.comparison_report import CLIP_FRAMES, evaluate_folders, evaluate_on_shards

    if given := _given(arguments, OF_PUPPETS):
        raise InputError(f"{given[0]} is for held-out puppets: give it without --generated and --data.")
    if arguments.data and _given(arguments, ["clip_frames"]):
        raise InputError("--clip-frames is for --generated: with --data the model says it; leave it out.")
    files = {name: Path(path) for name in FEATURE_NETWORKS if (path := getattr(arguments, name))}
    common = {name: getattr(arguments, name) for name in ("seconds", "size", "rungs")}
    output = Path(arguments.output)
    if arguments.data:
        return evaluate_on_shards(model, Path(arguments.data), output, files=files, **common)
    generated, real = Path(arguments.generated), Path(arguments.real)
    frames = CLIP_FRAMES if arguments.clip_frames is None else arguments.clip_frames
    return evaluate_folders(generated, real, output, clip_frames=frames, files=files, **common)


def _evaluate_pairs(arguments, model: str | Path) -> str:
    from ..errors import InputError
    from ..evaluation.report import evaluate
    from ..video.clips import SamplingSettings

    if given := _given(arguments, (*FEATURE_NETWORKS, "size", "rungs", "clip_frames")):
        raise InputError(f"{given[0]} is for real clips: give --generated and --real, or --data.")
    return evaluate(
        model,
        Path(arguments.output),
        40 if arguments.pairs is None else arguments.pairs,
        4.0 if arguments.seconds is None else arguments.seconds,
        Path(arguments.speech) if arguments.speech else None,
        SamplingSettings(**{name: value for name in SAMPLED if (value := getattr(arguments, name)) is not None}),
        arguments.drawings,
    )


def _given(arguments, names) -> list[str]:
    """Those of the options that the command line has, as one types them."""
    values = {name: getattr(arguments, name) for name in names}
    return [f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None and value is not False]


def _drift(arguments) -> None:
    from ..evaluation.drift import drift

    output = Path(arguments.output) if arguments.output else None
    print(drift(arguments.video, arguments.portrait, arguments.clip_frames, output))
