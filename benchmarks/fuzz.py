"""Random inputs, as broken as people's: each has to end in a video or in one clear line.

    python benchmarks/fuzz.py [--seed 0] [--count 60]

Sound in every container with random channels, rates and lengths, pictures in random modes, formats and sizes; two of
three are then cut at a random byte, or have random bytes in the middle. A model that knows nothing makes the video,
in a process of its own. Prints a table and ends with status 1 where an input ended in anything else. Three minutes.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import scipy.io.wavfile
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from letstalk_core.cli import main as letstalk  # noqa: E402
from tests.tiny import write_tiny_checkpoint  # noqa: E402

SOUNDS = {
    "wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus", "m4a": "aac", "mkv": "libmp3lame",
    "webm": "libopus", "aiff": "pcm_s16be", "ac3": "ac3", "wv": "wavpack",
}  # fmt: skip
RATES = (8000, 11025, 16000, 22050, 44100, 48000, 96000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
PICTURES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "jpg": ("L", "RGB", "CMYK"), "webp": ("RGB", "RGBA"),
    "gif": ("P", "L"), "tiff": ("1", "L", "RGB", "RGBA", "CMYK", "F"), "bmp": ("1", "L", "P", "RGB"),
    "avif": ("RGB", "RGBA"), "jp2": ("L", "RGB"), "ppm": ("L", "RGB"), "ico": ("RGBA",),
}  # fmt: skip


def write_sound(path: Path, rng: np.random.Generator) -> str:
    suffix = path.suffix[1:]
    channels, rate = int(rng.choice(list(LAYOUTS))), int(rng.choice(RATES))
    if suffix in ("mp3", "mkv"):
        channels, rate = min(channels, 2), min(rate, 48000)
    if suffix in ("ogg", "webm", "ac3"):
        rate, channels = 48000, channels if channels in (1, 2, 6) and suffix == "ac3" else min(channels, 2)
    samples = int(rate * rng.uniform(0.05, 3))
    sound = (0.3 * rng.standard_normal((channels, samples))).astype(np.float32)
    if suffix == "wav" and rng.random() < 0.5:
        kinds = (np.uint8, np.int16, np.int32, np.float32, np.float64)
        kind = kinds[int(rng.integers(len(kinds)))]
        whole = {np.uint8: (127, 128), np.int16: (32767, 0), np.int32: (2**31 - 1, 0)}.get(kind, (1, 0))
        scipy.io.wavfile.write(path, rate, (sound.T.clip(-1, 1) * whole[0] + whole[1]).astype(kind))
        return f"{suffix} of {kind.__name__}, {channels} x {samples} at {rate} Hz"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(SOUNDS[suffix], rate=rate, layout=LAYOUTS[channels])
        packed = np.ascontiguousarray(sound.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[channels])
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return f"{suffix}, {channels} x {samples} at {rate} Hz"


def write_picture(path: Path, rng: np.random.Generator) -> str:
    suffix = path.suffix[1:]
    mode = str(rng.choice(PICTURES[suffix]))
    width, height = (int(np.exp(rng.uniform(np.log(4), np.log(900)))) for _ in range(2))
    if suffix == "ico":
        width, height = min(width, 256), min(height, 256)
    if mode == "F":
        picture = Image.fromarray(rng.random((height, width), np.float32))
    elif mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    else:
        picture = (
            Image.fromarray(rng.integers(0, 256, (height, width, 4)).astype(np.uint8)).convert("RGB").convert(mode)
        )
    picture.save(path)
    return f"{suffix} of {mode}, {width} x {height}"


def spoil(path: Path, rng: np.random.Generator) -> str:
    """Cut a file, or overwrite some of it; says what was done."""
    content, kind = bytearray(path.read_bytes()), int(rng.integers(3))
    at = int(rng.integers(len(content)))
    if kind == 1:
        path.write_bytes(content[:at])
        return f", cut at byte {at} of {len(content)}"
    if kind == 2:
        count = int(min(rng.integers(1, 2000), len(content) - at))
        content[at : at + count] = rng.bytes(count)
        path.write_bytes(content)
        return f", {count} random bytes at {at} of {len(content)}"
    return ""


def run(command: list[str], log: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os._exit(letstalk(command))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    arguments = parser.parse_args()
    forked, failed = multiprocessing.get_context("spawn"), 0
    print("| input | what came of it |\n|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_tiny_checkpoint(folder / "tiny.safetensors", default_steps=1)
        portrait, audio = folder / "me.png", folder / "me.wav"
        Image.new("RGB", (64, 64), "grey").save(portrait)
        scipy.io.wavfile.write(audio, 16000, np.zeros(6400, np.int16))
        for number in range(arguments.count):
            rng = np.random.default_rng((arguments.seed, number))
            sound = number % 2 == 0
            kinds = list(SOUNDS if sound else PICTURES)
            path = folder / f"{number}.{kinds[number // 2 % len(kinds)]}"
            what = (write_sound if sound else write_picture)(path, rng) + spoil(path, rng)
            output, log = folder / f"{number}.mp4", folder / f"{number}.log"
            files = ["--portrait", str(portrait if sound else path), "--audio", str(path if sound else audio)]
            command = ["generate", "--model", str(model), *files, "--face", "none", "--output", str(output)]
            process = forked.Process(target=run, args=(command, str(log)))
            process.start()
            process.join(120)
            lines = [line.replace(f"{folder}/", "") for line in log.read_text().splitlines() if "letstalk:" in line]
            made = process.exitcode == 0 and output.exists()
            clear = process.exitcode == 1 and len(lines) == 1 and "--debug" not in lines[0]
            failed += not (made or clear)
            said = " ".join(line.removeprefix("letstalk: ") for line in lines)
            print(
                f"| {what} | {'a video. ' if made else '' if clear else f'EXIT {process.exitcode}: '}{said} |",
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
