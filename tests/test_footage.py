"""Preparing footage: which frames and which sound belong together, going on after interruptions, videos left out."""

import os
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from letstalk_core.audio.mel import MelEncoder
from letstalk_core.audio.recording import read_audio
from letstalk_core.data.footage import prepare as footage
from letstalk_core.data.footage.frames import resample
from letstalk_core.data.footage.prepare import prepare_videos
from letstalk_core.data.footage.shards import ShardSource
from letstalk_core.data.source import Window
from letstalk_core.errors import InputError
from letstalk_core.picture.autoencoder import build_autoencoder
from letstalk_core.video.writer import VideoWriter
from tests.media_files import tone, write_media
from tests.tiny import AUTOENCODER

pytest.importorskip("webdataset")
RATE = 16000


def level(number):
    """A grey that tells a frame's number from the 25 around it."""
    return 20 + 8 * (np.asarray(number) % 26)


def make_video(path, frames, fps=25.0, sound=None, size=(64, 48), levels=None):
    """Frames whose grey is their number's, and noise for the same time."""
    generator = torch.Generator().manual_seed(0)
    if sound is None:
        sound = torch.randn(1, round(frames / fps * RATE), generator=generator) * 0.1
    levels = level(np.arange(frames)) if levels is None else levels
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, *size, fps, (sound, RATE), preset="ultrafast") as writer:
        for value in levels:
            writer.write(np.full((1, size[1], size[0], 3), value, np.uint8))
    return path


def prepare(folder, output, **changes):
    arguments = dict(size=32, fps=25.0, audio_encoder=MelEncoder(), seconds=2.0, face="none", progress=False)
    return prepare_videos(folder, output, **{**arguments, **changes})


def read_all(shards, frames, digest=None, **window):
    """The whole of every stretch that has so many frames: a clip of that length."""
    window = Window(**{"clip_frames": frames, "memory_frames": 0, "audio_window": 5, **window})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = ShardSource(shards, window, latents_digest=digest, features_shape=(4, 80))
    return [data.read(index, np.random.default_rng(0)) for index in range(len(data))], data


def greys(example):
    return example["clip"].float().mean(dim=(1, 2, 3)).numpy()


# Which frames, which sound -------------------------------------------------------------------------------------------


def test_stretches_follow_one_another(tmp_path):
    video = make_video(tmp_path / "in" / "talk.mp4", 140)
    shards = prepare(tmp_path / "in", tmp_path / "out")
    examples, data = read_all(shards, 40)
    assert [data.name(index)[:15] for index in range(3)] == [f"talk.mp4, {second}.0 s" for second in (0, 2, 4)]
    assert (data.fps, data.size, data.audio_encoder) == (25.0, (32, 32), "mel")
    whole = MelEncoder().encode(*read_audio(video))
    assert len(whole) == 140
    for number, count in enumerate((50, 50, 40)):
        example = read_all(shards, count)[0][number]
        first = 50 * number
        assert np.abs(greys(example) - level(first + np.arange(count))).max() < 3
        around = (first + torch.arange(count)[:, None] + torch.arange(-2, 3)).clamp(0, 139)
        assert (example["features"] - whole[around]).abs().max() < 4e-3  # float16


def flash_and_click(path, fps, delay=0.0):
    """White for 40 ms at 1.2 and 3.4 s of the picture; clicks at the same times of the sound."""
    count = round(5 * fps)
    times = np.arange(count) / fps
    sound = torch.randn(1, 5 * RATE, generator=torch.Generator().manual_seed(0)) * 1e-4
    white = np.zeros(count, bool)
    for moment in (1.2, 3.4):
        white |= (times > moment - 1e-6) & (times < moment + 0.04 - 1e-6)
        begin = round((moment + delay) * RATE)
        sound[0, begin : begin + 640] = 0.8 * torch.sin(torch.arange(640) * 0.9)
    return make_video(path, count, fps, sound, levels=np.where(white, 235, 16))


