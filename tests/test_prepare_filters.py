"""prepare's filters: each moves the right way where a good clip is damaged in a controlled way."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from letstalk_core.data.preparation import clip_measures, lip_timing
from letstalk_core.data.preparation.clip_filters import FILTERS, judge
from letstalk_core.data.preparation.manifest import MANIFEST, read_manifest
from letstalk_core.data.preparation.preparation_settings import PreparationSettings, Thresholds, thresholds_of
from letstalk_core.data.preparation.preparing import prepare
from letstalk_core.data.speech.synthesis import available_engines

from .talking_videos import RATE, blurred, darkened, pair, shifted, talk, write_video

for package in ("webdataset", "scenedetect", "pyarrow", "matplotlib"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif("espeak" not in available_engines(), reason="espeak-ng is not installed")
SETTINGS = PreparationSettings(size=128, features="mel", eval_share=0.0, allow_silent=True)
SHORT = 60  # frames


def damages() -> dict[str, tuple]:
    """(frames, sound) by what is wrong with them."""
    whole, all_sound = talk()
    frames, sound = whole[:SHORT], all_sound[:, : SHORT * RATE // 25]  # where the length does not matter
    still = np.repeat(frames[20:21], len(frames), 0)
    grey = np.full_like(frames[:25], 128)
    hum = (0.1 * torch.sin(torch.arange(sound.shape[1]) * 0.05))[None]
    small = np.full((len(frames), 256, 256, 3), 90, np.uint8)
    small[:, 80:176, 80:176] = _reduced(frames)
    return {
        "good": (whole, all_sound),
        "blurred": (blurred(frames, 5), sound),
        "dark": (darkened(frames, 0.28), sound),
        "glaring": (255 - darkened(255 - frames, 0.3), sound),
        "still": (still, sound),
        "late": (np.concatenate([grey, frames[:-25]]), sound),
        "chin outside": (frames[:, :196], sound),
        "half outside": (frames[:, :, 128:], sound),
        "small": (small, sound),
        "two people": (pair(frames), sound),
        "hum": (frames, hum),
        "silent": (frames, torch.zeros_like(sound)),
        "sound later": (whole, shifted(all_sound, 7)),
        "sound earlier": (whole, shifted(all_sound, -7)),
        "another's sound": (whole, _anothers(all_sound.shape[1])),
        "no sound": (frames, None),
        "no face": (np.full_like(frames, 128), sound),
    }


def _reduced(frames):
    from letstalk_core.picture.similarity import cut, square_at

    return np.stack([cut(frame, square_at(0, 0, 256, 96), 96) for frame in frames])


def _anothers(samples):
    _, sound = talk(5, "Ten old men are going home over the moor; none of them knows why, so we are all alone.")
    return sound.repeat(1, 2)[:, :samples]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """By what is wrong: the row of its (first) clip."""
    folder = tmp_path_factory.mktemp("filters")
    for name, (frames, sound) in damages().items():
        write_video(folder / "in" / f"{name}.mp4", frames, sound)
    prepare([folder / "in"], folder / "out", SETTINGS, workers=1)
    found = {}
    for row in read_manifest(folder / "out" / MANIFEST):
        found.setdefault(row["video"].removesuffix(".mp4"), row)
    return found


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        ("good", None),
        ("no sound", None),
        ("blurred", "sharpness"),
        ("dark", "darkness"),
        ("glaring", "glare"),
        ("still", "motion"),
        ("late", "a face in every frame"),
        ("half outside", "a face in every frame"),
        ("no face", "a face in every frame"),
        ("chin outside", "the whole face"),
        ("small", "size"),
        ("two people", "one face"),
        ("hum", "speech"),
        ("silent", "speech"),
        ("sound later", "lips, lag"),
        ("sound earlier", "lips, lag"),
        ("another's sound", "lips, r"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_else(rows, damage, wrong):
    row = rows[damage]
    found = [name for name in row["filters"] if (damage, name) != ("still", "lips, r")]  # a still mouth is no match
    assert found == ([] if wrong is None else [wrong]), row["reasons"]
    assert row["kept"] == (wrong is None) and len(row["reasons"]) == len(row["filters"])


def test_the_lag_is_that_of_the_shift(rows):
    assert rows["sound later"]["lips_lag"] == 7 and rows["sound earlier"]["lips_lag"] == -7
    assert rows["good"]["lips_lag"] == 0 and rows["good"]["lips_r"] > 0.6
    assert rows["another's sound"]["lips_r"] < rows["good"]["lips_r"] - 0.3


def test_a_clip_without_sound_is_in_no_shard(rows):
    assert rows["no sound"]["stored"].startswith("silent/") and rows["good"]["stored"].startswith("train/")
    assert rows["no sound"]["speech"] is None and not rows["no sound"]["sound"]


def test_measures_move_with_their_damage():
    frames, sound = talk()
    grey = clip_measures.greys(frames)
    sharp = [clip_measures.sharpness(clip_measures.greys(blurred(frames[:20], sigma))) for sigma in (0.5, 1, 2, 4)]
    assert sharp == sorted(sharp, reverse=True) and sharp[0] > 4 * sharp[-1]
    noisy = np.clip(frames[20:21] + np.random.default_rng(0).normal(0, 3, frames.shape), 0, 255).astype(np.uint8)
    assert clip_measures.motion(clip_measures.greys(noisy)) < clip_measures.motion(grey)  # grain is hardly motion
    assert clip_measures.motion(grey[:3]) == 0 and clip_measures.brightness(grey // 2) < clip_measures.brightness(grey)
    half = torch.cat([sound[0], torch.zeros_like(sound[0])])
    assert 0.4 < clip_measures.speech_share(half) / clip_measures.speech_share(sound[0]) < 0.65
    noise = 0.1 * torch.randn(3 * RATE, generator=torch.Generator().manual_seed(0))
    assert clip_measures.speech_share(noise) == 0 and clip_measures.speech_share(torch.zeros(10)) == 0


@pytest.mark.parametrize("lag", [-9, -1, 0, 4, 12])
def test_lips_that_follow_at_a_lag(lag):
    rng = np.random.default_rng(1)
    mouth = np.convolve(rng.normal(size=300), np.hanning(7), "same")
    heard = np.roll(mouth, lag) + rng.normal(size=300) * 0.3
    r, found = lip_timing.compare_lips(heard[30:250], mouth[30:250])
    assert found == lag and r > 0.8
    r, found = lip_timing.compare_lips(rng.normal(size=220), mouth[30:250])
    assert found is None and r < 0.3
    assert lip_timing.compare_lips(np.zeros(220), mouth[30:250]) == (0.0, None)


@pytest.mark.parametrize("frames", [26, 38])
def test_a_short_clip_is_compared_at_few_lags(frames):
    """A second of a mouth and a second of another agree somewhere, at the lags that leave little to compare."""
    rng = np.random.default_rng(2)
    tracks = [np.convolve(rng.normal(size=frames + 20), np.hanning(7), "same") for _ in range(200)]
    lags = [lip_timing.compare_lips(a[10:-10], b[10:-10])[1] for a, b in zip(tracks, tracks[1:])]
    told = [abs(lag) for lag in lags if lag is not None]
    assert len(told) > 50 and max(told) == frames // 3
    assert lip_timing.compare_lips(tracks[0][10:-10], tracks[0][12:-8])[1] == 2


def test_every_threshold_belongs_to_a_filter_and_each_filter_has_its_sentence():
    used = [limit for each in FILTERS for limit in (each.least, each.most) if limit]
    assert sorted(used) == sorted(vars(Thresholds()))
    for each in FILTERS:
        limit = getattr(Thresholds(), each.least or each.most)
        measures = {each.measure: limit}
        assert judge(measures, Thresholds()) == []  # the threshold itself is kept
        ((name, reason),) = judge({each.measure: limit + (-1e-3 if each.least else 1e-3)}, Thresholds())
        assert name == each.name and reason.endswith(".") and "{" not in reason
    assert judge({}, Thresholds()) == []


def test_thresholds_by_name():
    assert thresholds_of(["sharpness=2.5", "faces=2"]) == replace(Thresholds(), sharpness=2.5, faces=2.0)
