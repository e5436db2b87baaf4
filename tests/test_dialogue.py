"""Several speakers in one picture: what each hears, what it does while another speaks, and where it is pasted."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from letstalk_core.audio.dialogue import Channel, Lasting, Mix, seconds_of, together
from letstalk_core.audio.recording import Recording
from letstalk_core.cli import main
from letstalk_core.config import CONTROLS
from letstalk_core.errors import InputError
from letstalk_core.picture.paste_back import PasteBack, Place
from letstalk_core.picture.portrait import Portrait, check_apart
from letstalk_core.picture.similarity import square_at
from letstalk_core.render.job import Speaker, VideoJob
from letstalk_core.render.render import render_video, write_video
from letstalk_core.video.clips import SamplingSettings
from letstalk_core.video.controls import AskedFor
from letstalk_core.video.listening import NOD, TURN, listening, speech_activity
from letstalk_core.video.reader import read_video_frames

from .media_files import tone, write_media
from .rendering import StopAt, stopped

ALL, FPS = tuple(CONTROLS), 25.0


def sound(rate=16000, seconds=1.0, channels=1, pitch=200):
    return Recording((torch.from_numpy(tone(rate, round(rate * seconds), channels)) * pitch / 200, rate))


def samples(of) -> torch.Tensor:
    return torch.cat([block for block, _ in of.blocks()], 1)


# Sound ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["left", "right", 0, "1"])
def test_a_channel_is_that_channel(number):
    stereo = Recording((torch.stack([torch.linspace(-1, 1, 999), torch.zeros(999)]), 8000))
    heard = Channel(stereo, number)
    assert torch.equal(samples(heard), samples(stereo)[[int(number in ("right", "1"))]])
    assert (heard.rate, heard.channels, heard.samples) == (8000, 1, 999)


@pytest.mark.parametrize(
    ("rates", "channels"), [((16000, 16000), (1, 1)), ((8000, 44100), (1, 2)), ((22050, 48000), (2, 6))]
)
def test_a_mix_is_the_sum_of_all(rates, channels):
    parts = [sound(rate, 0.3 + number, many) for number, (rate, many) in enumerate(zip(rates, channels, strict=True))]
    mixed = Mix(parts)
    assert (mixed.rate, mixed.channels, mixed.samples) == (max(rates), min(2, max(channels)), round(1.3 * max(rates)))
    alone = samples(parts[1])
    alone = alone if channels[1] <= 2 else alone.mean(0, keepdim=True)
    after = mixed.rate // 2  # the first one ended before
    assert torch.allclose(samples(mixed)[:, after:], alone[:, after:].expand(mixed.channels, -1), atol=1e-6)
    assert not torch.allclose(samples(mixed)[:, :1000], alone[:, :1000].expand(mixed.channels, -1), atol=1e-3)


@pytest.mark.parametrize(("rate", "fps"), list(itertools.product((8000, 12345, 44100), (25.0, 24.0, 29.97))))
def test_a_sound_that_lasts_as_long_as_another(rate, fps):
    other = sound(48000, 0.7771)
    lasting = Lasting(sound(rate, 0.2), seconds_of(other))
    assert lasting.frames(fps) == other.frames(fps)
    assert torch.equal(samples(lasting)[:, : round(0.2 * rate)], samples(sound(rate, 0.2)))
    assert not samples(lasting)[:, round(0.2 * rate) :].any()
    assert 0 <= lasting.samples - seconds_of(other) * rate < 1


def test_what_is_heard_of_voices():
    one, stereo = sound(), sound(channels=2)
    assert together([one]) is one
    same = together([Channel(stereo, 0), Channel(sound(channels=2), 1)])
    assert same.digest == stereo.digest and same.channels == 2
    assert isinstance(together([one, Channel(stereo, 1)]), Mix)
    assert seconds_of(one) == Fraction(1)


# Listening ------------------------------------------------------------------------------------------------------------


def spoken(turns, seconds=3.0) -> np.ndarray:
    return np.repeat(np.array(turns, float), round(seconds * FPS))


def test_when_somebody_speaks():
    noise = torch.randn(1, 16000 * 4, generator=torch.Generator().manual_seed(0)) * 0.1
    noise[:, 16000:48000] *= 1e-4
    noise[:, 8000:13000] *= 1e-4  # a short pause
    activity = speech_activity(Recording((noise, 16000)), FPS, 125)
    assert activity.shape == (125,) and activity.min() >= 0 and activity.max() <= 1
    assert activity[5:17].min() > 0.95 and activity[80:95].min() > 0.95  # while it is loud
    assert not activity[42:58].any() and not activity[116:].any()  # in the long pause, and after the end
    assert np.abs(np.diff(activity)).max() < 0.2  # softly
    assert not speech_activity(Recording((torch.zeros(1, 16000), 16000)), FPS, 25).any()
    noise = torch.randn(1, 16000 * 60, generator=torch.Generator().manual_seed(0)) * 10 ** (-50 / 20)
    noise[:, 160000:192000] *= 10 ** (30 / 20)  # two seconds of a minute
    activity = speech_activity(Recording((noise, 16000)), FPS, 1500)
    assert activity[255:295].min() > 0.95 and not activity[:230].any() and not activity[320:].any()
    for samples in (1, 100, 4000):  # shorter than what it is smoothed over
        short = speech_activity(Recording((torch.ones(1, samples) / 2, 16000)), FPS, 25)
        assert short.shape == (25,) and short[0] > 0.9 and not short[22:].any()


@pytest.mark.parametrize("side", [-1, 1])
def test_who_listens_looks_at_who_speaks_and_nods(side):
    own, other = spoken([1, 0, 1, 0, 0, 0]), spoken([0, 1, 0, 1, 1, 1])
    plain = AskedFor().values(ALL, 3, 0, len(own), FPS)
    asked = listening(AskedFor(), ALL, 3, own, [(side, other)], FPS).values(ALL, 3, 0, len(own), FPS)
    added = dict(zip(ALL, (asked - plain).T.numpy(), strict=True))
    listens = own == 0
    for name in ("yaw", "gaze_x"):
        assert (side * added[name][listens] >= -1e-5).all() and abs(added[name][~listens]).max() < 1e-5
    assert side * added["yaw"][listens].mean() > 0.5 * TURN
    assert -NOD - 1e-4 <= added["pitch"].min() < -0.5 * NOD and abs(added["pitch"][~listens]).max() < 1e-5
    assert all(not added[name].any() for name in ALL if name not in ("yaw", "gaze_x", "pitch"))


def test_listening_is_as_large_as_the_heads_motion_and_leaves_what_is_led():
    own, others = spoken([0, 0]), [(1, spoken([1, 1]))]
    still = AskedFor(head_motion=0)
    assert listening(still, ALL, 3, own, others, FPS) is still
    assert listening(AskedFor(head_motion=None), ALL, 3, own, others, FPS).tracks == {}
    assert listening(AskedFor(), ("eyelids",), 3, own, others, FPS).tracks == {}
    led = listening(AskedFor(tracks={"yaw": 7.0}), ALL, 3, own, others, FPS).tracks
    assert led["yaw"] == 7.0 and set(led) == {"yaw", "pitch", "gaze_x"}


# Pictures -------------------------------------------------------------------------------------------------------------


def two_portraits(side=60):
    """Of a picture of 120x90 whose squares overlap by a third."""
    return [
        Portrait(torch.zeros(3, 64, 64), square_at(left, 20, side, 64), (120, 90)) for left in (10, 10 + 2 * side // 3)
    ]


def test_each_face_has_its_own_part_of_the_picture():
    left, right = two_portraits()
    weights = torch.zeros(2, 90, 120)
    for number, (portrait, other) in enumerate([(left, right), (right, left)]):
        place = Place(portrait, [other])
        weights[number, place.rows, place.columns] = place.weight
    assert weights.sum(0).max() <= 1 + 1e-6
    assert weights[0, 50, 40] == 1 and weights[1, 50, 80] == 1  # the middles
    assert weights[0, 50, 62:].max() < 0.5 and weights[1, 50, :58].max() < 0.5
    assert weights[:, 50, 60].sum() == pytest.approx(1, abs=1e-5)  # half way no seam is left


@pytest.fixture
def dialogue(pipeline):
    """Of 38 frames; the second one speaks after the first."""
    picture, portraits = torch.rand(90, 120, 3, generator=torch.Generator().manual_seed(1)), two_portraits()
    voices = [sound(11025, 0.7), Recording((torch.cat([torch.zeros(1, 8000), samples(sound(8000, 0.5))], 1), 8000))]

    pastes = [PasteBack(picture, portrait, None, [portraits[1 - who]]) for who, portrait in enumerate(portraits)]

    def make():
        settings = [SamplingSettings(seed=3)] * 2
        return VideoJob(pipeline, tuple(map(Speaker, portraits, voices, settings, pastes)))

    return make


def test_the_frames_of_each_are_what_it_would_be_alone(dialogue):
    job = dialogue()
    assert job.frames == 38 and job.size == (120, 90)
    both = list(job.chunks(job.encode(), 0, 38, None, lambda *_: None))
    for who, speaker in enumerate(job.speakers):
        alone = VideoJob(
            job.pipeline,
            (Speaker(speaker.portrait, Lasting(speaker.voice, seconds_of(job.recording)), job.settings[who]),),
        )
        frames = torch.cat([frames[0] for frames, _ in alone.chunks(alone.encode(), 0, 38, None, lambda *_: None)])
        assert torch.equal(torch.cat([frames[who] for frames, _ in both]), frames)


@pytest.mark.usefixtures("short_segments")
def test_a_dialogue_that_was_stopped_goes_on(dialogue, tmp_path):
    render_video(dialogue(), tmp_path / "whole.mp4")
    stopped(dialogue(), tmp_path / "a.mp4")
    watcher = StopAt()
    render_video(dialogue(), tmp_path / "a.mp4", watcher)
    assert watcher.estimate.done == 16
    assert np.array_equal(*(read_video_frames(tmp_path / name) for name in ("a.mp4", "whole.mp4")))


def test_steps_count_over_all_speakers(dialogue):
    seen, job = [], dialogue()
    next(job.chunks(job.encode(), 0, 8, None, lambda step, steps, _: seen.append((step, steps))))
    count = len(seen) // 2
    assert seen == [(step, 2 * count) for step in range(1, 2 * count + 1)]


def test_speakers_that_are_not_in_one_picture(dialogue, pipeline):
    first, second = dialogue().speakers
    for other in (Speaker(second.portrait, second.voice, second.settings), Speaker(
        second.portrait, second.voice, second.settings, PasteBack(torch.rand(90, 120, 3), second.portrait)
    )):  # fmt: skip
        with pytest.raises(InputError, match="faces of one picture"):
            VideoJob(pipeline, (first, other))
    with pytest.raises(InputError, match="Two speakers have the same face"):
        check_apart([first.portrait, second.portrait, first.portrait])


# What users call ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(repository, tmp_path_factory):
    """(a picture of two people of assets/people, a stereo recording whose channels speak one after the other)."""
    from letstalk_core.picture.picture_file import read_image

    folder = tmp_path_factory.mktemp("two")
    people = [read_image(repository / "assets" / "people" / f"{name}.jpg") for name in ("005", "015")]
    from PIL import Image

    Image.fromarray((np.concatenate(people, 1) * 255).astype(np.uint8)).save(folder / "two.png")
    speech = tone(16000, 16000, 2)
    speech[0, 8000:] = speech[1, :8000] = 0
    return folder / "two.png", write_media(folder / "two.wav", speech, 16000)


def test_from_python_and_from_the_command_line(two, tmp_path, capsys):
    from letstalk_core import LetsTalkPipeline

    picture, stereo = two
    command = ["generate", "--portrait", str(picture), "--output", str(tmp_path / "a.mp4")]
    voices = {"left": (stereo, "left"), "right": (stereo, "right")}
    assert write_video(LetsTalkPipeline.load(), picture, voices, tmp_path / "b.mp4") == 25
    assert main([*command, *(option for face in voices for option in ("--speaker", f"{face}={stereo}:{face}"))]) == 0
    made = read_video_frames(tmp_path / "a.mp4")
    assert made.shape == (25, 320, 640, 3) and np.array_equal(made, read_video_frames(tmp_path / "b.mp4"))
    for options, sentence in (
        ([], "Give the sound once"),
        (["--audio", str(stereo), "--speaker", f"left={stereo}"], "Give the sound once"),
        (["--speaker", f"left={stereo}", "--speaker", f"left={stereo}"], "One face has two sounds"),
        (["--speaker", f"left={stereo}", "--speaker", f"0={stereo}", "--speaker", f"1={stereo}"], "the same face"),
        (["--speaker", f"0={stereo}", "--speaker", f"2={stereo}"], "Face 2 was asked for, but the picture has 2"),
        (["--speaker", f"left={stereo}:5"], "2 channel(s), and channel 5 is not among them"),
    ):
        assert main([*command, *options]) != 0
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--speaker", str(stereo)])
    assert "is not FACE=FILE" in capsys.readouterr().err
