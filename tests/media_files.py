"""Small media files that tests write: tones in every container, and files that must be refused."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import scipy.io.wavfile

from letstalk_core.audio.recording import frame_count

CODECS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus", "m4a": "aac", "mp4": "aac"}
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def tone(rate: int, samples: int, channels: int) -> np.ndarray:
    """[channels, samples]; a different pitch in each channel, a click free start."""
    times = np.arange(samples) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * (200 + 50 * c) * times) for c in range(channels)]).astype(np.float32)


def write_media(path: Path, waveform: np.ndarray, rate: int, codec: str | None = None) -> Path:
    """Encode with PyAV; .mp4 gets a picture as well."""
    suffix = path.suffix[1:]
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec or CODECS[suffix], rate=rate, layout=LAYOUTS[len(waveform)])
        if suffix == "mp4":
            video = container.add_stream("libx264", rate=25)
            video.width = video.height = 16
            video.pix_fmt = "yuv420p"
            for number in range(frame_count(waveform.shape[1], rate)):
                picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        packed = np.ascontiguousarray(waveform.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[len(waveform)])
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def bad_files(folder: Path) -> dict[str, Path]:
    sound = tone(16000, 16000, 1)
    cases = {name: folder / name for name in ("missing.wav", "empty.wav", "text.wav", "cut.m4a")}
    cases["long name"] = folder / ("a" * 300 + ".wav")
    cases["empty.wav"].touch()
    cases["text.wav"].write_text("this is not sound\n" * 50)
    whole = write_media(folder / "whole.m4a", sound, 16000).read_bytes()  # its table of contents is at its end
    cases["cut.m4a"].write_bytes(whole[: len(whole) * 6 // 10])
    cases["folder"] = folder / "folder"
    cases["folder"].mkdir()
    cases["no samples.wav"] = folder / "no samples.wav"
    scipy.io.wavfile.write(cases["no samples.wav"], 16000, np.zeros((0, 1), np.int16))
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        broken = sound[0].copy()
        broken[4000] = value
        cases[name] = folder / name
        scipy.io.wavfile.write(cases[name], 16000, broken)
    cases["silent.mp4"] = folder / "silent.mp4"
    with av.open(str(cases["silent.mp4"]), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 16
        video.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux(video.encode(picture))
        container.mux(video.encode(None))
    return cases
