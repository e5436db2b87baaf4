"""Videos of sound that is still coming in: as a recording's where all of it is there, in time, and without end."""

import itertools
import math

import numpy as np
import pytest
import torch

from letstalk_core.audio.live import KEPT_SECONDS, LiveFeatures
from letstalk_core.audio.load_encoder import load_audio_encoder
from letstalk_core.audio.recording import SAMPLE_RATE, read_audio
from letstalk_core.errors import InputError
from letstalk_core.picture.picture_file import read_image
from letstalk_core.picture.portrait import Portrait
from letstalk_core.pipeline import LOOKAHEAD, LetsTalkPipeline
from letstalk_core.pixels import images_to_pixels
from letstalk_core.video.clips import ClipSampler, SamplingSettings
from letstalk_core.video.controls import AskedFor

from .tiny import write_tiny_checkpoint

FPS = 25
MEMORY = {"memory_frames": 2}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> LetsTalkPipeline:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return LetsTalkPipeline.load(write_tiny_checkpoint(path, **MEMORY), "cpu", "fp32")


@pytest.fixture(scope="module")
def portrait(pipeline) -> Portrait:
    size = pipeline.config.image_size
    image = torch.rand(3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return Portrait(image, np.eye(2, 3), (size, size))


def noise(seconds: float, rate: int = SAMPLE_RATE, channels: int = 1) -> torch.Tensor:
    """Speech-like in this: louder and quieter, twice a second."""
    samples = torch.randn(channels, round(seconds * rate), generator=torch.Generator().manual_seed(5))
    swing = 1 + torch.sin(torch.arange(samples.shape[1]) / rate * 4 * math.pi)
    return 0.1 * samples * swing


def offline(pipeline, portrait, waveform, rate, **more) -> torch.Tensor:
    """Frames uint8 [F,H,W,3] of the recording as a whole."""
    features = pipeline.encode_audio(waveform, rate)
    sampler = ClipSampler(pipeline.model, pipeline.encode_portrait(portrait), features, SamplingSettings(), **more)
    return torch.cat([images_to_pixels(chunk.frames) for chunk in sampler.chunks(pipeline.decoder(portrait))])


@pytest.mark.parametrize("clip_frames", [None, 5])
def test_sound_that_is_there_as_a_whole_makes_the_frames_of_a_recording(pipeline, portrait, clip_frames):
    waveform = noise(2.21)
    made = torch.cat(list(pipeline.stream(portrait, [waveform], SAMPLE_RATE, clip_frames=clip_frames)))
    assert torch.equal(made, offline(pipeline, portrait, waveform, SAMPLE_RATE, clip_frames=clip_frames))


@pytest.mark.parametrize(
    ("rate", "piece", "channels"), [(16000, 320, 1), (44100, 1000, 2), (8000, 7, 1), (22050, 99999, 3)]
)
def test_frames_last_as_long_as_the_sound(pipeline, portrait, rate, piece, channels):
    samples = rate + 123
    pieces = noise(samples / rate, rate, channels).split(piece, dim=1)
    made = torch.cat(list(pipeline.stream(portrait, pieces, rate)))
    size = pipeline.config.image_size
    assert made.shape == (math.ceil(samples / rate * FPS), size, size, 3) and made.dtype == torch.uint8


@pytest.mark.parametrize("clip_frames", [4, 8])
def test_a_clip_comes_once_its_sound_and_the_lookahead_are_there(pipeline, portrait, clip_frames):
    heard = 0

    def arriving():
        nonlocal heard
        while True:  # sound without end
            yield torch.ones(160)
            heard += 160

    due = 0.0
    for made in itertools.islice(pipeline.stream(portrait, arriving(), SAMPLE_RATE, clip_frames=clip_frames), 5):
        due += len(made) / FPS
        assert -1e-9 < (heard + 160) / SAMPLE_RATE - due - LOOKAHEAD < 1 / FPS + 0.01


def test_a_stream_hears_what_it_is_given(pipeline, portrait):
    """Untrained, so not how well, but silence in its place makes other frames."""
    waveform = noise(3.0)
    whole = offline(pipeline, portrait, waveform, SAMPLE_RATE).float()
    mute = offline(pipeline, portrait, torch.zeros_like(waveform), SAMPLE_RATE).float()
    live = torch.cat(list(pipeline.stream(portrait, waveform.split(320, 1), SAMPLE_RATE))).float()
    assert (live - whole).abs().mean() < 0.3 * (mute - whole).abs().mean()


@pytest.mark.parametrize("name", ["mel", "whisper"])
def test_features_of_a_long_sound_are_those_of_a_recording(name):
    """At their places, with what is kept of it; the level, too, is measured on that."""
    encoder, waveform = load_audio_encoder(name), noise(KEPT_SECONDS + 11.5)
    live = LiveFeatures(encoder, FPS, SAMPLE_RATE)
    for piece in waveform.split(SAMPLE_RATE, 1):
        live.add(piece)
        assert len(live._known) <= (KEPT_SECONDS + 1) * SAMPLE_RATE
    live.end()
    whole = encoder.encode(waveform, SAMPLE_RATE, FPS)
    assert len(live) == len(whole)
    latest = slice(len(whole) - 60, len(whole))
    difference = (live[latest] - whole[latest]).abs().mean()
    assert difference < 0.02
    shifted = (live[latest] - whole[latest.start - 1 : latest.stop - 1]).abs().mean()
    assert shifted > 10 * difference


def test_one_long_piece_is_heard_from_its_start():
    encoder, waveform = load_audio_encoder("mel"), noise(KEPT_SECONDS + 15)
    live = LiveFeatures(encoder, FPS, SAMPLE_RATE)
    live.add(waveform)
    assert torch.equal(live[0:60], encoder.encode(waveform, SAMPLE_RATE, FPS)[0:60])
    live.add(waveform[:, :SAMPLE_RATE])
    assert len(live._known) <= (KEPT_SECONDS + 1) * SAMPLE_RATE


def test_features_before_the_end_hear_silence_after_it():
    encoder, waveform = load_audio_encoder("whisper"), noise(4.0)
    live = LiveFeatures(encoder, FPS, SAMPLE_RATE)
    live.add(waveform[:, : 2 * SAMPLE_RATE])
    assert len(live) == 50
    part = encoder.encode(waveform[:, : 2 * SAMPLE_RATE], SAMPLE_RATE, FPS)
    assert torch.equal(live[0:50], part)
    live.add(waveform[:, 2 * SAMPLE_RATE :])
    assert torch.equal(live[0:100], encoder.encode(waveform, SAMPLE_RATE, FPS))
    assert not torch.allclose(live[0:50], part, atol=0.1)  # what followed is heard in what was before


def test_frames_of_another_size(pipeline, portrait):
    frames = torch.cat(list(pipeline.stream(portrait, [noise(1.0)], SAMPLE_RATE, side=96)))
    assert frames.shape == (FPS, 96, 96, 3)


def test_silence_and_no_sound_at_all(pipeline, portrait):
    frames = torch.cat(list(pipeline.stream(portrait, [torch.zeros(SAMPLE_RATE)], SAMPLE_RATE)))
    assert len(frames) == FPS
    assert list(pipeline.stream(portrait, [], SAMPLE_RATE)) == []


@pytest.mark.parametrize(
    ("piece", "sentence"),
    [
        (torch.tensor([0.0, math.nan]), "NaN or infinite samples"),
        (torch.zeros(1, 2, 3), "shape"),
        (torch.zeros(0), "shape"),
    ],
)
def test_what_is_no_sound_is_refused_and_what_came_before_it_is_made(pipeline, portrait, piece, sentence):
    stream = pipeline.stream(portrait, [noise(1.0), piece], SAMPLE_RATE)
    assert len(next(stream)) == pipeline.config.transformer.clip_frames
    with pytest.raises(InputError, match=sentence):
        list(stream)


def test_a_track_of_many_values_has_no_place_in_a_stream(pipeline, portrait):
    settings = SamplingSettings(asked=AskedFor(tracks={"eyelids": (0.0, 1.0)}))
    with pytest.raises(InputError, match="give each control one value"):
        next(pipeline.stream(portrait, [noise(1.0)], SAMPLE_RATE, settings))
    single = SamplingSettings(asked=AskedFor(tracks={"eyelids": 1.0}))
    assert len(next(pipeline.stream(portrait, [noise(1.0)], SAMPLE_RATE, single)))


def test_the_bundled_model_speaks_live_as_it_does_from_a_file(repository):
    pipeline = LetsTalkPipeline.load(device="cpu")
    portrait = pipeline.crop(read_image(repository / "assets" / "portrait.jpg"))
    waveform, rate = read_audio(repository / "assets" / "speech.wav", duration=3.0)
    whole = offline(pipeline, portrait, waveform, rate).float()
    mute = offline(pipeline, portrait, torch.zeros_like(waveform), rate).float()
    live = torch.cat(list(pipeline.stream(portrait, waveform.split(rate // 50, 1), rate))).float()
    assert (live - whole).abs().mean() < 0.25 * (mute - whole).abs().mean()
