"""Commands that tests give, the files that they take, and how a command has to fail."""

import wave
from pathlib import Path

import numpy as np

from letstalk_core.cli import main


def write_wav(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> Path:
    samples = (np.sin(np.arange(round(seconds * rate)) / 8) * 8000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples, channels).tobytes())
    return path


def command(inputs, output, **changes) -> list[str]:
    values = {**inputs, "output": output, **changes}
    return ["generate", *(part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value)))]


def fails(argv, capfd, *words, status=1) -> None:
    """The command fails with one line on stderr that has the words, and no traceback."""
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capfd.readouterr().err.strip()  # the file descriptor: libraries in C write there too
    assert code == status
    lines = [line for line in error.splitlines() if not line.startswith("letstalk: note:")]
    assert len(lines) == 1 and lines[0].startswith("letstalk: "), error
    for word in words:
        assert word.lower() in error.lower()


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