def assert_together(shards):
    """Where it is white it is loud, in frames."""
    examples, _ = read_all(shards, 25)
    seen = 0
    for number in range(len(examples)):
        example = read_all(shards, 25)[0][number]
        white = np.flatnonzero(greys(example) > 120)
        loud = example["features"][:, 2].mean(dim=(1, 2)).numpy()
        loud = np.flatnonzero(loud > 0.5 * (loud.max() + np.median(loud))) if loud.max() - np.median(loud) > 1 else []
        assert (len(white) > 0) == (len(loud) > 0)
        if len(white):
            seen += 1
            assert abs(np.mean(white) - np.mean(loud)) <= 0.75 and len(white) <= 2, (white, loud)
    assert seen == 2


@pytest.mark.parametrize("fps", [25.0, 30.0, 29.97, 50.0, 24.0])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_picture_and_sound_stay_together(tmp_path, fps, suffix):
    flash_and_click(tmp_path / "in" / f"talk.{suffix}", fps)
    assert_together(prepare(tmp_path / "in", tmp_path / "out", seconds=1.0))


@pytest.mark.parametrize("shift", [0.48, -0.36])
def test_sound_that_begins_at_another_time(tmp_path, shift):
    """A file whose sound begins later (or earlier) than its picture, by the clock of the container."""
    plain = flash_and_click(tmp_path / "plain.mkv", 25.0, delay=-shift)
    (tmp_path / "in").mkdir()
    with av.open(str(plain)) as source, av.open(str(tmp_path / "in" / "talk.mkv"), "w") as target:
        streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        late = source.streams.audio[0] if shift > 0 else source.streams.video[0]
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream is late:
                moved = round(Fraction(abs(shift)).limit_denominator(100) / packet.time_base)
                packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
            packet.stream = streams[packet.stream]
            target.mux(packet)
    assert_together(prepare(tmp_path / "in", tmp_path / "out", seconds=1.0))


@pytest.mark.parametrize("source_rate", [10, 25, 30, 60])
def test_the_nearest_picture_is_taken(source_rate):
    pictures = [(Fraction(number, source_rate), number) for number in range(2 * source_rate)]
    numbered = list(resample(iter(pictures), Fraction(25), Fraction(0)))
    assert [number for number, _ in numbered] == list(range(len(numbered))) and abs(len(numbered) - 50) <= 1
    for number, picture in numbered:
        assert (
            abs(Fraction(picture, source_rate) - Fraction(number, 25)) <= Fraction(1, 2 * source_rate) or number >= 49
        )


def test_gaps_and_late_pictures_keep_the_time():
    pictures = [(Fraction(number, 25), number) for number in (*range(10, 20), *range(40, 50))]
    numbered = dict(resample(iter(pictures), Fraction(25), Fraction(4, 25)))
    assert list(numbered) == list(range(6, 46))
    assert numbered[6] == 10 and numbered[15] == 19 and numbered[20] == 19 and numbered[36] == 40
    early = [number for number, _ in resample(iter(pictures), Fraction(25), Fraction(15, 25))]
    assert early[0] == 0 and list(resample(iter([]), Fraction(25), Fraction(0))) == []


def test_phone_video_is_upright_and_square_pixels_are_kept(tmp_path):
    wide = make_video(tmp_path / "in" / "talk.mkv", 30, size=(64, 32), levels=[100] * 30)
    os.rename(wide, tmp_path / "plain.mkv")
    with (
        av.open(str(tmp_path / "plain.mkv")) as source,
        av.open(str(tmp_path / "in" / "talk.mkv"), "w") as target,
    ):
        sound = target.add_stream_from_template(source.streams.audio[0])
        video = target.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 64, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(2)  # shown as 64x64
        picture = np.full((64, 32, 3), 40, np.uint8)
        picture[16:48, 8:24] = 200  # a square of 32x32 in the middle
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            target.mux(video.encode(frame))
        target.mux(video.encode(None))
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = sound
                target.mux(packet)
    clip = read_all(prepare(tmp_path / "in", tmp_path / "out", size=64), 25)[0][0]["clip"][0, 1].float()
    assert clip[20:44, 20:44].min() > 180 and clip[:12].max() < 60 and clip[:, :12].max() < 60


