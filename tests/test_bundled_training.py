"""The whole way to the bundled model, with so few steps that nothing is learned, and another ear for a finished one."""

import functools
import re

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The whole way from nothing to a checkpoint, with so few steps that nothing is learned."""
    from letstalk_core.data.speech.synthesis import available_engines

    if "espeak" not in available_engines():
        pytest.skip("espeak-ng is not installed")
    from letstalk_core.training.bundled.train_avatar import train_avatar

    work = tmp_path_factory.mktemp("avatar")
    options = dict(autoencoder_steps=2, transformer_steps=2, people=2, clips=2, speech_clips=2, audio_steps=2)
    with pytest.MonkeyPatch.context() as patch:  # Kokoro takes seconds for a sentence
        patch.setattr("letstalk_core.data.speech.spoken_clips.NEURAL_SHARES", {"hibari": 0.6})
        return train_avatar(work, work / "model.safetensors", **options), work


@pytest.mark.slow
def test_the_bundled_training_gives_a_loadable_checkpoint(trained):
    from letstalk_core.pipeline import LetsTalkPipeline

    path, _ = trained
    assert path.stat().st_size < 25_000_000
    pipeline = LetsTalkPipeline.load(path, "cpu")
    latents = pipeline.autoencoder.encode(torch.rand(1, 3, 128, 128) * 2 - 1)
    assert latents.shape == (1, 32, 8, 8)


@pytest.mark.slow
def test_the_bundled_training_can_start_from_a_model(trained, tmp_path):
    """Its autoencoder stays as it is, its transformer learns on."""
    from letstalk_core.training.bundled.train_avatar import train_avatar

    path, work = trained
    (tmp_path / "clips").symlink_to(work / "clips")
    options = dict(autoencoder_steps=0, transformer_steps=2, people=0, clips=2, speech_clips=0, audio_steps=0)
    tuned = train_avatar(tmp_path, tmp_path / "tuned.safetensors", start=path, **options)
    before, after = load_file(path), load_file(tuned)
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"transformer", "audio_projection"}
    fixed = re.compile(r"audio_projection\.window\.")
    assert all(torch.equal(before[key], after[key]) for key in before if fixed.match(key))


@pytest.mark.slow
def test_a_model_can_get_another_ear(trained, tmp_path, monkeypatch):
    """Its audio projection is a new one; without steps its transformer stays."""
    from letstalk_core.training.bundled import known_tokens, train_projection
    from letstalk_core.training.bundled.train_avatar import train_avatar

    path, work = trained
    for name in ("clips", "audio/utterances"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(work / name)
    monkeypatch.setattr("letstalk_core.data.speech.spoken_clips.NEURAL_SHARES", {"hibari": 0.6})
    monkeypatch.setattr(
        train_projection, "learn_tokens", functools.partial(known_tokens.learn_tokens, clips=2, steps=3)
    )
    options = dict(autoencoder_steps=0, transformer_steps=0, people=0, clips=0, speech_clips=2, audio_steps=2)
    tuned = train_avatar(tmp_path, tmp_path / "tuned.safetensors", start=path, **options)
    before, after = load_file(path), load_file(tuned)
    assert before.keys() == after.keys()
    assert {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])} == {"audio_projection"}
    assert not torch.equal(
        before["audio_projection.window.first.weight"], after["audio_projection.window.first.weight"]
    )


@pytest.mark.slow
def test_tokens_are_learnt_by_the_mouth():
    from letstalk_core.config import LetsTalkConfig
    from letstalk_core.data.speech.synthesis import available_engines
    from letstalk_core.model.audio_projection import AudioProjection
    from letstalk_core.training.bundled.known_tokens import learn_tokens

    if "espeak" not in available_engines():
        pytest.skip("espeak-ng is not installed")
    audio = dict(audio_encoder="mel", audio_tokens=2, audio_width=8, audio_hidden=16, audio_blocks=4, audio_channels=80)
    torch.manual_seed(0)
    projection = AudioProjection(LetsTalkConfig().with_changes(**audio))
    known = learn_tokens(projection, clips=6, steps=300)
    mouths = torch.rand(3, 40, 5)
    windows = known.windows(mouths)
    assert windows.shape == (3, 36, 5, 5) and torch.equal(windows[1, 7], mouths[1, 7:12])
    assert known(windows).shape == (3, 36, 2, 8)
    # Speech tells its mouths' tokens from those of others: a mouth of silence is not one of an open vowel.
    silent, wide = torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)
    wide[..., 0] = 0.9
    apart = ((known(silent) - known(wide)) / known.deviation).square().mean()
    assert apart > 0.3 and not known.layers[0].weight.requires_grad
