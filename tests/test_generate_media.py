"""From any recording to a video: exactly ceil(samples / rate * 25) frames, and the whole recording as its sound."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest

from letstalk_core.audio.recording import read_audio
from letstalk_core.cli import main
from letstalk_core.video.reader import probe

from .media_files import tone, write_media
from .tiny import write_tiny_checkpoint

RATES = (8000, 11025, 16000, 22050, 44100, 48000)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", image_size=32, default_steps=1)


def check(model, recording, output, repository) -> None:
    waveform, rate = read_audio(recording)
    portrait = repository / "assets" / "portrait.jpg"
    arguments = ["--portrait", portrait, "--audio", recording, "--output", output, "--model", model]
    assert main(["generate", *map(str, arguments)]) == 0
    found = probe(output)
    samples = waveform.shape[1]
    assert found.frames == ceil(Fraction(samples, rate) * 25)
    heard, heard_rate = read_audio(output)
    assert abs(heard.shape[1] / heard_rate - samples / rate) <= 1 / 25
    assert abs(heard.shape[1] / heard_rate - found.frames / 25) <= 1 / 25
    # The same sound, not only the same length: loudness over time agrees.
    loudness = [
        sound.mean(0).abs().split(max(1, sound_rate // 25))
        for sound, sound_rate in ((waveform, rate), (heard, heard_rate))
    ]
    first, second = (np.array([float(part.mean()) for part in parts]) for parts in loudness)
    count = min(len(first), len(second))
    assert np.corrcoef(first[:count], second[:count])[0, 1] > 0.95


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "m4a", "mp4"])
def test_containers(suffix, model, tmp_path, repository):
    sound = tone(48000, 48000 + 1234, 2) * np.linspace(0, 1, 49234, dtype=np.float32)
    check(model, write_media(tmp_path / f"in.{suffix}", sound, 48000), tmp_path / "out.mp4", repository)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", RATES)
def test_rates_and_channels(rate, channels, model, tmp_path, repository):
    sound = tone(rate, rate // 2 + 77, channels) * np.linspace(0, 1, rate // 2 + 77, dtype=np.float32)
    check(model, write_media(tmp_path / "in.wav", sound, rate), tmp_path / "out.mp4", repository)


def test_real_recordings_and_a_video_as_source(model, tmp_path, repository, shared):
    recordings = sorted((shared / "media" / "speech").iterdir())
    assert recordings
    for recording in [*recordings, shared / "media" / "clips" / "hdtf_WDA_KatieHill_000.mp4"]:
        check(model, recording, tmp_path / "out.mp4", repository)
