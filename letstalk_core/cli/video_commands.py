"""The commands that make videos and look at them: generate, demo, generate-many, leftovers, verify."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..config import SAMPLERS
from ..defaults import BLINKS
from ..errors import InputError
from ..files import ASSETS
from ..video.h264 import ENCODERS

EXIT_NOT_MARKED = 3


def add_video_commands(commands) -> None:
    generate = commands.add_parser("generate", help="make a talking video from a portrait and a recording")
    generate.add_argument("--portrait", required=True, metavar="IMAGE")
    generate.add_argument("--audio", metavar="FILE", help="any audio file, or a video with sound")
    generate.add_argument(
        "--speaker",
        action="append",
        type=_face_and_voice,
        metavar="FACE=FILE[:CHANNEL]",
        help="in place of --audio, once for each face that speaks: left, right, largest or a number, and its sound, or "
        "the left or right channel of one",
    )
    generate.add_argument("--output", required=True, metavar="FILE.mp4|.webm|FOLDER")
    _add_sampling_options(generate)
    generate.set_defaults(run=_generate)

    demo = commands.add_parser("demo", help="the example portrait speaks the example recording")
    demo.add_argument("--output", default="letstalk-demo.mp4", metavar="FILE.mp4")
    _add_sampling_options(demo)
    for one in (generate, demo):
        one.add_argument("--compile", action="store_true", help="the model, first: pays for long videos on a GPU")
    demo.set_defaults(
        run=_generate, speaker=None, full_picture=True, portrait=ASSETS / "portrait.jpg", audio=ASSETS / "speech.wav"
    )

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
    parser.add_argument(
        "--face", default="largest", metavar="largest|left|right|none|N", help="which one of the picture"
    )
    parser.add_argument(
        "--full-picture", action=argparse.BooleanOptionalAction, default=False, help="the face speaks in its picture"
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="of the square video; default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's own")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), help="default: the model's own")
    parser.add_argument("--cfg", type=float, help="guidance scale; default: the model's own, 1 is neutral and fastest")
    parser.add_argument(
        "--articulation",
        type=float,
        default=1.0,
        metavar="N",
        help="how far quiet sounds move the mouth, 0 to 3 (default: 1, as trained)",
    )
    parser.add_argument(
        "--memory-noise", type=float, default=0.0, help="noise on a model's memory between clips, 0 to 1"
    )
    parser.add_argument("--blinks", type=float, default=BLINKS, metavar="N", help="a minute, 0 to 60 (default: 16)")
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
    parser.add_argument(
        "--background",
        default="keep",
        metavar="keep|transparent|COLOUR",
        help="behind the person: the picture's own, nothing (a .webm, or a folder of PNG pictures), or one as #00b140",
    )
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


def _face_and_voice(text: str) -> tuple:
    face, equals, file = text.partition("=")
    if not (face and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not FACE=FILE, as in left=anna.wav")
    name, _, channel = file.rpartition(":")
    return face, (name, channel) if name and (channel in ("left", "right") or channel.isdecimal()) else file


def _voices(arguments):
    """The recording, or one for each face that is named; InputError where both or neither are given."""
    speakers = arguments.speaker or []
    if bool(speakers) == bool(arguments.audio):
        raise InputError("Give the sound once: --audio FILE, or --speaker FACE=FILE for each face that speaks.")
    voices = dict(speakers)
    if len(voices) < len(speakers):
        raise InputError("One face has two sounds; give each --speaker a face of its own.")
    return voices or arguments.audio


def _pipeline_and_options(arguments) -> tuple:
    """The pipeline, and what render.write_video takes beside it and the files."""
    import torch

    from ..files import read_text
    from ..pipeline import BUNDLED_MODEL, LetsTalkPipeline
    from ..threads import MOST_THREADS, choose_threads
    from ..video.clips import SamplingSettings
    from ..video.controls import AskedFor
    from ..video.motion_keys import Motion

    settings = SamplingSettings(
        arguments.seed, arguments.steps, arguments.sampler, arguments.cfg, arguments.memory_noise,
        AskedFor(arguments.blinks, arguments.head_motion, arguments.expression), arguments.articulation,
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
    names = ("face", "max_seconds", "audio_track", "encoder", "size", "full_picture", "label")
    names += ("background", "resume", "keep_work")
    return pipeline, options | {name: getattr(arguments, name) for name in names}


def _generate(arguments) -> None:
    from ..render.progress import ProgressBar
    from ..render.render import write_video

    voices = _voices(arguments)
    pipeline, options = _pipeline_and_options(arguments)
    if arguments.compile:
        began = time.monotonic()
        pipeline.compile()
        print(f"compiling took {time.monotonic() - began:.0f} s")
    bar, began = ProgressBar(Path(arguments.output)), time.monotonic()
    try:
        frames = write_video(pipeline, arguments.portrait, voices, arguments.output, observer=bar, **options)
    except BaseException as error:
        error.kept = bar.kept()  # main says it
        raise
    finally:
        bar.close()
    print(bar.summary(frames, pipeline.config.fps, time.monotonic() - began))


def _is_made(output: Path) -> bool:
    """Whether a video is there, or the pictures of one."""
    return any(output.iterdir()) if output.is_dir() else output.exists()


def _generate_many(arguments) -> None:
    from ..render.many import find_pairs, write_videos

    output, suffix = Path(arguments.output), ".webm" if arguments.background == "transparent" else ".mp4"
    pairs, failed = find_pairs(Path(arguments.batch), output, suffix), 0
    if there := [pair for pair in pairs if arguments.resume and _is_made(pair.output)]:
        folders = ", but for folders, which have to be removed" if any(pair.output.is_dir() for pair in there) else ""
        print(f"{len(there)} of {len(pairs)} videos are there already; --no-resume makes them anew{folders}")
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
    from ..render.segments import find_leftovers

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
    from ..video.verify import verify_marks

    lines, marked = verify_marks(arguments.video)
    print(*lines, sep="\n")
    return 0 if marked else EXIT_NOT_MARKED
