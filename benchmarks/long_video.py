"""A long video on the bundled model: memory and speed against length, sound against picture, and drift.

    python benchmarks/long_video.py curve [MINUTES]     # default 30: peak memory, seconds per frame, sound
    python benchmarks/long_video.py drift [MINUTES]     # default 10: with smoothed borders and without

Both write into docs/long_video.json; curve draws docs/long_video.png and drift docs/drift.png. Nothing else should run
beside them. Needs requirements-dev.txt.
"""

import json
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
SPEECH, PORTRAIT = REPOSITORY / "assets" / "speech.wav", REPOSITORY / "assets" / "portrait.jpg"
RESULT = REPOSITORY / "docs" / "long_video.json"
CLICK_AT = 0.61  # of the length: where the recording has one sample at full scale in half a second of silence
FPS = 25


def save(name: str, values: dict) -> None:
    told = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**told, name: values}, indent=2) + "\n")
    print(json.dumps({name: values}, indent=2))


def write_recording(path: Path, seconds: int) -> float:
    """The example speech over and over, with a click; returns the second of the click."""
    with wave.open(str(SPEECH), "rb") as source, wave.open(str(path), "wb") as target:
        target.setparams(source.getparams())
        rate = source.getframerate()
        samples = np.frombuffer(source.readframes(source.getnframes()), "<i2")
        click, position = round(CLICK_AT * seconds) * rate, 0
        while position < seconds * rate:
            block = samples[: seconds * rate - position].copy()
            at = np.arange(position, position + len(block))
            block[abs(at - click) < rate // 4] = 0
            block[at == click] = 32767
            target.writeframes(block.tobytes())
            position += len(block)
    return click / rate


def render(recording: Path, output: Path) -> None:
    """In a process of its own: renders, and prints JSON lines [frames, seconds, bytes of resident memory].

    The last two are the most that joining the segments took, and the peak of everything.
    """
    import psutil

    from letstalk_core import LetsTalkPipeline
    from letstalk_core.render.estimate import PeakMemory
    from letstalk_core.render.render import Observer, write_video

    began, process = time.monotonic(), psutil.Process()
    joining = PeakMemory()

    class Log(Observer):
        def advance(self, frames, picture):
            joining.bytes = 0
            print(json.dumps([frames, time.monotonic() - began, process.memory_info().rss]), flush=True)

    pipeline = LetsTalkPipeline.load(device="cpu")
    with PeakMemory() as peak, joining:
        frames = write_video(pipeline, PORTRAIT, recording, output, observer=Log())
    for most in (joining, peak):
        print(json.dumps([frames, time.monotonic() - began, most.bytes]), flush=True)


def measured(folder: Path, minutes: int) -> tuple[np.ndarray, Path, float]:
    """Rows (frames, seconds, bytes) of a rendering, the last two as `render` says; the video; the click."""
    recording, output = folder / f"{minutes}.wav", folder / f"{minutes}.mp4"
    click = write_recording(recording, minutes * 60)
    command = [sys.executable, __file__, "render", recording, output]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return np.array([json.loads(line) for line in lines], float), output, click


def sound_and_picture(video: Path, click: float) -> dict:
    """Lengths of both tracks, and where the click is."""
    from letstalk_core.audio.recording import Recording
    from letstalk_core.video.reader import probe

    found, position, loudest, at = probe(video), 0, 0.0, 0
    for block, rate in Recording(video).blocks():  # noqa: B007
        if block.abs().max() > loudest:
            loudest, at = float(block.abs().max()), position + int(block.abs().max(0).values.argmax())
        position += block.shape[1]
    return {
        "picture_seconds": found.duration,
        "sound_seconds": found.audio_duration,
        "click_wanted_at": click,
        "click_found_at": round(at / rate, 4),
    }


def curve(minutes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        short, *_ = measured(Path(folder), 1)
        rows, video, click = measured(Path(folder), minutes)
        size = video.stat().st_size
        sound = sound_and_picture(video, click)
    made, (_, _, joining), (frames, seconds, peak) = rows[:-2], *rows[-2:]
    edges = np.arange(0, frames + 1, 60 * FPS)
    at = np.interp(edges, np.concatenate([[0], made[:, 0]]), np.concatenate([[made[0, 1]], made[:, 1]]))
    per_frame = np.diff(at) / 60 / FPS  # in each minute
    steady = made[made[:, 0] > 120 * FPS]
    rising = max(0.0, np.polyfit(steady[:, 0], steady[:, 2], 1)[0]) if len(steady) > 2 else 0.0  # bytes a frame
    index = max(0.0, joining - made[-1, 2]) / frames
    told = {
        "minutes": minutes,
        "peak_mib_of_1_minute": round(short[-1, 2] / 2**20),
        "peak_mib": round(peak / 2**20),
        "peak_ratio": round(peak / short[-1, 2], 4),
        "seconds_per_frame_second_minute": round(per_frame[1], 5),
        "seconds_per_frame_last_minute": round(per_frame[-1], 5),
        "speed_ratio": round(per_frame[-1] / per_frame[1], 4),
        "seconds_per_frame_minutes": {"least": round(per_frame.min(), 5), "most": round(per_frame.max(), 5)},
        "seconds": round(seconds, 1),
        "seconds_of_joining": round(seconds - made[-1, 1], 1),
        "bytes_per_second_of_video": round(size / minutes / 60),
        "bytes_of_memory_per_frame": {"while_rendering": round(rising), "while_joining": round(index)},
        **sound,
    }  # fmt: skip
    save("curve", {**told, "plan": plan(told)})
    draw_curve(made, per_frame, peak)


def plan(told: dict) -> dict:
    """What a video of so many hours takes, from the measured values."""
    from letstalk_core.render.estimate import INDEX_BYTES

    def one(hours: int) -> dict:
        frames, growth = hours * 3600 * FPS, told["bytes_of_memory_per_frame"]["while_rendering"]
        index = INDEX_BYTES * (1 + 16000 / 1024 / FPS)  # bytes of each frame, with the sound at 16 kHz
        return {
            "hours_of_computing": round(frames * told["seconds_per_frame_last_minute"] / 3600, 1),
            "peak_mib": round(told["peak_mib"] + (growth + index) * frames / 2**20),
            "disk_gb": round(2 * hours * 3600 * told["bytes_per_second_of_video"] / 1e9, 2),
        }

    return {f"{hours} hours": one(hours) for hours in (10, 24)}


def draw_curve(made: np.ndarray, per_frame: np.ndarray, peak: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9, 3.2), layout="constrained")
    memory, speed = figure.subplots(1, 2)
    memory.plot(made[:, 0] / FPS / 60, made[:, 2] / 2**20, label="while rendering")
    memory.axhline(peak / 2**20, color="grey", linestyle=":", label="peak, joining included")
    memory.set(xlabel="minutes of video made", ylabel="resident memory, MiB", ylim=(0, peak / 2**20 * 1.1))
    memory.legend(loc="lower right")
    speed.plot(np.arange(len(per_frame)) + 0.5, per_frame * 1000, marker=".")
    speed.set(xlabel="minutes of video made", ylabel="ms per frame", ylim=(0, per_frame.max() * 1100))
    figure.savefig(RESULT.with_suffix(".png"), dpi=100)


# name: changes of the model's configuration
CONDITIONS = {"as it is": {}, "borders not smoothed": {"border_smoothing": 0.0}}


def drift(minutes: int) -> None:
    from letstalk_core import LetsTalkPipeline, SamplingSettings, write_video
    from letstalk_core.evaluation.drift import draw, measure_drift

    pipeline = LetsTalkPipeline.load(device="cpu")
    shipped, reports = pipeline.config, {}
    with tempfile.TemporaryDirectory() as folder:
        recording, output = Path(folder) / "speech.wav", Path(folder) / "talk.mp4"
        write_recording(recording, minutes * 60)
        for name, changes in CONDITIONS.items():
            pipeline.model.config = shipped.with_changes(**changes)
            write_video(pipeline, PORTRAIT, recording, output, SamplingSettings(), resume=False)
            reports[name] = measure_drift(output, PORTRAIT, shipped.transformer.clip_frames)
            print(name, {key: value for key, value in reports[name].items() if key != "series"}, flush=True)
    draw(reports, RESULT.with_name("drift.png"))
    save("drift", {"minutes": minutes, **{name: summary(report) for name, report in reports.items()}})


def summary(report: dict) -> dict:
    """Border jump, slopes a minute, and each series' mean in the first and in the last minute."""
    ends = {
        name: [round(float(np.nanmean(np.array(part, float))), 4) for part in (values[:60], values[-60:])]
        for name, values in report["series"].items()
    }
    slopes = {name: round(value, 5) for name, value in report["slopes_per_minute"].items()}
    return {"border_jump": round(report["border_jump"], 3), "slopes_per_minute": slopes, "first_and_last_minute": ends}


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["help"]
    if what == "render":
        render(*map(Path, rest))
    elif what == "curve":
        curve(int(rest[0]) if rest else 30)
    elif what == "drift":
        drift(int(rest[0]) if rest else 10)
    else:
        raise SystemExit(__doc__)
