"""The whole way to the bundled model, with so little of everything that nothing is learned."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from letstalk_core.audio.load_encoder import load_audio_encoder
from letstalk_core.cli import main
from letstalk_core.data.speech.packed import PackedSpeech, mel_of, pack, picture_of
from letstalk_core.data.speech.pairs import PackedPairs
from letstalk_core.errors import InputError
from letstalk_core.model.audio_projection import AudioProjection
from letstalk_core.model.checkpoint import LetsTalkModel, save_checkpoint
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.presets import PRESETS
from letstalk_core.training.bundled.train_ear import MouthReader, reading_accuracy
from letstalk_core.training.bundled.train_portraits import SHARES, SHARES_ON

OPTIONS = ["--minutes", "0.05", "--puppets", "2", "--speaking", "1", "--batch", "2", "--device", "cpu"]
# What the machines that training is lent may lack.
MISSING = (
    "accelerate", "diffusers", "av", "torchaudio", "torchmetrics", "webdataset", "onnxruntime", "onnx", "wordfreq",
    "peft", "PIL", "scipy", "transformers",
)  # fmt: skip


def sound(seed: int) -> np.ndarray:
    """Eight seconds of noise that comes and goes."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(128_000) * 0.1 * np.sin(np.arange(128_000) / 5000) ** 2).astype(np.float32)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A packed file of three clips."""
    path, encoder = tmp_path_factory.mktemp("speech") / "speech.npz", load_audio_encoder("whisper")
    mouths = np.random.default_rng(0).uniform(-1, 1, (3, 200, 7)).astype(np.float32)
    pack(path, [(picture_of(mel_of(sound(i), encoder, 25)), mouth) for i, mouth in enumerate(mouths)], 25)
    return path, mouths


def test_packed_speech_is_heard_as_the_recording_is(speech, tmp_path):
    path, mouths = speech
    encoder, packed = load_audio_encoder("whisper"), PackedSpeech(path)
    assert packed.count == 3 and packed.frames == 200 and packed.fps == 25
    for i in range(3):
        heard, own = packed.features(i, encoder), encoder.encode(torch.from_numpy(sound(i)), 16000)
        assert heard.shape == own.shape
        assert (heard - own).square().mean() < 0.1 * own.square().mean()  # noise is the worst for a JPEG
        assert np.abs(packed.mouth(i) - mouths[i]).max() < 0.005
    pairs = PackedPairs(tmp_path / "pairs", path, "whisper").make()
    assert np.allclose(pairs.features[2], packed.features(2, encoder).half(), atol=1e-2) and pairs.count == 3


def test_another_file_is_no_packed_speech(tmp_path):
    np.savez(tmp_path / "other.npz", ends=np.zeros(3))
    (tmp_path / "text.npz").write_text("no")
    for path in (tmp_path / "other.npz", tmp_path / "text.npz", tmp_path / "none.npz"):
        with pytest.raises(InputError, match="is not a file of packed speech"):
            PackedSpeech(path)


def test_a_trained_ear_is_gone_on_with_as_well_as_it_was():
    config = PRESETS["bundled"]
    torch.manual_seed(1)
    known, seen = AudioProjection(config).eval(), MouthReader(config).eval()
    pairs = SimpleNamespace(features=np.random.default_rng(1).standard_normal((12, 60, 2, 768)).astype(np.float16))
    seen.projection = known
    reach = config.audio.window // 2
    with torch.no_grad():
        mouths = seen.along(torch.from_numpy(pairs.features).float())
    pairs.mouths = nn.functional.pad(mouths, (0, 2, reach, reach)).numpy()
    reader = MouthReader(config).eval()
    reader.go_on_from(known, pairs)
    assert all(torch.equal(value, known.state_dict()[name]) for name, value in reader.projection.state_dict().items())
    accuracy = reading_accuracy(reader, pairs, 0)
    assert min(accuracy) > 0.95, accuracy
    assert max(reading_accuracy(MouthReader(config).eval(), pairs, 0)) < 0.9


@pytest.mark.slow
def test_everything_from_nothing_with_one_command(speech, tmp_path, capsys):
    """With torch, numpy, opencv, safetensors, einops and tqdm alone; then its ear and transformer learn on."""
    path, work = speech[0], tmp_path / "work"
    command = ["train-portraits", *OPTIONS, "--speech", str(path)]
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    given = [*command, "--work", str(work), "--output", str(first)]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({MISSING!r})); "
        f"from letstalk_core.cli import main; sys.exit(main({given!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    pipeline = LetsTalkPipeline.load(first, "cpu")
    assert pipeline.autoencoder.encode(torch.rand(1, 3, 256, 256) * 2 - 1).shape == (1, 32, 8, 8)
    assert first.stat().st_size < 40_000_000
    for part, share in SHARES.items():
        lines = [json.loads(line) for line in (work / part / "log.jsonl").read_text().splitlines()]
        assert np.isfinite(lines[-1]["loss"]) and lines[-1]["seconds"] > share * 3 - 0.1  # all of its time
    assert main([*command, "--work", str(tmp_path / "on"), "--output", str(second), "--start", str(first)]) != 0
    assert "teacher.safetensors is missing: it lies beside the autoencoder" in capsys.readouterr().err
    shutil.copy(work / "autoencoder.safetensors", tmp_path / "on")
    assert main([*command, "--work", str(tmp_path / "on"), "--output", str(second)]) != 0
    assert "teacher.safetensors is missing: it lies beside the autoencoder" in capsys.readouterr().err
    save_checkpoint(tmp_path / "tiny.safetensors", LetsTalkModel(PRESETS["tiny"]))
    other = ["--work", str(work), "--output", str(second), "--start", str(tmp_path / "tiny.safetensors")]
    assert main([*command, *other]) != 0
    assert "tiny.safetensors is not such a model as train-portraits writes" in capsys.readouterr().err
    assert main([*command, "--work", str(work), "--output", str(second), "--start", str(first)]) == 0
    before, after = load_file(first), load_file(second)
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"transformer", "audio_projection"}
    for part, share in SHARES_ON.items():
        lines = [json.loads(line) for line in (work / "from-first" / part / "log.jsonl").read_text().splitlines()]
        assert np.isfinite(lines[-1]["loss"]) and lines[-1]["seconds"] > share * 3 - 0.1
    heard = LetsTalkPipeline.load(second, "cpu").model.audio_projection.window.state_dict()
    learnt = torch.load(work / "from-first" / "ear" / "state.pt", map_location="cpu", weights_only=True)["average"]
    for name, value in heard.items():  # the transformer's training leaves alone what the ear's learnt
        assert torch.equal(value.half(), learnt[f"projection.window.{name}"].half())
