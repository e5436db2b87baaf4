"""Synthetic speech: phoneme times, mouth tracks, augmentation and clips."""

import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest

from letstalk_core.data.speech import augment, background, espeak, sentences, visemes
from letstalk_core.data.speech import synthesis as speech
from letstalk_core.data.speech.spoken_clips import speech_clip
from letstalk_core.data.speech.synthesis import PAUSE, SAMPLE_RATE, Speech, Voice, available_engines, join, synthesize
from letstalk_core.data.speech.visemes import MOUTH, mouth_track

needs_espeak = pytest.mark.skipif("espeak" not in available_engines(), reason="espeak-ng is not installed")
needs_flite = pytest.mark.skipif("flite" not in available_engines(), reason="flite is not installed")
OPEN, WIDTH, ROUND, TEETH, TONGUE, CLOSED, TUCK = range(len(MOUTH))
TEXT = "A papa made a happy baby a map. Mama paid Bob."


def unknown_share(phonemes) -> float:
    """Share of the sounding symbols that carry a letter nothing is known about."""
    sounding = [symbol for symbol, _, _ in phonemes if symbol not in (speech.PAUSE, speech.RELEASE)]
    return sum(bool(visemes.parse_symbol(symbol)[1]) for symbol in sounding) / max(len(sounding), 1)


def _tone(*phonemes):
    """A steady tone under the given (symbol, seconds) pairs."""
    spans, position = [], 0.0
    for symbol, seconds in phonemes:
        spans.append((symbol, position, position + seconds))
        position += seconds
    samples = 0.3 * np.sin(0.05 * np.arange(round(position * SAMPLE_RATE)))
    return Speech(samples.astype(np.float32), tuple(spans))


def _level(samples):
    return 10 * np.log10(np.mean(np.square(samples)) + 1e-9)


def test_vowels_and_consonants_reach_their_shapes():
    track = mouth_track(_tone(("a", 0.4), ("f", 0.3), ("u", 0.4), ("i", 0.4)), 38)
    a, f, u, i = track[5], track[13], track[22], track[32]
    assert a[OPEN] > 0.75
    assert f[OPEN] < 0.2 and f[TEETH] > 0.7
    assert u[ROUND] > 0.8 and u[WIDTH] < -0.6
    assert i[WIDTH] > 0.6 and i[OPEN] < 0.45


def test_lower_lips_tuck_under_the_teeth_for_f_and_v():
    track = mouth_track(_tone(("a", 0.4), ("f", 0.12), ("a", 0.4), ("s", 0.12), ("a", 0.2)), 31)
    assert track[11, TUCK] == 1 and np.all(track[:8, TUCK] == 0) and np.all(track[16:, TUCK] == 0)


def test_rounding_is_anticipated():
    track = mouth_track(_tone(("i", 0.3), ("t", 0.08), ("u", 0.3)), 17)
    assert track[8, ROUND] > 0.25  # within the t
    assert track[3, ROUND] < 0.1


def test_a_diphthong_glides():
    track = mouth_track(_tone(("aɪ", 0.6)), 15)
    assert track[3, OPEN] > 0.75 and track[12, OPEN] < 0.5 and track[12, WIDTH] > 0.4


@pytest.mark.parametrize("shift", np.arange(0, 0.04, 0.007))
@pytest.mark.parametrize("length", [0.015, 0.03, 0.06, 0.1])
def test_every_closure_survives_at_25_fps(shift, length):
    track = mouth_track(_tone(("a", 0.3 + shift), ("p", length), ("a", 0.3)), 16)
    start, end = 0.3 + shift, 0.3 + shift + length
    centres = (np.arange(16) + 0.5) / 25
    inside = (centres >= start) & (centres < end)
    assert np.array_equal(track[:, CLOSED] == 1, inside)
    assert np.all(track[inside, OPEN] == 0)
    assert track[np.argmin(np.abs(centres - (start + end) / 2)), OPEN] <= 0.05


def test_the_mouth_rests_in_pauses_and_is_ready_again():
    track = mouth_track(_tone(("a", 0.4), (PAUSE, 0.8), ("a", 0.4)), 40)
    assert track[14:26, OPEN].max() <= 0.03
    assert track[30, OPEN] > 0.4
    assert not track[:, CLOSED].any()
    assert mouth_track(Speech(np.zeros(16000, np.float32), ()), 25)[:, OPEN].max() <= 0.03


def test_modifiers_and_unknown_symbols():
    assert visemes.parse_symbol("ãː") == (["a"], [])
    assert visemes.parse_symbol("tʲ") == (["tʲ"], [])
    assert visemes.parse_symbol("pf") == (["p", "f"], [])
    assert visemes.parse_symbol("§")[1] == ["§"]
    assert unknown_share((("§", 0, 1), ("a", 1, 2), (PAUSE, 2, 3))) == 0.5
    assert np.isfinite(mouth_track(_tone(("§", 0.5)), 12)).all()


