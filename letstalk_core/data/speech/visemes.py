"""The mouth that speaks phonemes: targets per sound, blended in time the way speakers blend them.

A mouth is six numbers, `MOUTH`:
open    0..1   distance of the lips;
width  -1..1   corners drawn together (u, o, w) .. spread (i, e);
round   0..1   pucker (u, o, w; partly sh, ch);
teeth   0..1   upper teeth to be seen (f and v: almost alone; s and z: both rows close);
tongue  0..1   tongue to be seen behind or between the teeth (th, l, n, d);
closed  0 or 1 the frame's centre lies inside an m, b or p: the lips touch, and open is exactly 0. In pauses the lips
               rest together too, but `closed` stays 0.

Blending follows the dominance functions of Cohen and Massaro (1993): every sound pulls each number towards its target
with a strength of its own and a pull that fades around it; rounding begins early. The jaw follows with inertia, so that
fast speech undershoots. Closures then override the blend.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np

from .synthesis import PAUSE, RELEASE, SAMPLE_RATE, Speech

MOUTH = ("open", "width", "round", "teeth", "tongue", "closed", "tuck")
STEP = 200  # Hz, the internal time grid

# open, width, round, teeth, tongue
VOWELS = {
    **{"i": (0.30, 0.80, 0.00, 0.45, 0.1), "y": (0.24, -0.60, 0.90, 0.05, 0.1), "ɨ": (0.30, 0.40, 0.00, 0.35, 0.1)},
    "ᵻ": (0.34, 0.45, 0.00, 0.35, 0.1),  # espeak-ng's weak vowel, between ɪ and ə
    **{"ʉ": (0.25, -0.55, 0.75, 0.05, 0.1), "ɯ": (0.30, 0.30, 0.00, 0.30, 0.0), "u": (0.24, -0.85, 1.00, 0.00, 0.0)},
    **{"ɪ": (0.36, 0.55, 0.00, 0.40, 0.1), "ʏ": (0.30, -0.45, 0.70, 0.05, 0.1), "ʊ": (0.32, -0.55, 0.70, 0.05, 0.0)},
    **{"e": (0.45, 0.60, 0.00, 0.40, 0.1), "ø": (0.38, -0.50, 0.75, 0.05, 0.1), "ɘ": (0.45, 0.25, 0.00, 0.30, 0.0)},
    **{"ɵ": (0.40, -0.40, 0.50, 0.10, 0.0), "ɤ": (0.45, 0.10, 0.05, 0.25, 0.0), "o": (0.48, -0.65, 0.80, 0.02, 0.0)},
    **{"ə": (0.42, 0.10, 0.05, 0.25, 0.0), "ɛ": (0.60, 0.45, 0.00, 0.35, 0.1), "œ": (0.52, -0.35, 0.55, 0.10, 0.0)},
    **{"ɜ": (0.48, 0.05, 0.15, 0.20, 0.0), "ɞ": (0.52, -0.20, 0.35, 0.15, 0.0), "ʌ": (0.62, 0.05, 0.05, 0.25, 0.0)},
    **{"ɔ": (0.65, -0.45, 0.60, 0.05, 0.0), "æ": (0.80, 0.40, 0.00, 0.35, 0.1), "ɐ": (0.70, 0.10, 0.00, 0.28, 0.0)},
    **{"a": (0.90, 0.15, 0.00, 0.30, 0.1), "ɶ": (0.80, -0.10, 0.30, 0.20, 0.0), "ɑ": (0.95, 0.00, 0.02, 0.25, 0.0)},
    **{"ɒ": (0.80, -0.30, 0.45, 0.10, 0.0), "ɚ": (0.42, -0.10, 0.30, 0.15, 0.1), "ɝ": (0.45, -0.15, 0.35, 0.15, 0.1)},
}
CONSONANTS = {
    **dict.fromkeys("pbmʙ", (0.00, 0.00, 0.05, 0.00, 0.0)),
    **dict.fromkeys("ɸβ", (0.10, 0.00, 0.20, 0.05, 0.0)),
    **dict.fromkeys("fvɱ", (0.12, 0.10, 0.00, 0.95, 0.0)),
    "ʋ": (0.16, 0.05, 0.10, 0.75, 0.0),
    **dict.fromkeys("θð", (0.26, 0.15, 0.00, 0.60, 1.0)),
    **dict.fromkeys("sz", (0.16, 0.40, 0.00, 0.90, 0.1)),
    **dict.fromkeys("ʃʒ", (0.22, -0.35, 0.60, 0.80, 0.1)),
    **dict.fromkeys("ʂʐ", (0.22, -0.20, 0.40, 0.75, 0.1)),
    **dict.fromkeys("ɕʑ", (0.20, 0.15, 0.15, 0.80, 0.1)),
    **dict.fromkeys("tdn", (0.22, 0.15, 0.00, 0.50, 0.45)),
    **dict.fromkeys("ʈɖɳ", (0.24, 0.05, 0.05, 0.45, 0.35)),
    **dict.fromkeys("lɫɬɮ", (0.34, 0.10, 0.00, 0.35, 0.85)),
    "ɭ": (0.34, 0.00, 0.05, 0.30, 0.7),
    **dict.fromkeys("rɾɽ", (0.30, 0.05, 0.05, 0.40, 0.5)),
    **dict.fromkeys("ɹɻ", (0.28, -0.35, 0.50, 0.25, 0.2)),
    "j": (0.28, 0.60, 0.00, 0.40, 0.1),
    **dict.fromkeys("wʍ", (0.14, -0.90, 1.00, 0.00, 0.0)),
    "ɥ": (0.18, -0.70, 0.95, 0.02, 0.1),
    **dict.fromkeys("ɲʎcɟ", (0.28, 0.35, 0.00, 0.40, 0.3)),
    **dict.fromkeys("çʝ", (0.26, 0.40, 0.00, 0.50, 0.1)),
    **dict.fromkeys("kɡgŋxɣɰ", (0.32, 0.10, 0.00, 0.25, 0.1)),
    **dict.fromkeys("qɢɴχʁʀħʕ", (0.40, 0.05, 0.00, 0.20, 0.0)),
    **dict.fromkeys("hɦʔ", (0.40, 0.05, 0.00, 0.25, 0.0)),
}
NEUTRAL = (0.35, 0.05, 0.05, 0.25, 0.0)
REST = (0.00, 0.00, 0.05, 0.00, 0.0)

# How strongly a sound holds to its target, for the same five numbers; 1 is a vowel.
VOWEL_PULL = (1.0, 1.0, 1.0, 0.8, 0.4)
PULLS = {
    **dict.fromkeys("pbmʙ", (3.0, 0.3, 0.2, 3.0, 2.0)),
    **dict.fromkeys("ɸβfvɱʋ", (3.5, 0.7, 0.6, 4.0, 1.0)),
    **dict.fromkeys("θð", (1.6, 0.4, 0.3, 2.0, 4.0)),
    **dict.fromkeys("szɕʑ", (2.5, 0.6, 0.4, 2.5, 1.0)),
    **dict.fromkeys("ʃʒʂʐ", (2.2, 1.0, 1.1, 2.5, 1.0)),
    **dict.fromkeys("tdnʈɖɳ", (1.2, 0.3, 0.2, 1.0, 1.5)),
    **dict.fromkeys("lɫɬɮɭrɾɽ", (0.7, 0.3, 0.2, 0.6, 2.0)),
    **dict.fromkeys("ɹɻ", (0.9, 0.7, 0.7, 0.6, 0.6)),
    **dict.fromkeys("jɥ", (1.2, 1.2, 1.0, 0.6, 0.4)),
    **dict.fromkeys("wʍ", (2.5, 2.5, 2.5, 1.0, 0.5)),
    **dict.fromkeys("ɲʎcɟçʝ", (0.8, 0.5, 0.3, 0.6, 0.6)),
    **dict.fromkeys("kɡgŋxɣɰqɢɴχʁʀħʕ", (0.5, 0.2, 0.15, 0.4, 0.4)),
    **dict.fromkeys("hɦʔ", (0.08, 0.05, 0.05, 0.05, 0.05)),
}
RELEASE_PULL = (0.15, 0.05, 0.05, 0.05, 0.05)
REST_PULL = (2.0, 0.8, 0.8, 1.5, 0.8)

BILABIALS, LABIODENTALS = frozenset("pbmʙ"), frozenset("fvɱʋ")
LABIALISED, PALATALISED = "ʷᵝ", "ʲ"
IGNORED = frozenset("ˈˌːˑ.|‖-_'’^~ʼʰʱˠˤˀ˞ⁿˡ˥˦˧˨˩0123456789;:\"*!?`#@, ")


@dataclass(frozen=True)
class Style:
    """How one person speaks, the same for a whole clip."""

    opening: float = 1.0  # factor on open
    width: float = 1.0  # factor on width and round
    rest: float = 0.01  # gap of the lips in pauses, 0..0.03
    phase: float = 0.0  # where the slow change of that gap begins, radians

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """A random speaker."""
        return Style(
            float(rng.uniform(0.75, 1.15)),
            float(rng.uniform(0.8, 1.1)),
            float(rng.uniform(0.0, 0.02)),
            float(rng.uniform(0.0, 2 * np.pi)),
        )


@dataclass(frozen=True)
class Segment:
    """One target in time: times in seconds, target and pull of five numbers each."""

    start: float
    end: float
    target: tuple[float, ...]
    pull: tuple[float, ...]


def parse_symbol(symbol: str) -> tuple[list[str], list[str]]:
    """Split an IPA symbol: (letters that have a target, in order, modifiers kept; letters nothing is known about)."""
    known: list[str] = []
    unknown: list[str] = []
    for letter in unicodedata.normalize("NFD", symbol):
        if letter in VOWELS or letter in CONSONANTS:
            known.append(letter)
        elif letter in LABIALISED + PALATALISED and known:
            known[-1] += letter
        elif letter in LABIALISED + PALATALISED:  # alone: the release of such a stop
            known.append("j" if letter == PALATALISED else "w")
        elif letter not in IGNORED and not unicodedata.combining(letter):
            unknown.append(letter)
    if len(known) > 1 and known[-1] == "h":  # espeak-ng writes some aspirated stops "ph"
        known.pop()
    return known, unknown


def _target(letter: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(target, pull) of a letter with its modifiers, five numbers each."""
    base = letter[0]
    target = VOWELS.get(base) or CONSONANTS[base]
    pull = VOWEL_PULL if base in VOWELS else PULLS[base]
    if any(mark in letter for mark in LABIALISED):
        target = (target[0], target[1] - 0.5, max(target[2], 0.7), *target[3:])
        pull = (pull[0], max(pull[1], 1.0), max(pull[2], 1.0), *pull[3:])
    if PALATALISED in letter:
        target = (target[0], min(target[1] + 0.3, 1.0), *target[2:])
        pull = (pull[0], max(pull[1], 0.5), *pull[2:])
    return target, pull


