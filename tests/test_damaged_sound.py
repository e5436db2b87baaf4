"""Sound files as people have them: cut, joined, damaged, with odd headers, tags, channels, scales and tracks."""

import re
import struct
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import scipy.io.wavfile
import torch

from letstalk_core.audio.recording import Recording, read_audio
from letstalk_core.errors import InputError
from letstalk_core.video.reader import probe
from letstalk_core.video.writer import VideoWriter
from tests.media_files import tone, write_media

RATE = 16000


def heard(source) -> np.ndarray:
    """What an encoder is given."""
    return torch.cat(list(Recording(source).mono_16k())).numpy()


def quietly(path) -> torch.Tensor:
    """What is read where no note may be."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_audio(path)[0]


# 1: channels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "suffix"), [(8, "flac"), (8, "wav"), (16, "wav"), (24, "wav")])
def test_any_number_of_channels_is_read_and_written(tmp_path, channels, suffix):
    sound = tone(RATE, RATE, channels)
    path = tmp_path / f"a.{suffix}"
    if suffix == "wav":
        scipy.io.wavfile.write(path, RATE, sound.T)
    else:
        write_media(path, sound, RATE)
    read, rate = read_audio(path)
    assert read.shape == (channels, RATE) and rate == RATE
    assert (read - torch.from_numpy(sound)).abs().max() < 1e-3
    for number, source in enumerate((path, (torch.from_numpy(sound), RATE))):
        output = tmp_path / f"{number}.mp4"
        with VideoWriter(output, 16, 16, 25, source) as writer:
            writer.write(np.zeros((25, 16, 16, 3), np.uint8))
        assert probe(output).audio_duration == pytest.approx(1, abs=0.01)
        assert heard(output).std() > 0.03 and len(heard(source)) == RATE


# 2: tags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "gbk"])
def test_tags_in_any_encoding_do_not_matter(tmp_path, encoding):
    title = ("\u00c4pfel und \u00d6l" if encoding == "latin-1" else "\u4f60\u597d\u4e16\u754c").encode(encoding) + b"\0"
    path = write_media(tmp_path / "a.wav", tone(RATE, RATE, 1), RATE)
    title += b"\0" * (len(title) % 2)
    info = b"INFOINAM" + struct.pack("<I", len(title)) + title
    content = path.read_bytes() + b"LIST" + struct.pack("<I", len(info)) + info
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    assert quietly(path).shape == (1, RATE)
    mp3 = write_media(tmp_path / "a.mp3", tone(RATE, RATE, 1), RATE)
    tagged = tmp_path / "tagged.mp3"
    tagged.write_bytes(mp3.read_bytes() + (b"TAG" + title.ljust(125, b"\0")))
    assert torch.equal(quietly(tagged), quietly(mp3))


# 3: headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [(2000000036, 2000000000), (0x7FFFFFFF, 0x7FFFFFDB), (0xFFFFFFFF, 0xFFFFFFFF), (0, 0)]
)
def test_a_stream_of_unknown_length_is_read_to_its_end(tmp_path, sizes):
    path = tmp_path / "a.wav"
    samples = np.round(tone(RATE, RATE, 1)[0] * 32767).astype(np.int16)
    scipy.io.wavfile.write(path, RATE, samples)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[4:8], content[at : at + 4] = struct.pack("<I", sizes[0]), struct.pack("<I", sizes[1])
    path.write_bytes(content)
    assert np.array_equal(np.round(quietly(path)[0].numpy() * 32768), samples)


# 4: what is missing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "webm", "ogg", "mkv"])
def test_of_a_cut_file_the_rest_is_used_and_said(tmp_path, suffix):
    codec = {"webm": "libopus", "mkv": "libmp3lame"}.get(suffix)
    rate = RATE if suffix in ("wav", "flac", "mp3") else 48000
    whole = write_media(tmp_path / f"whole.{suffix}", tone(rate, 3 * rate, 1), rate, codec)
    assert quietly(whole).shape[1] == pytest.approx(3 * rate, abs=2000)
    cut = tmp_path / f"cut.{suffix}"
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) * 6 // 10 + 5])
    with pytest.warns(UserWarning, match="is cut short") as notes:
        read = read_audio(cut)[0]
    assert 0.9 * rate < read.shape[1] < 2.1 * rate and len(notes) == 1


def test_joined_mp3s_are_read_to_the_end(tmp_path):
    parts = [write_media(tmp_path / f"{i}.mp3", tone(44100, 44100 * 2, 1), 44100).read_bytes() for i in (1, 2, 3)]
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(b"".join(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left out of it are headers
        assert read_audio(joined)[0].shape[1] == pytest.approx(6 * 44100, abs=8000)


def test_what_cannot_be_decoded_is_left_out_with_a_note(tmp_path):
    path = write_media(tmp_path / "a.mp3", tone(44100, 44100 * 4, 1), 44100)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1500] = bytes(range(250)) * 6
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        read = read_audio(path)[0]
    assert 3.5 * 44100 < read.shape[1] < 4.05 * 44100
    assert len(notes) == 1 and re.search("cut short or damaged|left out", str(notes[0].message))


def test_strict_ends_where_there_would_be_a_note(tmp_path, capfd):
    from letstalk_core.cli import main
    from tests.tiny import write_tiny_checkpoint

    model = write_tiny_checkpoint(tmp_path / "tiny.safetensors")
    whole = write_media(tmp_path / "whole.wav", tone(RATE, RATE, 1), RATE)
    (tmp_path / "cut.wav").write_bytes(whole.read_bytes()[:20_000])
    picture = tmp_path / "a.png"
    from PIL import Image

    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(picture)
    command = ["generate", "--model", str(model), "--portrait", str(picture), "--audio", str(tmp_path / "cut.wav")]
    output = tmp_path / "out.mp4"
    assert main([*command, "--output", str(output), "--face", "none", "--strict"]) == 1
    assert "is cut short" in capfd.readouterr().err and not output.exists()
    assert main([*command, "--output", str(output), "--face", "none"]) == 0
    assert "note: " in capfd.readouterr().err and output.exists()


# 5: channels that cancel, and the centre ------------------------------------------------------------------------------


def test_channels_that_cancel_are_not_silence():
    voice = tone(RATE, RATE, 1)[0]
    assert np.allclose(heard((torch.from_numpy(np.stack([0.9 * voice, -voice])), RATE)), -voice)
    for other in (np.zeros_like(voice), voice, np.roll(voice, 13)):
        pair = np.stack([voice, other])
        assert np.allclose(heard((torch.from_numpy(pair), RATE)), pair.mean(0), atol=1e-6)


def test_of_surround_sound_the_centre_is_heard():
    voice, music = tone(RATE, RATE, 1)[0], 2 * tone(RATE, RATE, 6)[1]
    channels = np.stack([music, music, voice, np.zeros_like(voice), music, music])
    assert np.array_equal(heard((torch.from_numpy(channels), RATE)), voice)
    channels[2] = 0
    assert np.allclose(heard((torch.from_numpy(channels), RATE)), channels.mean(0), atol=1e-6)


# 7: scale -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_floats_of_whole_numbers_scale_are_scaled(tmp_path, bits):
    sound = tone(RATE, RATE, 1)[0] / 0.3 * 0.9
    scipy.io.wavfile.write(tmp_path / "a.wav", RATE, (sound * 2 ** (bits - 1)).astype(np.float32))
    with pytest.warns(UserWarning, match=f"as {bits}-bit numbers have; it is scaled down"):
        read = read_audio(tmp_path / "a.wav")[0][0].numpy()
    assert np.allclose(read, sound, atol=1e-6)
    scipy.io.wavfile.write(tmp_path / "loud.wav", RATE, 4 * sound)  # floats may go beyond full scale
    assert np.allclose(quietly(tmp_path / "loud.wav")[0].numpy(), 4 * sound)


# 8: tracks ------------------------------------------------------------------------------------------------------------


def test_the_track_that_speaks_is_heard(tmp_path):
    voice, path = tone(48000, 48000, 1), tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("flac", rate=48000, layout="mono") for _ in range(3)]
        for stream, sound in zip(streams, (0 * voice, voice, 0.5 * voice), strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with pytest.warns(UserWarning, match=r"The first of the 3 audio tracks in .* is silent; number 1 is used"):
        assert read_audio(path)[0].abs().max() == pytest.approx(0.3, abs=0.01)
    third = torch.cat([block for block, _ in Recording(path, track=2).blocks()], 1)
    assert third.abs().max() == pytest.approx(0.15, abs=0.01)
    with pytest.raises(InputError, match="has 3 audio tracks; choose 0 to 2, not 3"):
        _ = Recording(path, track=3).samples