def test_crop_and_join_keep_time():
    part = _tone(("a", 0.5), ("m", 0.25))
    both = join([part, part], [0.5])
    assert both.duration == 2.0
    assert both.phonemes[2] == (PAUSE, 0.75, 1.25) and both.phonemes[4] == ("m", 1.75, 2.0)
    later = both.crop(0.5, 1.0)
    assert later.duration == 1.0 and later.phonemes[1] == ("m", 0.0, 0.25)
    early = both.crop(-0.25, 0.5)
    assert np.all(early.waveform[:4000] == 0) and np.array_equal(early.waveform[4000:], both.waveform[:4000])


def test_speed_changes_wave_and_phonemes_alike():
    fast = augment.change_speed_pitch(_tone(("a", 1.0), ("m", 0.5)), 1.25)
    assert fast.duration == pytest.approx(1.2, abs=1e-3)
    assert fast.phonemes[1][1] == pytest.approx(0.8)
    with pytest.raises(ValueError, match="factor"):
        augment.change_speed_pitch(fast, 3.0)


@pytest.mark.parametrize("seed", range(8))
def test_augmentation_does_not_move_sounds(seed):
    rng = np.random.default_rng(seed)
    wave = np.zeros(32000, np.float32)
    wave[12000:12800] = rng.standard_normal(800).astype(np.float32) * 0.2
    changed = augment.augment(wave, rng)
    assert changed.dtype == np.float32 and changed.shape == wave.shape and np.abs(changed).max() <= 1
    spectrum = np.fft.rfft(changed, 65536) * np.conj(np.fft.rfft(wave, 65536))
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    assert min(lag, 65536 - lag) <= 8  # half a millisecond


@pytest.mark.parametrize("seed", range(6))
def test_a_codec_does_not_move_sounds(seed):
    """Where it is tried alone, so that nothing hides what it does: clicks in noise stay within 2 ms."""
    rng = np.random.default_rng(seed)
    wave = np.zeros(32000, np.float32)
    for start in (6000, 14000, 25000):
        wave[start : start + 1600] = rng.standard_normal(1600).astype(np.float32) * np.hanning(1600) * 0.3
    coded = augment._coded(wave, rng)
    assert coded.shape == wave.shape and coded.dtype == np.float32 and not np.array_equal(coded, wave)
    smooth = [np.convolve(np.abs(one), np.hanning(321), "same") for one in (wave, coded)]
    for start in (6000, 14000, 25000):
        around = slice(start - 800, start + 2400)
        centres = [np.average(np.arange(3200), weights=one[around] ** 2) for one in smooth]
        assert abs(centres[0] - centres[1]) < 32


def test_music_has_its_length_its_power_and_a_beat():
    pieces = [background.music(48000, np.random.default_rng(seed)) for seed in range(4)]
    for piece in pieces:
        assert piece.shape == (48000,) and piece.dtype == np.float32 and piece.std() == pytest.approx(1, abs=1e-3)
        assert np.isfinite(piece).all()
        assert np.abs(piece[:4000]).max() > 0.05  # it does not begin when the clip does
    assert np.array_equal(pieces[2], background.music(48000, np.random.default_rng(2)))
    assert background.music(10, np.random.default_rng(0)).shape == (10,)


def test_splits_share_no_sentence():
    for language in sentences.SENTENCES:
        train, held = sentences.sentences(language, "train"), sentences.sentences(language, "heldout")
        assert not set(train) & set(held) and len(held) >= 2
    with pytest.raises(ValueError, match="split"):
        sentences.sentences("en", "test")
    assert {voice.split for voice in speech.VOICES} == {"train", "heldout"}


def test_common_words_of_the_splits_differ():
    pytest.importorskip("wordfreq")
    for key in ("en", "de", "ru", "fr"):
        train, held = (set(sentences.common_words(key, split)) for split in ("train", "heldout"))
        assert not train & held and len(train) > 5 * len(held) > 1000
    assert sentences.common_words("ja", "train") == ()  # espeak-ng would read its usual script letter by letter
    said = {sentences.random_sentence(np.random.default_rng(seed), "en-us") for seed in range(200)}
    assert len(said) > 150


def test_sentences_without_the_word_lists(monkeypatch):
    sentences.common_words.cache_clear()
    monkeypatch.setattr(sentences.importlib.util, "find_spec", lambda name: None)
    try:
        assert sentences.common_words("en", "train") == ()
        assert sentences.random_sentence(np.random.default_rng(0), "en-us")
    finally:
        sentences.common_words.cache_clear()


def test_synthesis_refuses_bad_settings():
    with pytest.raises(ValueError, match="rate"):
        synthesize("a", Voice("espeak", "en-us", "m1"), rate=1000)


def test_missing_engine_is_named(monkeypatch):
    monkeypatch.setattr(speech, "available_engines", lambda: ())
    with pytest.raises(speech.SpeechUnavailableError, match="apt-get install espeak-ng flite"):
        synthesize("a", Voice("flite", "en-us", "slt"))


