"""Phoneme-timed speech from libespeak-ng, in a small process of its own.

The library keeps oscillator phases and voice settings between calls, so the same text does not give the same samples
twice in one process, and it is not thread safe. `EspeakServer` therefore starts this very file as a program that
imports nothing but the standard library, initialises libespeak-ng once, and forks for every request: each request meets
the freshly initialised library, and equal requests give equal bytes.

Protocol: one JSON line in (text, voice, rate, pitch, pitch_range); out, a line with the number of bytes of a JSON
header, the header (sample_rate, events, bytes, or error), then the samples (int16, native order).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import signal
import subprocess
import sys
import warnings

# Constants of speak_lib.h.
SYNCHRONOUS, PHONEME_EVENTS, IPA_NAMES, DONT_EXIT = 2, 0x1, 0x2, 0x8000
EVENT_NONE, EVENT_PHONEME = 0, 7
RATE, PITCH, PITCH_RANGE = 1, 3, 4
INSTALL_HINT = "apt-get install espeak-ng flite"


class EspeakError(RuntimeError):
    """espeak-ng is missing, does not know the voice, or failed to speak."""


class _Name(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def find_library() -> str | None:
    """Name of the espeak-ng library, or None where it is not installed."""
    for name in ("libespeak-ng.so.1", "libespeak-ng.dylib", ctypes.util.find_library("espeak-ng")):
        if not name:
            continue
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


class Library:
    """libespeak-ng in this process. Use it through `EspeakServer` unless one utterance is all that is needed."""

    def __init__(self) -> None:
        name = find_library()
        if name is None:
            raise EspeakError(f"libespeak-ng was not found; install it, e.g. {INSTALL_HINT}")
        self._lib = ctypes.CDLL(name)
        self._lib.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        options = PHONEME_EVENTS | IPA_NAMES | DONT_EXIT
        self.sample_rate = self._lib.espeak_Initialize(SYNCHRONOUS, 200, None, options)
        if self.sample_rate <= 0:
            raise EspeakError("libespeak-ng could not be initialised; is the package espeak-ng-data installed?")
        self._samples: list[bytes] = []
        self._events: list[tuple[str, int]] = []
        self._callback = _CALLBACK(self._collect)  # kept: the library holds only a bare pointer to it
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count, events) -> int:
        if samples and count > 0:
            self._samples.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type != EVENT_NONE:
            event = events[index]
            if event.type == EVENT_PHONEME:
                name = ctypes.string_at(ctypes.addressof(event.id), 8).split(b"\0")[0]
                self._events.append((name.decode("utf8", "ignore"), event.sample))
            index += 1
        return 0

    def speak(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> tuple[bytes, list]:
        """Speak: (int16 samples as bytes, [(IPA name, first sample), ...]); an empty name is a pause.

        EspeakError where the voice is unknown or the text cannot be spoken.
        """
        self._samples.clear()
        self._events.clear()
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise EspeakError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((RATE, rate), (PITCH, pitch), (PITCH_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        if self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None) != 0:
            raise EspeakError(f"espeak-ng could not speak {text!r}")
        self._lib.espeak_Synchronize()
        return b"".join(self._samples), list(self._events)


class EspeakServer:
    """The child process that speaks. One per process; a forked worker starts its own."""

    _current: EspeakServer | None = None

    def __init__(self) -> None:
        self._owner = os.getpid()
        command = [sys.executable, "-I", "-S", os.path.abspath(__file__)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @classmethod
    def current(cls) -> EspeakServer:
        """The running server of this process, started on first use or when it died. EspeakError without espeak-ng."""
        server = cls._current
        if server is None or server._owner != os.getpid() or server._process.poll() is not None:
            if find_library() is None:
                raise EspeakError(f"libespeak-ng was not found; install it, e.g. {INSTALL_HINT}")
            server = cls._current = cls()
        return server

    def speak(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> tuple[int, bytes, list]:
        """Speak: (sample rate in Hz, int16 samples as bytes, [(IPA name, first sample), ...]). Raises EspeakError."""
        request = {"text": text, "voice": voice, "rate": rate, "pitch": pitch, "pitch_range": pitch_range}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            size = self._process.stdout.readline()
            if not size.strip():
                raise EspeakError(f"espeak-ng died while speaking {text!r} with voice {voice!r}")
            header = json.loads(self._process.stdout.read(int(size)))
            samples = self._process.stdout.read(header.get("bytes", 0))
        except BaseException:
            self._process.kill()  # interrupted half way: the rest of this answer must not be taken for the next one
            self._process.wait()
            raise
        if "error" in header:
            raise EspeakError(header["error"])
        return header["sample_rate"], samples, header["events"]


def _answer(library: Library, line: bytes) -> None:
    try:
        samples, events = library.speak(**json.loads(line))
        header = {"sample_rate": library.sample_rate, "events": events, "bytes": len(samples)}
    except EspeakError as error:
        samples, header = b"", {"error": str(error)}
    encoded = json.dumps(header).encode()
    sys.stdout.buffer.write(b"%d\n" % len(encoded) + encoded + samples)
    sys.stdout.buffer.flush()


def serve() -> None:
    """Answer requests until standard input ends, whatever Ctrl-C does to the program that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Python 3.12 warns of a fork beside threads: libespeak-ng has one of its own, which the child does not need.
    warnings.simplefilter("ignore", DeprecationWarning)
    library = Library()
    while line := sys.stdin.buffer.readline():
        child = os.fork()
        if child == 0:
            try:
                _answer(library, line)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    serve()
