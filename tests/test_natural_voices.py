"""The neural voices, as the packages bring them: exact times, the same samples every time, closures that are quiet."""

import numpy as np
import pytest

from letstalk_core.data.speech import natural
from letstalk_core.data.speech import synthesis as speech
from letstalk_core.data.speech.pairs import FRAMES, SpokenPairs
from letstalk_core.data.speech.spoken_clips import random_speech, speech_clip
from letstalk_core.data.speech.synthesis import PAUSE, SAMPLE_RATE, VOICES, Voice, synthesize
from letstalk_core.data.speech.utterances import COUNT, KeptUtterances
from letstalk_core.data.speech.visemes import VOWELS, parse_symbol

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(name not in natural.installed(), reason=f"{name} is not installed"))
    for name in speech.NEURAL
]
FIRST = {"kokoro": "mix3", "hibari": "heart"}
TEXT = "My mother baked five warm blueberry muffins. Papa took a happy baby to the big pet shop."


@pytest.fixture(scope="module", params=ENGINES)
def spoken(request):
    """(voice, what it says)."""
    voice = Voice(request.param, "en-us", FIRST[request.param])
    return voice, synthesize(TEXT, voice, seed=1)


def test_the_same_request_gives_the_same_samples(spoken):
    voice, first = spoken
    synthesize("Something else.", voice, seed=2)
    again = synthesize(TEXT, voice, seed=1)
    assert np.array_equal(first.waveform, again.waveform) and first.phonemes == again.phonemes
    if voice.engine != "kokoro":  # whose sound has no chance in it
        assert not np.array_equal(first.waveform, synthesize(TEXT, voice, seed=2).waveform)


def test_durations_last_exactly_as_long_as_the_sound(spoken):
    voice, said = spoken
    lead = natural.engine(voice.engine).lead
    assert said.phonemes[0][1] == pytest.approx(-lead)
    assert said.phonemes[-1][2] == pytest.approx(said.duration - lead, abs=2e-4)
    ends, starts = [end for _, _, end in said.phonemes[:-1]], [start for _, start, _ in said.phonemes[1:]]
    assert np.allclose(ends, starts)
    assert not [symbol for symbol, _, _ in said.phonemes if parse_symbol(symbol)[1]]
    assert said.phonemes[0][0] == PAUSE