# Latents -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_frames", [True, False])
def test_latents(tmp_path, keep_frames):
    torch.manual_seed(0)
    autoencoder = build_autoencoder(AUTOENCODER).eval().requires_grad_(False)
    make_video(tmp_path / "in" / "talk.mp4", 30)
    shards = prepare(tmp_path / "in", tmp_path / "out", autoencoder=autoencoder, keep_frames=keep_frames)
    (example,), data = read_all(shards, 30, autoencoder.encoder_digest)
    assert data.uses_latents and example["clip"].shape == (30, 4, 2, 2) and data.size == (32, 32)
    if keep_frames:
        (pixels,), _ = read_all(shards, 30)
        again = autoencoder.encode(pixels["clip"].float() / 127.5 - 1)
        assert torch.corrcoef(torch.stack([again.flatten(), example["clip"].flatten()]))[0, 1] > 0.99
    else:
        with pytest.raises(InputError, match=autoencoder.encoder_digest):
            read_all(shards, 30)


# Once ----------------------------------------------------------------------------------------------------------------


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def test_a_second_call_does_nothing(tmp_path, monkeypatch):
    make_video(tmp_path / "in" / "a.mp4", 30)
    make_video(tmp_path / "in" / "deep" / "a.MP4".lower(), 60, fps=30.0)
    write_media(tmp_path / "in" / "silent.wav", tone(RATE, RATE, 1), RATE)
    shards = prepare(tmp_path / "in", tmp_path / "out")
    before = state(tmp_path / "out")
    assert len(shards) == 2 and len(set(shards)) == 2
    monkeypatch.setattr(footage, "timed_frames", None)
    assert prepare(tmp_path / "in", tmp_path / "out") == shards
    assert state(tmp_path / "out") == before


def test_other_settings_and_changed_files(tmp_path):
    video = make_video(tmp_path / "in" / "a.mp4", 60)
    shards = prepare(tmp_path / "in", tmp_path / "out")
    for changes in ({"size": 48}, {"fps": 20.0}, {"seconds": 1.0}, {"face": "largest"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = prepare(tmp_path / "in", tmp_path / "out", **changes)
        assert other[0].parent != shards[0].parent and other[0].exists() and shards[0].exists()
    make_video(video, 70)
    again = prepare(tmp_path / "in", tmp_path / "out")
    assert len(read_all(again, 40)[1]) == 1 and again != shards and not shards[0].exists()
    assert sorted(again[0].parent.glob("*.tar")) == again


@pytest.mark.parametrize("stops_at", [1, 2, 3])
def test_goes_on_after_an_interruption(tmp_path, monkeypatch, stops_at):
    make_video(tmp_path / "in" / "a.mp4", 150)
    make_video(tmp_path / "in" / "b.mp4", 30)
    monkeypatch.setattr(footage, "SHARD_STRETCHES", 1)
    whole = prepare(tmp_path / "in", tmp_path / "whole")
    assert len(whole) == 4
    written = []

    def write(path, stretches):
        if len(written) == stops_at:
            raise KeyboardInterrupt
        written.append(path)
        return footage_write(path, stretches)

    footage_write = footage.write_shard
    monkeypatch.setattr(footage, "write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "in", tmp_path / "out")
    stops_at = 99
    shards = prepare(tmp_path / "in", tmp_path / "out")
    assert written == shards and len(set(written)) == 4
    assert [path.read_bytes() for path in shards] == [path.read_bytes() for path in whole]


def test_one_process_at_a_time(tmp_path, monkeypatch):
    make_video(tmp_path / "in" / "a.mp4", 30)

    def write(path, stretches):
        with pytest.raises(InputError, match="Another process"):
            prepare(tmp_path / "in", tmp_path / "out")
        return footage_write(path, stretches)

    footage_write = footage.write_shard
    monkeypatch.setattr(footage, "write_shard", write)
    prepare(tmp_path / "in", tmp_path / "out")