def segments(phonemes: tuple[tuple[str, float, float], ...]) -> list[Segment]:
    """Phonemes (IPA, start, end) as targets in time: one for a plain sound, one for each part of a diphthong, an
    affricate or a syllabic pair, in equal shares. Unknown symbols become a neutral mouth."""
    result = []
    for symbol, start, end in phonemes:
        letters, _ = parse_symbol(symbol)
        if symbol == PAUSE:
            result.append(Segment(start, end, REST, REST_PULL))
        elif not letters:
            pull = RELEASE_PULL if symbol == RELEASE else (0.5,) * 5
            result.append(Segment(start, end, NEUTRAL, pull))
        share = (end - start) / max(len(letters), 1)
        for index, letter in enumerate(letters):
            begin = start + index * share
            result.append(Segment(begin, begin + share, *_target(letter)))
    return result


def times_of(sounds: frozenset[str], phonemes: tuple[tuple[str, float, float], ...]) -> list[tuple[float, float]]:
    """(start, end) in seconds of every one of some sounds."""
    found: list[tuple[float, float]] = []
    for symbol, start, end in phonemes:
        letters, _ = parse_symbol(symbol)
        for index, letter in enumerate(letters):
            if letter[0] in sounds:
                share = (end - start) / len(letters)
                found.append((start + index * share, start + (index + 1) * share))
    return found


