"""python -m letstalk_core: generate, demo, generate-many, leftovers, verify, convert, info, train, train-portraits,
puppet, evaluate, drift.

Every command ends with exit status 0, or prints one line on stderr and ends with another. Heavy imports happen inside
the commands, so that help is instant.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

from .config import SAMPLERS
from .errors import InputError
from .files import ASSETS
from .video.h264 import ENCODERS

EXIT_INTERRUPTED = 130
EXIT_NOT_MARKED = 3


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        if "expected one argument" in message:
            message += "; a name that begins with - is given as in --portrait=-me.png"
        print(f"letstalk: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m letstalk_core", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    _add_video_commands(commands)
    _add_model_commands(commands)
    _add_training_commands(commands)
    _add_evaluation_commands(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_video_commands(commands) -> None:
    generate = commands.add_parser("generate", help="make a talking video from a portrait and a recording")
    generate.add_argument("--portrait", required=True, metavar="IMAGE")
    generate.add_argument("--audio", required=True, metavar="FILE", help="any audio file, or a video with sound")
    generate.add_argument("--output", required=True, metavar="FILE.mp4")
    _add_sampling_options(generate)
    generate.set_defaults(run=_generate)

    demo = commands.add_parser("demo", help="the example portrait speaks the example recording")
    demo.add_argument("--output", default="letstalk-demo.mp4", metavar="FILE.mp4")
    _add_sampling_options(demo)
    for one in (generate, demo):
        one.add_argument("--compile", action="store_true", help="the model, first: pays for long videos on a GPU")
    demo.set_defaults(run=_generate, full_picture=True, portrait=ASSETS / "portrait.jpg", audio=ASSETS / "speech.wav")

    many = commands.add_parser("generate-many", help="make many talking videos with one model, some of them at once")
    many.add_argument("batch", metavar="FOLDER|FILE.csv", help="of pairs a.png, a.wav; or with columns portrait, audio")
    many.add_argument("--output", required=True, metavar="FOLDER")
    many.add_argument("--together", type=int, metavar="N", help="videos at once (8 on a GPU, else 1)")
    _add_sampling_options(many)
    many.set_defaults(run=_generate_many)

    leftovers = commands.add_parser("leftovers", help="list what unfinished videos have left behind")
    leftovers.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help="with all folders below it")
    leftovers.add_argument("--clean", action="store_true", help="remove them, but for those in use")
    leftovers.set_defaults(run=_leftovers)

    verify = commands.add_parser("verify", help="say what marks of synthetic video a file has; status 3 if none")
    verify.add_argument("video", metavar="FILE")
    verify.set_defaults(run=_verify)


def _add_model_commands(commands) -> None:
    convert = commands.add_parser("convert", help="convert a checkpoint of the official layout")
    convert.add_argument("source", metavar="IN.ckpt")
    convert.add_argument("target", metavar="OUT.safetensors")
    for name in ("num-heads", "memory-frames", "clip-frames", "audio-blocks", "audio-channels"):
        convert.add_argument(f"--{name}", type=int, help="what the tensors' shapes don't say")
    convert.set_defaults(run=_convert)

    info = commands.add_parser("info", help="describe a checkpoint")
    info.add_argument("file", metavar="FILE.safetensors")
    info.set_defaults(run=_info)


def _add_training_commands(commands) -> None:
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
    train.add_argument("--start", metavar="FILE", help="go on from this model: its transformer learns on")
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


def _add_evaluation_commands(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a model on held-out people and speech")
    evaluate.add_argument("--model", metavar="FILE.safetensors")
    evaluate.add_argument("--output", default="runs/evaluation", metavar="FOLDER")
    evaluate.add_argument("--pairs", type=int, default=40, help="0 with --speech: only that")
    evaluate.add_argument("--seconds", type=float, default=4.0, help="length of each held-out clip")
    evaluate.add_argument("--speech", metavar="FOLDER", help="also: real recordings, or people with their tracks.npz")
    evaluate.add_argument("--memory-noise", type=float, default=0.0, help="as in generate")
    evaluate.add_argument("--drawings", action="store_true", help="drawings speak instead of people")
    evaluate.set_defaults(run=_evaluate)

    drift = commands.add_parser("drift", help="how a long video changes, second by second, with a plot")
    drift.add_argument("video", metavar="VIDEO")
    drift.add_argument("--portrait", metavar="IMAGE", help="that it was made of; default: its own first second")
    drift.add_argument("--clip-frames", type=int, default=16, help="of the model that made it")
    drift.add_argument("--output", metavar="STEM", help="of STEM.json and STEM.png; default: VIDEO-drift")
    drift.set_defaults(run=_drift)


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FILE.safetensors", help="default: the bundled model")
    parser.add_argument(
        "--lora",
        action="append",
        type=_file_and_strength,
        default=[],
        metavar="FILE[:STRENGTH]",
        help="a fine-tuning of that model, at full strength or another; can be given several times",
    )
    parser.add_argument("--autoencoder", metavar="PATH", help="for a model that does not bundle one")
    parser.add_argument("--audio-encoder", metavar="PATH", help="wav2vec2, for a model that needs it")
    parser.add_argument("--face", default="largest", metavar="largest|none|N", help="which face of the picture")
    parser.add_argument(
        "--full-picture", action=argparse.BooleanOptionalAction, default=False, help="the face speaks in its picture"
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="of the square video; default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's own")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), help="default: the model's own")
    parser.add_argument("--cfg", type=float, help="guidance scale; default: the model's own, 1 is neutral and fastest")
    parser.add_argument(
        "--memory-noise", type=float, default=0.0, help="noise on a model's memory between clips, 0 to 1"
    )
    parser.add_argument("--blinks", type=float, default=16.0, metavar="N", help="a minute, 0 to 60 (default: 16)")
    parser.add_argument("--head-motion", type=float, default=1.0, metavar="N", help="0 still to 2 (default: 1)")
    parser.add_argument("--expression", type=float, default=0.0, metavar="N", help="-1 sad to 1 smiling (default: 0)")
    parser.add_argument(
        "--motion", metavar="FILE.json", help="of head and face over time; it comes before the three above"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16", "int8"))
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU; default: measured once on each machine")
    parser.add_argument("--max-seconds", type=float, help="only the beginning of the recording")
    parser.add_argument(
        "--audio-track", type=int, metavar="N", help="of several; default: the first that is not silent"
    )
    parser.add_argument("--encoder", choices=ENCODERS, default="x264", help="of the pictures; all others need hardware")
    parser.add_argument("--label", default="", metavar="TEXT", help="drawn into the lower left corner of every frame")
    parser.add_argument("--sign-key", metavar="KEY.pem", help="sign the video, as a C2PA manifest, with this key")
    parser.add_argument("--sign-cert", metavar="CERT.pem", help="the certificate of that key, with its chain")
    parser.add_argument("--strict", action="store_true", help="end where there would be a note, of what is missing say")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where the same command was stopped (the default), or begin anew",
    )
    parser.add_argument("--keep-work", action="store_true", help="keep the finished segments beside the video")


def _file_and_strength(text: str) -> tuple[str, float]:
    """FILE or FILE:STRENGTH; the colon of a Windows drive is no such colon."""
    file, _, strength = text.rpartition(":")
    try:
        return (file, float(strength)) if file else (text, 1.0)
    except ValueError:
        return text, 1.0


def _pipeline_and_options(arguments) -> tuple:
    """The pipeline, and what render.write_video takes beside it and the files."""
    import torch

    from .files import read_text
    from .pipeline import BUNDLED_MODEL, LetsTalkPipeline
    from .threads import MOST_THREADS, choose_threads
    from .video.clips import SamplingSettings
    from .video.controls import AskedFor
    from .video.motion_keys import Motion

    settings = SamplingSettings(
        arguments.seed, arguments.steps, arguments.sampler, arguments.cfg, arguments.memory_noise,
        AskedFor(arguments.blinks, arguments.head_motion, arguments.expression),
    )  # fmt: skip
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        raise InputError(f"The number of threads is {arguments.threads}; choose one between 1 and {MOST_THREADS}.")
    torch.set_num_threads(arguments.threads or choose_threads())
    pipeline = LetsTalkPipeline.load(
        arguments.model or BUNDLED_MODEL,
        arguments.device,
        arguments.dtype,
        arguments.autoencoder,
        arguments.audio_encoder,
        arguments.lora,
    )
    motion = arguments.motion and Motion.parse(read_text(arguments.motion, "motion"))
    keys = (arguments.sign_key, arguments.sign_cert)
    options = {"settings": settings, "motion": motion, "sign": keys if any(keys) else None}
    names = ("face", "max_seconds", "audio_track", "encoder", "size", "full_picture", "label", "resume", "keep_work")
    return pipeline, options | {name: getattr(arguments, name) for name in names}


def _generate(arguments) -> None:
    from .render.progress import ProgressBar
    from .render.render import write_video

    pipeline, options = _pipeline_and_options(arguments)
    if arguments.compile:
        began = time.monotonic()
        pipeline.compile()
        print(f"compiling took {time.monotonic() - began:.0f} s")
    bar, began = ProgressBar(Path(arguments.output)), time.monotonic()
    try:
        frames = write_video(pipeline, arguments.portrait, arguments.audio, arguments.output, observer=bar, **options)
    except BaseException as error:
        error.kept = bar.kept()  # main says it
        raise
    finally:
        bar.close()
    print(bar.summary(frames, pipeline.config.fps, time.monotonic() - began))


def _generate_many(arguments) -> None:
    from .render.many import find_pairs, write_videos

    output = Path(arguments.output)
    pairs, failed = find_pairs(Path(arguments.batch), output), 0
    if there := [pair for pair in pairs if arguments.resume and pair.output.exists()]:
        print(f"{len(there)} of {len(pairs)} videos are there already; --no-resume makes them anew")
        pairs = [pair for pair in pairs if pair not in there]
    pipeline, options = _pipeline_and_options(arguments)
    output.mkdir(parents=True, exist_ok=True)
    together = arguments.together
    if together is None:  # a CPU is full with one
        together = 8 if pipeline.device.type == "cuda" else 1
    for number, (pair, made) in enumerate(write_videos(pipeline, pairs, together, **options), 1):
        failed += isinstance(made, Exception)
        said = f"failed: {' '.join(str(made).split())}" if isinstance(made, Exception) else f"{made} frames"
        print(f"{number} of {len(pairs)}, {pair.output}: {said}", flush=True)
    if failed:
        raise InputError(
            f"{failed} of {len(pairs)} videos failed; mend what they are made of, and give the same command again."
        )


def _leftovers(arguments) -> None:
    from .render.segments import find_leftovers

    found = find_leftovers(Path(arguments.folder))
    for leftover in found:
        try:
            owner = leftover.owner(remove=arguments.clean)
            state = f"in use by {owner}" if owner else "removed" if not leftover.path.exists() else "not in use"
        except OSError as error:
            state = f"cannot be looked into ({error.strerror})"
        print(f"{leftover}, {state}")
    if not found:
        print(f"no unfinished videos in {arguments.folder}")


def _verify(arguments) -> int:
    from .video.verify import verify_marks

    lines, marked = verify_marks(arguments.video)
    print(*lines, sep="\n")
    return 0 if marked else EXIT_NOT_MARKED


def _convert(arguments) -> None:
    from .model.official import convert_checkpoint

    names = ("num_heads", "memory_frames", "clip_frames", "audio_blocks", "audio_channels")
    convert_checkpoint(arguments.source, arguments.target, **{name: getattr(arguments, name) for name in names})
    print(f"{arguments.target} written")


def _info(arguments) -> None:
    from .model.checkpoint import describe_checkpoint

    print(describe_checkpoint(arguments.file))


def _train(arguments) -> None:
    from .training.config_file import load_config

    changes = arguments.changes + ([f"init_from={arguments.init_from}"] if arguments.init_from else [])
    config = load_config(arguments.config, changes)
    if arguments.dry_run:
        from .training.dry_run import describe_training

        print(describe_training(config, arguments.devices))
        return
    from .training.train import train

    path = train(config)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{path} written" if path else f"stopped; the same command goes on from {config.run}")


def _train_portraits(arguments) -> None:
    from .precision import choose_device
    from .training.bundled.train_portraits import Plan, train_portraits

    given = {name: getattr(arguments, name) for name in ("puppets", "speaking", "pairs", "batch")}
    given = {name: value for name, value in given.items() if value is not None}
    files = {name: Path(path) for name in ("speech", "start") if (path := getattr(arguments, name))}
    plan = Plan(Path(arguments.work), arguments.minutes, device=choose_device(arguments.device), **given, **files)
    print(f"{train_portraits(plan, Path(arguments.output))} written")


def _puppet(arguments) -> None:
    from .data.people import show
    from .training.build import find_autoencoder

    autoencoder = find_autoencoder(arguments.autoencoder or "")
    puppet = show.choose_puppet(arguments.person, arguments.seed)
    speech = show.speak(show.SENTENCE if arguments.text is None else arguments.text, arguments.voice)
    show.write_video(arguments.output, puppet, speech, arguments.seed, arguments.head, autoencoder)
    print(f"{arguments.output} written")


def _evaluate(arguments) -> None:
    from .evaluation.report import evaluate
    from .pipeline import BUNDLED_MODEL

    print(
        evaluate(
            arguments.model or BUNDLED_MODEL,
            Path(arguments.output),
            arguments.pairs,
            arguments.seconds,
            Path(arguments.speech) if arguments.speech else None,
            arguments.memory_noise,
            arguments.drawings,
        )
    )


def _drift(arguments) -> None:
    from .evaluation.drift import drift

    output = Path(arguments.output) if arguments.output else None
    print(drift(arguments.video, arguments.portrait, arguments.clip_frames, output))


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own notes, one line each; other libraries' warnings are not the user's business."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
        print(f"letstalk: note: {' '.join(str(message).split())}", file=sys.stderr)


@contextlib.contextmanager
def _stops_interrupt():
    """Inside, the signals that end a process gently do what Ctrl-C does."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # elsewhere signals cannot be set
        numbers = []
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that a terminal cannot show must not end a rendering
            stream.reconfigure(errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    try:
        with _stops_interrupt(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            if getattr(arguments, "strict", False):
                warnings.filterwarnings("error", category=UserWarning, module=r"letstalk_core\b")
            status = arguments.run(arguments)
            sys.stdout.flush()  # a full disk is said here
    except KeyboardInterrupt as stop:
        print(f"letstalk: interrupted. {getattr(stop, 'kept', '')}".rstrip(". "), file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if arguments.debug:
            raise
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename is None and error.errno == errno.ENOSPC:
            text = "What is printed cannot be written: the disk that standard output goes to is full. Make room on it."
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what is left to print fails again at the end)
        if not isinstance(error, InputError | ValueError | OSError | UserWarning):  # not foreseen: say what it was
            text = f"{type(error).__name__}: {text} (--debug shows where)"
        print(f"letstalk: {text} {getattr(error, 'kept', '')}".rstrip(), file=sys.stderr)
        return 1
    return status or 0
