"""Decoding, frame counts and log-mel features."""

import math
import os
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.io.wavfile
import torch

from letstalk_core.audio import encoder as audio_encoder
from letstalk_core.audio import mel
from letstalk_core.audio.decoding import audio_blocks
from letstalk_core.audio.encoder import FeatureStream
from letstalk_core.audio.load_encoder import load_audio_encoder
from letstalk_core.audio.loudness import speech_gain
from letstalk_core.audio.mel import MEL_REACH, mel_features
from letstalk_core.audio.recording import Recording, SampleReader, frame_count, read_audio
from letstalk_core.errors import InputError
from tests.media_files import CODECS, bad_files, tone, write_media

ROOT = Path(__file__).resolve().parents[1]
MEDIA = ROOT.parent / "shared" / "media"
SPEECH = MEDIA / "speech"
RATES = (8000, 11025, 22050, 44100, 48000, 96000)


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("rate, channels", [*((rate, 2) for rate in RATES), (16000, 1), (44100, 6)])
def test_every_sample_of_every_format(tmp_path, suffix, rate, channels):
    if suffix == "mp3" and (channels == 6 or rate == 96000):
        pytest.skip("MP3 has neither 5.1 nor 96 kHz")
    # libav drops a few of the last samples of a Vorbis file of one page, which is up to a second
    samples = int(rate * (1.3 if suffix == "ogg" else 0.3)) + 13
    original = tone(rate, samples, channels)
    path = tmp_path / f"sound.{suffix}"
    if suffix == "ogg" and rate != 48000:  # Vorbis: PyAV reads it and does not write it
        if not shutil.which("ffmpeg"):
            pytest.skip("no ffmpeg on this machine to write Vorbis with")
        source = write_media(tmp_path / "source.wav", original, rate)
        subprocess.run(["ffmpeg", "-v", "error", "-i", source, "-c:a", "libvorbis", path], check=True)
    else:
        write_media(path, original, rate)
    waveform, read_rate = read_audio(path)
    assert (read_rate, waveform.shape) == (rate, (channels, samples))
    assert waveform.dtype == torch.float32
    # Aligned in time as well as complete. The low-frequency channel of 5.1 is filtered by lossy codecs.
    inner = slice(samples // 4, samples // 2)
    for channel in (0, 1)[:channels]:
        correlation = np.corrcoef(waveform[channel, inner].numpy(), original[channel, inner])[0, 1]
        assert correlation > 0.99


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_sample_formats_of_wav(tmp_path, kind):
    original = tone(16000, 1000, 2).T
    scaled = {np.uint8: original * 127 + 128, np.int16: original * 32767, np.int32: original * (2**31 - 1)}
    scipy.io.wavfile.write(tmp_path / "a.wav", 16000, scaled.get(kind, original).astype(kind))
    waveform, _ = read_audio(tmp_path / "a.wav")
    assert np.abs(waveform.T.numpy() - original).max() < (0.02 if kind is np.uint8 else 1e-4)


def test_ranges_are_exact_and_blocks_join_to_the_whole(tmp_path):
    original = tone(44100, 50000, 1)
    path = write_media(tmp_path / "a.wav", original, 44100)
    whole, _ = read_audio(path)
    assert torch.equal(torch.cat([block for block, _ in audio_blocks(path)], 1), whole)
    part, _ = read_audio(path, start=0.1, duration=0.5)
    assert torch.equal(part, whole[:, 4410 : 4410 + 22050])
    assert torch.equal(read_audio(path, start=1.0, duration=9.0)[0], whole[:, 44100:])
    with pytest.raises(InputError, match="ends before 2"):
        read_audio(path, start=2.0)


@pytest.mark.skipif(not SPEECH.is_dir(), reason="the folder ../shared/media/speech is not here")
def test_real_recordings():
    for path in sorted(SPEECH.iterdir()):
        waveform, rate = read_audio(path)
        features = load_audio_encoder("mel").encode(waveform, rate)
        assert features.shape == (frame_count(waveform.shape[1], rate), 4, 80)
        assert features.isfinite().all()
        assert abs(features.mean()) < 1.2 and 0.5 < features.std() < 1.5


def test_frame_count_is_exact():
    assert frame_count(1, 16000) == frame_count(640, 16000) == 1
    assert frame_count(641, 16000) == 2
    assert frame_count(44100 * 3600 * 100, 44100) == 25 * 3600 * 100
    assert frame_count(44100 * 3600 * 100 + 1, 44100) == 25 * 3600 * 100 + 1
    assert frame_count(48048, 48000, 30000 / 1001) == 30
    for rate in (8000, 11025, 22050, 44100, 48000, 96000):
        for frames in (1, 7, 29, 58, 1001):
            assert frame_count(math.floor(Fraction(frames * rate, 25)), rate) == frames


# Bad inputs ----------------------------------------------------------------------------------------------------------


def test_bad_files_are_one_sentence(tmp_path):
    expected = {
        "missing.wav": "There is no file",
        "long name": "There is no file",
        "empty.wav": "is empty",
        "text.wav": "not a media file",
        "cut.m4a": "cut short",
        "folder": "is a folder",
        "no samples.wav": "has no samples",
        "nan.wav": "NaN or infinite, the first at 0.250",
        "inf.wav": "NaN or infinite, the first at 0.250",
        "silent.mp4": "no audio stream",
    }
    files = bad_files(tmp_path)
    assert set(files) == set(expected)
    for name, sentence in expected.items():
        with pytest.raises(InputError, match=sentence) as caught:
            read_audio(files[name])
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("suffix", ["m4a", "mp4"])
def test_of_a_cut_file_that_keeps_its_header_the_rest_is_used(tmp_path, suffix):
    written = write_media(tmp_path / f"written.{suffix}", tone(16000, 5 * 16000, 1), 16000)
    whole = tmp_path / f"whole.{suffix}"
    with av.open(str(written)) as source, av.open(str(whole), "w", options={"movflags": "+faststart"}) as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    assert read_audio(whole)[0].shape == (1, 5 * 16000)
    content = whole.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    cut = tmp_path / f"cut.{suffix}"
    for last in (len(content) * 6 // 10, _packet_end(whole, 0.6)):  # within a packet, and between two
        cut.write_bytes(content[:last])
        with pytest.warns(UserWarning, match="of its 5.0. seconds [23]"):
            assert 2.5 * 16000 < read_audio(cut)[0].shape[1] < 3.5 * 16000


def _packet_end(path: Path, share: float) -> int:
    """The byte after the packet that lies at this share of a file."""
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux() if packet.pos is not None and packet.size]
    return min(end for end in ends if end >= share * path.stat().st_size)


@pytest.mark.skipif(not MEDIA.is_dir(), reason="the folder ../shared/media is not here")
def test_real_mp4_files_are_whole():
    paths = [*MEDIA.glob("speech/*.m4a"), *MEDIA.glob("clips/*.mp4")]
    assert paths
    for path in paths:
        with av.open(str(path)) as container:
            sounds = len(container.streams.audio)
        if sounds:
            assert read_audio(path)[0].shape[1] > 0


def test_bad_arguments(tmp_path):
    path = write_media(tmp_path / "a.wav", tone(16000, 100, 1), 16000)
    encoder = load_audio_encoder("mel")
    for call in (
        lambda: read_audio(path, start=-1),
        lambda: read_audio(path, start=math.nan),
        lambda: read_audio(path, start=math.inf),
        lambda: read_audio(path, duration=0),
        lambda: read_audio(path, duration=math.inf),
        lambda: read_audio(path, duration=math.nan),
        lambda: encoder.encode(torch.zeros(1, 0), 16000),
        lambda: encoder.encode(torch.zeros(1, 10), 0),
        lambda: encoder.encode(torch.zeros(1, 10), 16000, fps=0),
        lambda: encoder.encode(torch.tensor([[math.nan]]), 16000),
        lambda: load_audio_encoder("mfcc"),
    ):
        with pytest.raises(InputError):
            call()


# Features ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples, rate", [(1, 16000), (1, 96000), (639, 16000), (8001, 11025), (48001, 47999)])
def test_any_length_gives_exactly_its_frames(samples, rate):
    features = load_audio_encoder("mel").encode(torch.zeros(2, samples), rate)
    assert features.shape == (frame_count(samples, rate), 4, 80)
    assert (features < -1.5).all(), "silence is well below speech"


def test_mono_16k_keeps_time_and_level():
    for rate in (8000, 11025, 44100, 47999, 96000):
        original = torch.from_numpy(tone(rate, rate, 1))
        mono = torch.cat(list(Recording((original.expand(2, -1), rate)).mono_16k()))
        assert len(mono) == 16000
        expected = torch.from_numpy(tone(16000, 16000, 1))[0]
        torch.testing.assert_close(mono[500:-500], expected[500:-500], atol=2e-3, rtol=0)


def test_features_are_local():
    noise = torch.randn(2, 16000 * 2, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = mel_features(noise, 50)
    assert whole.shape == (2, 50, 4, 80)
    piece = mel_features(noise[:, 640 * 10 : 640 * 30], 20)
    torch.testing.assert_close(piece[:, 1:-1], whole[:, 11:29])
    torch.testing.assert_close(mel_features(noise, 7, first_frame=13), whole[:, 13:20])
    changed = noise.clone()
    changed[:, 640 * 20 + MEL_REACH :] = 0  # the future does not reach back further than MEL_REACH
    torch.testing.assert_close(mel_features(changed, 50)[:, :20], whole[:, :20])
    assert not torch.allclose(mel_features(changed, 50)[:, 21:], whole[:, 21:])


@pytest.mark.parametrize("rate, fps", [(16000, 25.0), (44100, 25.0), (11025, 30000 / 1001), (47999, 25.0)])
def test_windows_give_exactly_what_one_pass_gives(rate, fps, monkeypatch):
    noise = torch.randn(2, rate * 5 + 77, generator=torch.Generator().manual_seed(0)) * 0.1
    recording, encoder = Recording((noise, rate)), load_audio_encoder("mel")
    mono = torch.cat(list(recording.mono_16k()))
    whole = mel_features(mono * speech_gain([mono], len(mono)), recording.frames(fps), fps)
    monkeypatch.setattr(audio_encoder, "WINDOW_SECONDS", 1)
    monkeypatch.setattr(audio_encoder, "ONE_PASS_SECONDS", 0)
    assert torch.equal(encoder.encode(noise, rate, fps), whole)
    stream = FeatureStream(encoder, recording, fps)
    assert len(stream) == len(whole)
    for first, last in ((0, 9), (20, 55), (30, 31), (100, len(whole)), (3, 5), (60, 70)):  # forward, and back again
        assert torch.equal(stream[first:last], whole[first:last])


def test_a_recording_is_the_same_however_it_is_kept(tmp_path):
    original = torch.from_numpy(tone(22050, 100_001, 2))
    path = write_media(tmp_path / "a.wav", original.numpy(), 22050)
    from_file, held = Recording(path), Recording(read_audio(path))
    assert (from_file.rate, from_file.channels, from_file.samples) == (22050, 2, 100_001)
    assert from_file.digest == held.digest != Recording((original, 22050)).digest  # a file has 16 bits
    assert torch.equal(torch.cat([b for b, _ in from_file.blocks()], 1), torch.cat([b for b, _ in held.blocks()], 1))
    half = Recording(path, duration=2.0)
    assert half.samples == 44100 and half.digest != from_file.digest
    reader = SampleReader(half.blocks())
    taken = [reader.read(n) for n in (1, 10_000, 40_000, 5)]
    assert [part.shape[1] for part in taken] == [1, 10_000, 34_099, 0] and reader.position == 44100
    assert torch.equal(torch.cat(taken, 1), read_audio(path)[0][:, :44100])


def test_variable_bit_rate_and_packets_that_are_cut(tmp_path):
    loud = tone(44100, 44100 * 3, 2) * np.repeat([0.0, 1.0, 0.1], 44100).astype(np.float32)
    path = tmp_path / "variable.mp3"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libmp3lame", rate=44100, layout="stereo", options={"flags": "+qscale", "global_quality": "236"}
        )
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(loud), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert len({packet.size for packet in container.demux() if packet.size}) > 2
    recording = Recording(path)
    assert recording.samples == 44100 * 3 and recording.frames(25) == 75


def test_a_stream_that_changes_half_way_is_kept_in_its_first_form(tmp_path):
    parts = [write_media(tmp_path / f"{channels}.mp3", tone(44100, 44100, channels), 44100) for channels in (1, 2)]
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    recording = Recording(joined)
    assert {block.shape[0] for block, _ in recording.blocks()} == {1}
    assert 2 * 44100 - 1500 < recording.samples < 2 * 44100 + 4000


def test_resampling_does_not_depend_on_the_blocks(tmp_path):
    original = tone(44100, 44100 * 2 + 77, 2)
    path = write_media(tmp_path / "a.wav", original, 44100)
    from_file, held = Recording(path), Recording(read_audio(path))
    mono = [torch.cat(list(recording.mono_16k())) for recording in (from_file, held)]
    assert torch.equal(*mono) and len(mono[0]) == math.ceil((44100 * 2 + 77) * 16000 / 44100)


def test_a_file_that_cannot_be_decoded_once_can_be_read_again(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.wav", tone(16000, 16000 * 2, 1), 16000)
    stream = FeatureStream(load_audio_encoder("mel"), Recording(path), 25)
    whole = stream[0:50]
    stream = FeatureStream(load_audio_encoder("mel"), Recording(path), 25)
    with monkeypatch.context() as patch:
        patch.setattr(mel, "mel_features", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            _ = stream[0:9]
    assert torch.equal(stream[0:50], whole)


def test_memory_does_not_grow_with_the_recording(tmp_path):
    """An hour of sound at 8 kHz is 115 MB in memory; reading its features holds a window or two."""
    code = """
import re, sys, numpy, wave
from pathlib import Path
from letstalk_core.audio.encoder import FeatureStream
from letstalk_core.audio.load_encoder import load_audio_encoder
from letstalk_core.audio.recording import Recording
def peak(minutes):
    with wave.open(sys.argv[1], "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        for _ in range(minutes):
            file.writeframes(numpy.zeros(480000, "<i2").tobytes())
    stream = FeatureStream(load_audio_encoder("mel"), Recording(sys.argv[1]), 25)
    for first in range(0, len(stream), 16):
        stream[first:first + 16]
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
short = peak(10)
print(short, peak(60))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from Linux's /proc")
    command = [sys.executable, "-c", code, tmp_path / "long.wav"]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back: else glibc's holes count as well
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    short, long = map(float, done.stdout.split())
    assert long - short < 15, done.stdout


@pytest.mark.parametrize("fps", [25.0, 24.0, 30000 / 1001, 50.0])
def test_a_click_peaks_in_its_frame(fps):
    for seconds in (0.107, 0.333, 0.773, 0.912):
        waveform = torch.zeros(16000)
        waveform[int(seconds * 16000)] = 1.0
        energy = mel_features(waveform, frame_count(16000, 16000, fps), fps).mean(dim=-1)  # [F, 4]
        column = int(energy.flatten().argmax())
        assert column // 4 == math.floor(seconds * fps)
        assert abs((column + 0.5) / 4 / fps - seconds) <= 0.5 / 4 / fps + 1e-4


def test_mel_is_fast_and_has_gradients():
    waveform = torch.randn(80000, requires_grad=True)
    mel_features(waveform, 125).sum().backward()
    assert waveform.grad.isfinite().all()
    begin = time.perf_counter()
    mel_features(waveform.detach(), 125)
    assert time.perf_counter() - begin < 0.5
