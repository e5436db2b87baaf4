"""The bundled model itself: a newcomer's first command gives a video in which the portrait speaks."""

import itertools

import cv2
import numpy as np
import pytest

from letstalk_core.audio.recording import read_audio
from letstalk_core.cli import main
from letstalk_core.evaluation import measures
from letstalk_core.evaluation.held_out import held_out_pairs
from letstalk_core.evaluation.meter import READINGS, load_meter
from letstalk_core.evaluation.report import METER, generate_frames
from letstalk_core.picture.picture_file import read_image
from letstalk_core.picture.similarity import cut
from letstalk_core.pipeline import BUNDLED_MODEL, LetsTalkPipeline
from letstalk_core.pixels import images_to_pixels
from letstalk_core.video.clips import SamplingSettings
from letstalk_core.video.controls import AskedFor
from letstalk_core.video.reader import probe, read_video_frames

pytestmark = pytest.mark.skipif(not BUNDLED_MODEL.exists(), reason="no bundled model in this repository yet")

OPEN, BLINK = READINGS.index("open"), READINGS.index("blink")
EVERYWHERE = np.ones((256, 256), bool)


@pytest.fixture(scope="module")
def meter():
    return load_meter(METER)


@pytest.fixture(scope="module")
def pipeline():
    return LetsTalkPipeline.load(device="cpu")


def test_it_is_small_and_says_what_it_is(capsys):
    assert BUNDLED_MODEL.stat().st_size <= 40_000_000
    assert main(["info", str(BUNDLED_MODEL)]) == 0
    shown = capsys.readouterr().out
    assert "Apache-2.0" in shown and "whisper" in shown


def test_the_demo_speaks(meter, tmp_path, repository, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    output = tmp_path / "letstalk-demo.mp4"
    waveform, rate = read_audio(repository / "assets" / "speech.wav")
    portrait = LetsTalkPipeline.load(device="cpu").crop(read_image(repository / "assets" / "portrait.jpg"))
    whole = read_video_frames(output)
    assert whole.shape[1:3] == portrait.original_size[::-1]
    frames = np.stack([cut(frame, portrait.square, portrait.image.shape[-1]) for frame in whole])  # the face's square
    assert len(frames) == probe(output).frames == -(-waveform.shape[1] * 25 // rate)
    read = meter.read(frames)
    loudness = measures.envelope(waveform.mean(0).numpy(), rate, len(frames), 25)
    # Loudness is not opening. The next test asks for the mouth itself.
    followed = measures.correlation(read[:, OPEN], loudness)
    elsewhere = [np.roll(loudness, shift) for shift in range(13, len(frames) - 12)]  # half a second off, and more
    elsewhere += [np.roll(loudness[::-1], shift) for shift in range(len(frames))]
    assert followed > max(0.3, *(abs(measures.correlation(read[:, OPEN], other)) for other in elsewhere))
    assert read[:, OPEN].max() > 0.3 and read[:, OPEN].min() < 0.1  # it opens, and it closes
    assert 6 <= measures.blinks_per_minute(read[:, BLINK], 25) <= 30
    still = images_to_pixels(portrait.image[None]).numpy()
    alike = [measures.masked_psnr(frame[None], still, EVERYWHERE) for frame in frames]
    assert min(alike) > 15  # the same portrait throughout, from a head that moves
    assert measures.border_jump(frames, 16) < 1.3


def test_the_demo_opens_its_mouth_as_the_voice_did(meter, pipeline, repository, monkeypatch):
    from letstalk_core.data.speech.synthesis import available_engines
    from letstalk_core.data.speech.visemes import mouth_track

    if "kokoro" not in available_engines():
        pytest.skip("kokoro, which spoke the example, is not installed")
    monkeypatch.syspath_prepend(repository / "docs")
    from make_assets import example_speech

    waveform, rate = read_audio(repository / "assets" / "speech.wav")
    portrait = pipeline.crop(read_image(repository / "assets" / "portrait.jpg")).image
    frames = generate_frames(pipeline, portrait, waveform.mean(0).numpy(), rate, SamplingSettings())
    read, truth = meter.read(frames)[:, OPEN], mouth_track(example_speech(), len(frames))[:, 0]
    assert measures.correlation(read, truth) > 0.65
    backwards = measures.envelope(waveform.mean(0).numpy(), rate, len(frames), 25)[::-1].copy()
    assert abs(measures.correlation(read, backwards) - measures.correlation(truth, backwards)) < 0.15


def test_the_judge_sees_true_mouths_in_frames_of_any_size(meter):
    scores = []
    for pair in held_out_pairs(4, 2.0, 256):
        frames = pair.frames()
        read = meter.read(frames)[:, OPEN]
        larger = meter.read(
            np.stack([cv2.resize(frame, (384, 384), interpolation=cv2.INTER_CUBIC) for frame in frames])
        )
        assert measures.correlation(read, larger[:, OPEN]) > 0.99
        scores.append(measures.correlation(read, pair.track("open")))
    assert np.median(scores) > 0.95, scores


@pytest.mark.parametrize("drawings", [False, True])
def test_it_follows_the_words_of_people_it_never_met(meter, pipeline, drawings):
    from letstalk_core.data.speech.synthesis import available_engines

    if not available_engines():
        pytest.skip("espeak-ng and flite are not installed")
    read, truth = [], []
    for pair in held_out_pairs(5, 3.0, pipeline.config.image_size, drawings):
        asked = AskedFor(tracks=pair.asked(pipeline.config.departures.controls))
        frames = generate_frames(pipeline, pair.portrait, pair.waveform, 16000, SamplingSettings(asked=asked))
        read.append(meter.read(frames)[:, OPEN])
        truth.append(pair.track("open"))
    scores = [measures.correlation(a, b) for a, b in zip(read, truth, strict=True)]
    shuffled = [measures.correlation(read[i], truth[j]) for i, j in itertools.permutations(range(len(read)), 2)]
    assert np.median(scores) > 0.8 and abs(np.mean(shuffled)) < 0.2, (scores, shuffled)


def test_silence_keeps_the_mouth_closed(meter, pipeline, repository):
    portrait = pipeline.crop(read_image(repository / "assets" / "portrait.jpg")).image
    frames = generate_frames(pipeline, portrait, np.zeros(16000 * 2, np.float32), 16000, SamplingSettings())
    assert np.median(meter.read(frames)[:, OPEN]) < 0.12
