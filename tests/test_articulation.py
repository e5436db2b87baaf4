"""How far sound moves the mouth: audio tokens, drawn away from those of silence or towards them."""

import math

import pytest
import torch

from letstalk_core.audio.recording import SAMPLE_RATE, Recording
from letstalk_core.cli import main
from letstalk_core.errors import InputError
from letstalk_core.files import ASSETS
from letstalk_core.model.checkpoint import load_checkpoint
from letstalk_core.picture.picture_file import read_image
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.video.clips import ClipSampler, SamplingSettings, articulated

from .tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return LetsTalkPipeline.load(checkpoint, "cpu", "fp32")


def sampler(pipeline, features, articulation=1.0):
    channels, side = pipeline.config.transformer.latent_channels, 64 // pipeline.autoencoder.downscale
    portrait = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(3))
    return ClipSampler(pipeline.model, portrait, features, SamplingSettings(articulation=articulation))


def tokens(pipeline, features, articulation=1.0):
    with torch.inference_mode():
        return sampler(pipeline, features, articulation)._audio_tokens(0, len(features))


def latents(pipeline, features, articulation=1.0):
    return torch.cat([clip.latents for clip in sampler(pipeline, features, articulation).clips()])


@pytest.fixture(scope="module")
def spoken(pipeline):
    stream = pipeline.stream_audio(Recording(ASSETS / "speech.wav"))
    return stream[40:54]


def test_it_is_how_far_tokens_go_from_those_of_silence(pipeline, spoken):
    audio = pipeline.config.audio
    rest, half, once, twice = (tokens(pipeline, spoken, articulation) for articulation in (0, 0.5, 1, 2))
    assert torch.equal(once, tokens(pipeline, spoken))  # by default
    assert torch.equal(rest[:, :, : audio.tokens], rest[:, :1, : audio.tokens].expand_as(rest[:, :, : audio.tokens]))
    torch.testing.assert_close(once - half, half - rest)
    assert (once - rest)[:, :, : audio.tokens].abs().max() > 0.1
    assert torch.equal(rest[:, :, audio.tokens :], twice[:, :, audio.tokens :])  # what is asked for beside the sound


@pytest.mark.parametrize("articulation", [1.5, 2.5, 3.0])
def test_above_1_what_is_near_to_silence_goes_further_and_what_is_far_stays(articulation):
    silent = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    away = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(1))
    away = away * silent.norm() / away.norm()
    distances = torch.tensor([0.0, 0.01, 0.1, 0.5, 1.0, 1.3, 2.0, 4.0])
    made = articulated(silent + distances[None, :, None, None] * away, silent, articulation) - silent
    further = made.flatten(2).norm(dim=-1)[0] / silent.norm()
    torch.testing.assert_close(further[1] / distances[1], torch.tensor(articulation), rtol=1e-3, atol=0)
    torch.testing.assert_close(further[-1], distances[-1], rtol=1e-3, atol=0)
    assert (further.diff() > 0).all() and (further >= distances).all()  # in their order


def test_silence_is_silence_at_any(pipeline):
    silence = pipeline.encode_audio(torch.zeros(1, SAMPLE_RATE), SAMPLE_RATE)[8:17]
    torch.testing.assert_close(latents(pipeline, silence, 2.0), latents(pipeline, silence, 1.0), rtol=0, atol=1e-4)


def test_the_bundled_models_mouth_goes_further():
    pipeline = LetsTalkPipeline.load(device="cpu")
    portrait = pipeline.encode_portrait(pipeline.crop(read_image(ASSETS / "portrait.jpg")))
    features = pipeline.stream_audio(Recording(ASSETS / "speech.wav"))[0:32]
    made = {}
    for articulation in (0.0, 1.0, 2.5):
        clips = ClipSampler(pipeline.model, portrait, features, SamplingSettings(articulation=articulation)).clips()
        made[articulation] = torch.cat([clip.latents for clip in clips])
    as_trained, further = ((made[articulation] - made[0.0]).abs().mean() for articulation in (1.0, 2.5))
    assert further > 1.02 * as_trained


@pytest.mark.parametrize("articulation", [-0.1, 3.1, math.nan])
def test_what_is_out_of_range_is_said(articulation):
    with pytest.raises(InputError, match=r"The articulation is .*; choose one between 0 and 3 \(1 is as trained\)"):
        SamplingSettings(articulation=articulation)


def test_a_model_alone_does_not_know_silence(checkpoint, pipeline, spoken):
    model = load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="needs model.hear_silence, which a pipeline fills in"):
        ClipSampler(model, torch.zeros(1, 4, 4, 4), spoken, SamplingSettings(articulation=1.2))


def test_the_command_line(checkpoint, tmp_path, capsys):
    command = ["demo", "--model", str(checkpoint), "--max-seconds", "0.2", "--output"]
    for name, articulation in (("a.mp4", []), ("b.mp4", ["--articulation", "1"]), ("c.mp4", ["--articulation", "2"])):
        assert main([*command, str(tmp_path / name), *articulation]) == 0
    one, same, other = ((tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert one == same != other
    capsys.readouterr()
    assert main([*command, str(tmp_path / "d.mp4"), "--articulation", "5"]) == 1
    assert capsys.readouterr().err.startswith("letstalk: The articulation is 5.0; choose one between 0 and 3")