@needs_espeak
@pytest.mark.parametrize("language", ["en-us", "de", "es", "ru"])
def test_espeak_times_match_the_sound(language):
    texts = {"es": "Papá toca la tapa, poco a poco.", "ru": "Папа покупает капусту.", "de": "Papa tappt, Kappe."}
    spoken = synthesize(texts.get(language, TEXT), Voice("espeak", language, "m1"), rate=150)
    levels = {"vowel": [], "stop": [], "pause": []}
    for symbol, start, end in spoken.phonemes:
        samples = spoken.waveform[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        kind = "pause" if symbol == PAUSE else "stop" if symbol in ("p", "t", "k") else "vowel"
        if len(samples) > 200 and (kind != "vowel" or symbol[0] in "aɑæeoɐ"):
            levels[kind].append(_level(samples[40:-80]))
    assert np.median(levels["vowel"]) - np.median(levels["stop"]) > 15
    for pause in levels["pause"]:
        assert np.median(levels["vowel"]) - pause > 15


@needs_flite
def test_flite_times_match_the_sound():
    spoken = synthesize(TEXT, Voice("flite", "en-us", "slt"))
    assert abs(spoken.phonemes[-1][2] - spoken.duration) < 0.02
    at = {}
    for symbol, start, end in spoken.phonemes:
        middle, half = (start + end) / 2, (end - start) / 4
        piece = spoken.waveform[round((middle - half) * SAMPLE_RATE) : round((middle + half) * SAMPLE_RATE)]
        at.setdefault(symbol, []).append(_level(piece))
    assert np.mean(at["æ"]) - np.mean(at["p"]) > 12


@needs_espeak
def test_the_same_request_gives_the_same_samples():
    first = synthesize(TEXT, Voice("espeak", "en-us", "f1"))
    synthesize("Guten Tag", Voice("espeak", "de", "m3"))
    again = synthesize(TEXT, Voice("espeak", "en-us", "f1"))
    assert np.array_equal(first.waveform, again.waveform) and first.phonemes == again.phonemes


@needs_espeak
def test_ctrl_c_leaves_the_espeak_process_to_whoever_started_it():
    command = [sys.executable, "-I", "-S", espeak.__file__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    request = {"text": "a", "voice": "en-us", "rate": 175, "pitch": 50, "pitch_range": 50}
    for _ in range(2):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        header = json.loads(process.stdout.read(int(process.stdout.readline())))
        assert len(process.stdout.read(header["bytes"])) > 0
        process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]  # standard input ends
    assert (process.returncode, error) == (0, b"")


@needs_espeak
def test_an_interrupted_request_does_not_answer_the_next(monkeypatch):
    server = espeak.EspeakServer.current()

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server._process.stdin, "flush", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            server.speak("a", "en-us", 175, 50, 50)
    other = espeak.EspeakServer.current()
    assert other is not server
    assert other.speak("a", "en-us", 175, 50, 50)[2]


@needs_espeak
def test_espeak_symbols_are_known_in_every_language():
    spoken = []
    for language in speech.TRAIN_LANGUAGES + speech.HELDOUT_LANGUAGES:
        own = sentences.SENTENCES[sentences.language_key(language)]
        spoken += synthesize(" ".join(own[:4]), Voice("espeak", language, "m1"), rate=300).phonemes
    assert unknown_share(tuple(spoken)) < 0.01


@needs_espeak
@needs_flite
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_clips_have_their_length_and_ranges_and_repeat(split):
    seconds = 2.03
    for seed in range(3):
        wave, mouth = speech_clip(np.random.default_rng(seed), split, seconds)
        assert wave.shape == (round(seconds * SAMPLE_RATE),) and wave.dtype == np.float32
        assert mouth.shape == (math.ceil(len(wave) / SAMPLE_RATE * 25), len(MOUTH)) and mouth.dtype == np.float32
        assert np.abs(wave).max() <= 1 and mouth.max() <= 1 and mouth.min() >= -1
        assert mouth[:, [OPEN, ROUND, TEETH, TONGUE]].min() >= 0
        assert set(np.unique(mouth[:, CLOSED])) <= {0.0, 1.0}
        assert np.all(mouth[mouth[:, CLOSED] == 1, OPEN] == 0)
        again = speech_clip(np.random.default_rng(seed), split, seconds)
        assert np.array_equal(wave, again[0]) and np.array_equal(mouth, again[1])


@needs_espeak
def test_silent_clips_keep_the_mouth_shut(monkeypatch):
    monkeypatch.setattr("letstalk_core.data.speech.spoken_clips.SILENT_SHARE", 1.0)
    wave, mouth = speech_clip(np.random.default_rng(3), "train", 1.0)
    assert mouth[:, OPEN].max() <= 0.036 and not mouth[:, CLOSED].any()


def test_clip_arguments_are_checked():
    with pytest.raises(ValueError, match="split"):
        speech_clip(np.random.default_rng(0), "test", 1.0)
    with pytest.raises(ValueError, match="seconds"):
        speech_clip(np.random.default_rng(0), "train", 0.0)