# Seconds that lips take to close and open around an m, b or p. Seen in videos of five people: the dip is 0.2 s wide.
CLOSING_S, OPENING_S = 0.09, 0.09
TUCKING_S = 0.06  # seconds that a lower lip takes to come under the teeth, or from there
JAW_TAPS, LIP_TAPS = 37, 9  # of the Hann averages at STEP: a jaw has inertia (0.09 s), lips and tongue hardly any
PAUSE_CLOSING_S, PAUSE_OPENING_S = 0.15, 0.12  # the same for pauses
MARGIN_S = 0.1  # seconds computed around the asked-for frames, for the filters
FAR_S = 10.0  # seconds of silence before the first and after the last phoneme


def _ease(distance: np.ndarray, length: float) -> np.ndarray:
    """0 at distance 0, 1 from `length` on, with zero slope at both ends."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(distance / length, 0.0, 1.0))


def _smooth(values: np.ndarray, taps: int) -> np.ndarray:
    """Hann average along the first axis, ends repeated."""
    window = np.hanning(taps + 2)[1:-1]
    padded = np.pad(values, [(taps // 2, taps // 2)] + [(0, 0)] * (values.ndim - 1), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=0)
    return windows @ (window / window.sum())


def _blend(parts: list[Segment], times: np.ndarray) -> np.ndarray:
    """Dominance blend of the targets at `times` [T] -> [T, 5]."""
    start = np.array([part.start for part in parts])
    end = np.array([part.end for part in parts])
    target = np.array([part.target for part in parts])
    pull = np.array([part.pull for part in parts])
    length = end - start
    resting = np.all(target == np.array(REST), axis=1)
    margin = np.minimum(0.4 * length, np.where(resting, 0.09, 0.04))
    before = np.maximum(start + margin - times[:, None], 0.0)
    after = np.maximum(times[:, None] - (end - margin), 0.0)
    spread = np.clip(0.45 * length, 0.025, 0.06)
    dominance = np.exp(-0.5 * ((before + after) / spread) ** 2) + 1e-12
    # Lips round early (some 100 ms) and let go late.
    rounding, lips = dominance.copy(), target[:, 2] > 0.4
    early, late = np.maximum(spread[lips], 0.085), np.maximum(spread[lips], 0.05)
    rounding[:, lips] = np.exp(-0.5 * ((before[:, lips] / early) ** 2 + (after[:, lips] / late) ** 2)) + 1e-12
    blended = (dominance @ (pull * target)) / (dominance @ pull)
    blended[:, 1:3] = (rounding @ (pull * target)[:, 1:3]) / (rounding @ pull[:, 1:3])
    return blended


def _pause_gate(phonemes: tuple, times: np.ndarray) -> np.ndarray:
    """1 while speaking, easing to 0 within 150 ms in pauses and back to 1 as speech begins; [T]."""
    gate = np.ones_like(times)
    spans: list[list[float]] = []
    for symbol, start, end in phonemes:
        if symbol == PAUSE and spans and start - spans[-1][1] < 1e-3:
            spans[-1][1] = end
        elif symbol == PAUSE:
            spans.append([start, end])
    for start, end in spans:
        inside = (times >= start) & (times <= end)
        closing = 1.0 - _ease(times[inside] - start, PAUSE_CLOSING_S)
        opening = 1.0 - _ease(end - times[inside], PAUSE_OPENING_S)
        gate[inside] = np.maximum(closing, opening)
    return gate


def _loudness_factor(waveform: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Factor 0.75..1.1 on the opening at `times` [T], from the level beside the clip's own loud parts."""
    hop = SAMPLE_RATE // STEP
    count = len(waveform) // hop
    if count < 2:
        return np.ones_like(times)
    power = np.mean(waveform[: count * hop].reshape(count, hop).astype(np.float64) ** 2, axis=1)
    level = 10.0 * np.log10(_smooth(power, 13) + 1e-9)
    audible = level[level > -60.0]
    if not len(audible):
        return np.ones_like(times)
    factor = np.interp(level - np.percentile(audible, 90), (-25.0, 0.0, 6.0), (0.75, 1.0, 1.1))
    return np.interp(times, (np.arange(count) + 0.5) / STEP, _smooth(factor, 21))


