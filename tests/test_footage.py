"""Footage: which frames and which sound of a video belong together, at whatever rate and with whatever beginnings."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from letstalk_core.audio.encoder import FeatureStream
from letstalk_core.audio.mel import MelEncoder
from letstalk_core.audio.recording import Recording, read_audio
from letstalk_core.data.footage.frames import resample, to_rgb
from letstalk_core.data.footage.stretches import features_around
from letstalk_core.data.preparation.clip_steps import numbered_pictures, probe_video
from letstalk_core.data.preparation.preparation_settings import PreparationSettings
from letstalk_core.data.preparation.video_sources import VideoSource
from letstalk_core.picture.similarity import cut, square_at
from letstalk_core.video.writer import VideoWriter

RATE = 16000
SETTINGS = PreparationSettings(size=32, features="mel")


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


def read(video):
    """(numbers of the frames [n], pixels uint8 [n,H,W,3], the recording's features), as a preparation reads a video."""
    source, features = VideoSource(str(video), video.name), features_of(video)
    numbered = list(numbered_pictures(source, probe_video(source), SETTINGS, len(features)))
    return np.array([n for n, _ in numbered]), np.stack([to_rgb(picture) for _, picture in numbered]), features


def features_of(video):
    return FeatureStream(MelEncoder(), Recording(video, strict=True), SETTINGS.fps)


def test_frames_and_features_are_counted_alike(tmp_path):
    video = make_video(tmp_path / "talk.mp4", 140)
    numbers, pixels, _ = read(video)
    assert numbers.tolist() == list(range(140)) and np.abs(pixels.mean((1, 2, 3)) - level(numbers)).max() < 3
    whole = MelEncoder().encode(*read_audio(video))
    assert len(whole) == 140
    features = features_of(video)
    for first, last in ((0, 50), (50, 100), (100, 140)):
        around = torch.arange(first - 8, last + 8).clamp(0, 139)  # beyond the ends these are repeated
        assert (features_around(features, first, last, 8) - whole[around]).abs().max() < 1e-5


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


def assert_together(video):
    """Where it is white it is loud, in frames."""
    numbers, pixels, features = read(video)
    loudness = features[0 : len(features)].mean((1, 2)).numpy()
    white = numbers[pixels.mean((1, 2, 3)) > 120]
    loud = np.flatnonzero(loudness > 0.5 * (loudness.max() + np.median(loudness)))
    seen, heard = (np.split(found, np.flatnonzero(np.diff(found) > 5) + 1) for found in (white, loud))
    assert len(seen) == len(heard) == 2
    for flash, click in zip(seen, heard, strict=True):
        assert abs(flash.mean() - click.mean()) <= 0.75 and len(flash) <= 2, (flash, click)


@pytest.mark.parametrize("fps", [25.0, 30.0, 29.97, 50.0, 24.0])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_picture_and_sound_stay_together(tmp_path, fps, suffix):
    assert_together(flash_and_click(tmp_path / f"talk.{suffix}", fps))


@pytest.mark.parametrize("shift", [0.48, -0.36])
def test_sound_that_begins_at_another_time(tmp_path, shift):
    """A file whose sound begins later (or earlier) than its picture, by the clock of the container."""
    plain = flash_and_click(tmp_path / "plain.mkv", 25.0, delay=-shift)
    with av.open(str(plain)) as source, av.open(str(tmp_path / "talk.mkv"), "w") as target:
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
    assert_together(tmp_path / "talk.mkv")


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


def test_square_pixels_are_kept(tmp_path):
    wide = make_video(tmp_path / "talk.mkv", 30, size=(64, 32), levels=[100] * 30)
    os.rename(wide, tmp_path / "plain.mkv")
    with (
        av.open(str(tmp_path / "plain.mkv")) as source,
        av.open(str(tmp_path / "talk.mkv"), "w") as target,
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
    _, pixels, _ = read(tmp_path / "talk.mkv")
    assert pixels.shape[1:] == (64, 64, 3)
    assert pixels[:, 20:44, 20:44].min() > 180 and pixels[:, :12].max() < 60 and pixels[:, :, :12].max() < 60


def test_squares_that_reach_outside():
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4, 1).repeat(3, axis=2) * 20
    square = cut(picture, square_at(-1, -1, 4, 4), 4)[..., 0] // 20
    assert square.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]
