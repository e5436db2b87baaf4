"""The video writer: picture and sound complete, and nothing left behind when it fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from letstalk_core.audio.recording import frame_count, read_audio
from letstalk_core.errors import InputError
from letstalk_core.video.h264 import HARDWARE
from letstalk_core.video.reader import iter_video_frames, probe, read_video_frames
from letstalk_core.video.writer import VideoWriter, check_encoder
from tests.media_files import bad_files, tone, write_media

ROOT = Path(__file__).resolve().parents[1]


def write(path, frames, audio=None, fps=25.0, size=(32, 32), chunk=4):
    width, height = size
    with VideoWriter(path, width, height, fps, audio, preset="ultrafast") as writer:
        for begin in range(0, frames, chunk):
            writer.write(torch.zeros(min(chunk, frames - begin), 3, height, width))
    return probe(path)


@pytest.mark.parametrize(
    "rate, channels, samples",
    [
        *((8000, 1, 9001), (11025, 2, 9001), (22050, 6, 9001), (44100, 2, 60001)),
        *((48000, 6, 9001), (96000, 1, 50001), (48000, 1, 1)),
    ],
)
def test_sound_is_complete(tmp_path, rate, channels, samples):
    original = torch.from_numpy(tone(rate, samples, channels))
    frames = frame_count(samples, rate)
    info = write(tmp_path / "a.mp4", frames, (original, rate))
    assert (info.frames, info.fps, info.audio_rate, info.audio_channels) == (frames, 25.0, rate, channels)
    assert abs(info.duration - info.audio_duration) <= 1 / 25
    if samples == 1:  # followed by silence to the end of its frame
        return
    assert info.audio_samples == samples
    waveform, _ = read_audio(tmp_path / "a.mp4")
    inner = slice(samples // 4, samples // 2)
    assert np.corrcoef(waveform[0, inner], original[0, inner])[0, 1] > 0.99


@pytest.mark.parametrize(
    "rate, kept, channels", [(47999, 48000, 1), (192000, 96000, 2), (6000, 8000, 1), (16000, 16000, 4)]
)
def test_rates_and_channels_that_aac_lacks(tmp_path, rate, kept, channels):
    samples = int(rate * 0.55)
    original = torch.from_numpy(tone(rate, samples, 1)).repeat(channels, 1)
    info = write(tmp_path / "a.mp4", frame_count(samples, rate), (original, rate))
    assert (info.audio_rate, info.audio_channels) == (kept, 2 if channels == 4 else channels)
    assert abs(info.duration - info.audio_duration) <= 1 / 25


@pytest.mark.parametrize("suffix", ["wav", "m4a", "mp3", "flac", "mp4"])
@pytest.mark.parametrize("fps", [25.0, 30000 / 1001])
def test_sound_from_a_file(tmp_path, suffix, fps):
    source = write_media(tmp_path / f"source.{suffix}", tone(44100, 30011, 2), 44100)
    info = write(tmp_path / "a.mp4", frame_count(30011, 44100, fps), source, fps)
    assert info.audio_samples == 30011 and info.fps == pytest.approx(fps)


def test_sound_is_cut_or_filled_to_the_picture(tmp_path):
    sound = (torch.from_numpy(tone(16000, 16000, 1)), 16000)
    short = write(tmp_path / "short.mp4", 10, sound)
    assert short.audio_samples == 6400
    long = write(tmp_path / "long.mp4", 40, sound)
    assert long.audio_samples == 25600


def test_picture(tmp_path):
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [120, 60, 180]])
    frames = colours[:, :, None, None].expand(-1, -1, 48, 64)
    with VideoWriter(tmp_path / "float.mp4", 64, 48) as writer:
        writer.write(frames / 127.5 - 1)
    with VideoWriter(tmp_path / "uint8.mp4", 64, 48) as writer:
        writer.write(frames.permute(0, 2, 3, 1).to(torch.uint8).numpy())
    for name in ("float.mp4", "uint8.mp4"):
        pictures = read_video_frames(tmp_path / name)
        assert pictures.shape == (6, 48, 64, 3) and pictures.dtype == np.uint8
        assert np.abs(pictures[:, 24, 32].astype(int) - colours.numpy()).max() <= 4
    assert probe(tmp_path / "float.mp4").audio_samples == 0


def test_x264_is_what_it_was(tmp_path):
    frames = torch.rand(9, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, options in {"a.mp4": {}, "b.mp4": {"encoder": "x264"}}.items():
        with VideoWriter(tmp_path / name, 256, 256, **options) as writer:
            writer.write(frames)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content == (tmp_path / "b.mp4").read_bytes()
    for setting in (
        b"crf=16.0",
        b"mbtree=0",
        b" threads=4",
        b"bframes=3",
        b"subme=7",
        b"keyint=250",
    ):  # x264's own note
        assert setting in content


@pytest.mark.parametrize("name", HARDWARE)
def test_a_hardware_encoder_works_or_is_refused_in_a_sentence(tmp_path, name):
    frames = torch.zeros(30, 3, 256, 256)
    sentence = (
        rf"The video encoder {name} cannot be used here \([^\n]+\); take x264, the default, which works everywhere\."
    )
    try:
        check_encoder(name, 256, 256, 25)
    except InputError as error:
        assert re.fullmatch(sentence, str(error))
        with (
            pytest.raises(InputError) as caught,
            VideoWriter(tmp_path / "a.mp4", 256, 256, encoder=name) as writer,
        ):
            writer.write(frames)
        assert re.fullmatch(sentence, str(caught.value)) and not list(tmp_path.iterdir())
    else:
        with VideoWriter(tmp_path / "a.mp4", 256, 256, encoder=name) as writer:
            writer.write(frames)
        assert abs(read_video_frames(tmp_path / "a.mp4").astype(int) - 128).max() <= 4


def test_pictures_as_hardware_takes_them_are_the_same(tmp_path, stand_in):
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [120, 60, 180]])
    frames = colours[:, :, None, None].expand(-1, -1, 47, 63) / 127.5 - 1
    with VideoWriter(tmp_path / "a.mp4", 63, 47, encoder="nvenc") as writer:
        writer.write(frames)
    assert b"bframes=0" in (tmp_path / "a.mp4").read_bytes()  # by the options of nvenc
    pictures = read_video_frames(tmp_path / "a.mp4")
    assert pictures.shape == (4, 48, 64, 3) and np.abs(pictures[:, 24, 32].astype(int) - colours.numpy()).max() <= 4


@pytest.mark.parametrize("size", [(33, 17), (1, 1)])
def test_odd_sizes_get_one_more(tmp_path, size):
    info = write(tmp_path / "a.mp4", 2, size=size)
    assert (info.width, info.height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)


@pytest.mark.parametrize("suffix", ["mov", "mkv", "m4v"])
def test_other_containers(tmp_path, suffix):
    info = write(tmp_path / f"a.{suffix}", 5, (torch.zeros(1, 3200), 16000))
    assert info.frames == 5 and info.audio_rate == 16000


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(tmp_path, error):
    (tmp_path / "kept.mp4").write_text("an older file")
    for name in ("new.mp4", "kept.mp4"):
        with pytest.raises(error), VideoWriter(tmp_path / name, 32, 32, 25, (torch.zeros(1, 16000), 16000)) as writer:
            writer.write(torch.zeros(3, 3, 32, 32))
            assert len(list(tmp_path.iterdir())) == 2, "a hidden part beside the target"
            raise error
        assert [path.name for path in tmp_path.iterdir()] == ["kept.mp4"]
    assert (tmp_path / "kept.mp4").read_text() == "an older file"


def test_the_target_is_replaced_when_complete(tmp_path):
    (tmp_path / "a.mp4").write_text("an older file")
    assert write(tmp_path / "a.mp4", 3).frames == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_bad_targets_and_frames(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    frames = torch.zeros(1, 3, 32, 32)
    for sentence, path in {
        "is a folder": tmp_path / "folder.mp4",
        "does not exist": tmp_path / "missing" / "a.mp4",
        "does not exist; create": tmp_path / "file" / "a.mp4",
        "does not end in": tmp_path / "a.txt",
        "cannot be written": tmp_path / ("a" * 255 + ".mp4"),
    }.items():
        with pytest.raises(InputError, match=sentence), VideoWriter(path, 32, 32) as writer:
            writer.write(frames)
    for sentence, wrong in {
        "NaN": frames * torch.nan,
        "have the shape": torch.zeros(1, 3, 16, 32),
        "uint8 frames": np.zeros((1, 3, 32, 32), np.uint8),
        "No frames": frames[:0],
    }.items():
        with pytest.raises(InputError, match=sentence), VideoWriter(tmp_path / "a.mp4", 32, 32) as writer:
            writer.write(wrong)
    with pytest.raises(InputError, match="no video encoder h264_nvenc; take one of x264, nvenc"):
        VideoWriter(tmp_path / "a.mp4", 32, 32, encoder="h264_nvenc")
    for size, fps in (((0, 32), 25), ((32, 32), 0), ((32, 32), float("nan"))):
        with pytest.raises(InputError):
            VideoWriter(tmp_path / "a.mp4", *size, fps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_bad_sound_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    sources = [*bad_files(tmp_path / "in").values(), (torch.zeros(1, 0), 16000), (torch.full((1, 9), torch.nan), 16000)]
    for source in sources:
        with pytest.raises(InputError), VideoWriter(tmp_path / "out" / "a.mp4", 32, 32, 25, source) as writer:
            writer.write(torch.zeros(30, 3, 32, 32))
        assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Nothing can be written"), VideoWriter(tmp_path / "a.mp4", 32, 32):
        pass


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
import torch
from letstalk_core.errors import InputError
from letstalk_core.video.writer import VideoWriter
from pathlib import Path

folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

def attempt():
    with VideoWriter(folder / "a.mp4", 64, 64, 25, (torch.zeros(1, 5120), 16000), preset="ultrafast") as writer:
        writer.write(noise)

attempt()
size = (folder / "a.mp4").stat().st_size
(folder / "a.mp4").unlink()
for limit in (0, 1000, size // 2, size - 500, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        attempt()
        print("written at", limit, "of", size)
    except InputError as error:
        assert "cannot be written" in str(error) and "free space" in str(error), error
    assert not list(folder.iterdir()), (limit, list(folder.iterdir()))
"""


def test_full_disk(tmp_path):
    pytest.importorskip("resource")
    result = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path, ROOT], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stdout, result.stdout + result.stderr


def test_bad_videos_are_one_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    write_media(tmp_path / "sound.wav", tone(16000, 100, 1), 16000)
    for name, sentence in {
        "missing.mp4": "no file",
        "text.mp4": "cannot be decoded",
        "sound.wav": "no picture",
    }.items():
        with pytest.raises(InputError, match=sentence):
            probe(tmp_path / name)
        with pytest.raises(InputError, match=sentence):
            next(iter_video_frames(tmp_path / name))