def mouth_track(speech: Speech, frames: int, fps: float = 25.0, style: Style | None = None) -> np.ndarray:
    """The mouth at the centre of every frame, float32 [frames, 7], columns `MOUTH`.

    Frame i shows the time (i + 0.5) / fps seconds. Frames past the end of the speech rest. A closure too short to hold
    a frame's centre still brings the nearest frame's opening to 0.04 at most, with `closed` 0.
    """
    if frames < 1 or fps <= 0:
        raise ValueError(f"frames and fps must be positive, got {frames} and {fps}")
    style = style or Style()
    centres = (np.arange(frames) + 0.5) / fps
    times = np.arange(-MARGIN_S, frames / fps + MARGIN_S, 1.0 / STEP)
    first = speech.phonemes[0][1] if speech.phonemes else 0.0
    last = speech.phonemes[-1][2] if speech.phonemes else 0.0
    phonemes = ((PAUSE, first - FAR_S, first), *speech.phonemes, (PAUSE, last, max(last, times[-1]) + FAR_S))

    curve = _blend(segments(phonemes), times)
    curve = np.concatenate([_smooth(curve[:, :1], JAW_TAPS), _smooth(curve[:, 1:], LIP_TAPS)], axis=1)
    curve[:, 0] *= style.opening * _loudness_factor(speech.waveform, times)
    curve[:, 1:3] *= style.width
    gate = _pause_gate(phonemes, times)
    rest = style.rest + 0.008 * (1.0 + np.sin(1.3 * times + style.phase)) * (style.rest > 0)
    curve[:, 0] = curve[:, 0] * gate + rest * (1.0 - gate)
    shut = times_of(BILABIALS, speech.phonemes)  # the lips touch
    for start, end in shut:
        outside = np.maximum(start - times, 0.0), np.maximum(times - end, 0.0)
        curve[:, 0] *= np.minimum(_ease(outside[0], CLOSING_S) + (outside[1] > 0), 1.0)
        curve[:, 0] *= np.minimum(_ease(outside[1], OPENING_S) + (outside[0] > 0), 1.0)
    curve = _smooth(curve, 5)

    track = np.zeros((frames, len(MOUTH)))
    for column in range(5):
        track[:, column] = np.interp(centres, times, curve[:, column])
    for start, end in shut:
        nearest = int(np.clip(np.floor(0.5 * (start + end) * fps), 0, frames - 1))
        if abs(centres[nearest] - 0.5 * (start + end)) <= 0.5 / fps + 1e-9:
            track[nearest, 0] = min(track[nearest, 0], 0.04)
        inside = (centres >= start) & (centres < end)
        track[inside, 0] = 0.0
        track[inside, 5] = 1.0
    track[:, 3:5] *= _ease(track[:, :1], 0.08)  # nothing shows between closed lips
    for start, end in times_of(LABIODENTALS, speech.phonemes):
        away = np.maximum(np.maximum(start - centres, centres - end), 0.0)
        track[:, 6] = np.maximum(track[:, 6], 1.0 - _ease(away, TUCKING_S))
    low, high = np.array((0, -1, 0, 0, 0, 0, 0)), np.ones(7)
    return np.clip(track, low, high).astype(np.float32)