def loudness_track(samples):
    """Level in dB of each 5 ms [n]."""
    power = samples[: len(samples) // 80 * 80].reshape(-1, 80) ** 2
    return 10 * np.log10(np.convolve(power.mean(1), np.ones(5) / 5, "same") + 1e-7)


def test_the_lead_puts_vowels_where_the_sound_is_loud(spoken):
    """Moved by more than 25 ms either way, the phonemes fit the loudness less well."""
    _, said = spoken
    track = loudness_track(said.waveform)
    times = (np.arange(len(track)) + 0.5) * 80 / SAMPLE_RATE
    vowels = [(start, end) for symbol, start, end in said.phonemes if symbol and symbol[0] in VOWELS]

    def fit(shift):
        inside = np.zeros(len(track), bool)
        for start, end in vowels:
            inside |= (times >= start + shift) & (times < end + shift)
        return track[inside].mean() - track[~inside].mean()

    fits = {shift: fit(shift / 1000) for shift in range(-80, 81, 5)}
    assert abs(max(fits, key=fits.get)) <= 25, fits


@pytest.mark.skipif("hibari" not in natural.installed(), reason="hibari is not installed")
def test_other_pitch_and_formants_leave_the_times_alone():
    said = {name: synthesize(TEXT, Voice("hibari", "en-us", name)) for name in ("heart", "man", "child", "whisper")}
    assert len({one.phonemes for one in said.values()}) == 1
    envelopes = {name: _envelope(one.waveform) for name, one in said.items()}
    factors = np.arange(0.7, 1.41, 0.02)

    def stretch(name):
        """By how much the formants of `heart` must move to lie where those of `name` lie."""
        bins = np.arange(20, 160)
        likeness = [
            np.corrcoef(np.interp(bins / factor, np.arange(257), envelopes["heart"]), envelopes[name][bins])[0, 1]
            for factor in factors
        ]
        return factors[int(np.argmax(likeness))]

    assert stretch("man") < 0.95 < stretch("heart") < 1.05 < stretch("child")
    # Nothing of a whisper repeats itself as a voice does, 2.5 to 16 ms later.
    whispered, voiced = (_periodicity(said[name].waveform) for name in ("whisper", "heart"))
    assert whispered < 0.5 < voiced


def _envelope(samples):
    """Long-term spectrum [257] in dB without its harmonics."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, 512)[::256] * np.hanning(512)
    level = 10 * np.log10((np.abs(np.fft.rfft(windows)) ** 2).mean(0) + 1e-9)
    return np.convolve(np.pad(level, 6, mode="edge"), np.ones(13) / 13, "valid")


def _periodicity(samples):
    """Autocorrelation at the pitch, the median over the louder half of 40 ms windows."""
    windows = samples[: len(samples) // 640 * 640].reshape(-1, 640)
    windows = windows[np.argsort((windows**2).mean(1))[len(windows) // 2 :]]
    spectra = np.abs(np.fft.rfft(windows - windows.mean(1, keepdims=True), 2048)) ** 2
    likeness = np.fft.irfft(spectra)
    return float(np.median(likeness[:, 40:256].max(1) / likeness[:, 0]))


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(speech, "available_engines", lambda: ("espeak",))
    with pytest.raises(speech.SpeechUnavailableError, match="kokoro is not installed: pip install"):
        synthesize("a", Voice("kokoro", "en-us", "mix0"))


def test_a_style_is_held_out():
    kokoro = [voice for voice in VOICES if voice.engine == "kokoro"]
    held = [voice for voice in kokoro if voice.split == "heldout"]
    assert {voice.variant for voice in held} == {natural.KOKORO_HELDOUT_STYLE}
    assert natural.KOKORO_HELDOUT_STYLE not in natural.KOKORO_STYLES
    assert len(kokoro) > 5 * len(held) > 0


needs_hibari = pytest.mark.skipif("hibari" not in natural.installed(), reason="hibari is not installed")


@needs_hibari
def test_an_utterance_is_spoken_once(tmp_path, monkeypatch):
    voice = Voice("hibari", "en-us", "low")
    kept = KeptUtterances(tmp_path)
    first = kept(voice, 7)
    assert 0.3 < np.abs(first.waveform).max() <= 1 and first.phonemes
    monkeypatch.setattr("letstalk_core.data.speech.utterances.synthesize", lambda *_: pytest.fail("spoken again"))
    again = kept(voice, 7)
    assert np.array_equal(first.waveform, again.waveform)
    assert first.phonemes == again.phonemes
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    assert set(COUNT) == set(speech.NEURAL)


@needs_hibari
def test_clips_of_kept_utterances_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr("letstalk_core.data.speech.spoken_clips.NEURAL_SHARES", {"hibari": 1.0})
    kept = KeptUtterances(tmp_path)
    said = random_speech(np.random.default_rng(1), "train", -0.3, 3.0, kept)
    assert said.duration == 3.0 and len(said.phonemes) > 5 and len(list(tmp_path.iterdir())) >= 1
    clips = [speech_clip(np.random.default_rng(2), "train", 2.0, utterances=kept) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*clips, strict=True))


@pytest.mark.skipif("espeak" not in speech.available_engines(), reason="espeak-ng is not installed")
def test_pairs_are_made_once_and_the_same_by_any_number_of_workers(tmp_path):
    alone = SpokenPairs(tmp_path / "alone", 3, "mel", tmp_path / "utterances", block=2)
    alone.make_block(2)  # as if it had been stopped
    before = alone.features[2].copy()
    alone.features[2, 0, 0, 0] += 1  # what is marked as made stays as it is
    alone.make_block(0)
    assert alone.make() is alone
    assert alone.features.shape == (3, FRAMES, 4, 80) and alone.mouths[:, :, 0].max() > 0.2
    assert alone.features[2, 0, 0, 0] != before[0, 0, 0]
    together = SpokenPairs(tmp_path / "together", 3, "mel", tmp_path / "utterances", block=2).make(workers=2)
    assert np.array_equal(together.features[:2], alone.features[:2])
    assert np.array_equal(together.features[2], before)
    assert np.array_equal(together.mouths[:], alone.mouths[:])
