"""Beginning a training from another model: what fits is taken bit for bit, the rest stays as it was."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from letstalk_core.errors import CheckpointError
from letstalk_core.model.checkpoint import BundledAutoencoder, LetsTalkModel, load_checkpoint, save_checkpoint
from letstalk_core.model.official import read_official
from letstalk_core.presets import PRESETS
from letstalk_core.training.initialise import initialise_from

TINY = PRESETS["tiny"].with_changes(width=32, heads=2, audio_width=16)
OPTIONS = dict(num_heads=4, audio_blocks=3)


def new_model(seed=1, **changes) -> LetsTalkModel:
    """An untrained model whose every number is drawn, also those that begin as zero."""
    model, generator = LetsTalkModel(TINY.with_changes(**changes)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "first.safetensors", new_model(seed=0))
    return tmp_path / "first.safetensors"


def copied(model: LetsTalkModel) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def check(model, before, given, report) -> None:
    """Taken tensors are the file's, all others are as they were, and the report names every one once."""
    for name, value in model.state_dict().items():
        assert torch.equal(value, (given if name in report.taken else before)[name]), name
    mismatched = [name for name, *_ in report.mismatched]
    assert sorted([*report.taken, *report.missing, *mismatched]) == sorted(before)
    assert sorted([*report.taken, *report.unexpected, *mismatched]) == sorted(given)
    assert report.parameters == sum(value.numel() for value in before.values())
    assert report.taken_parameters == sum(before[name].numel() for name in report.taken)
    assert "\n" not in report.summary() and report.text().startswith(report.summary())


def test_a_full_match_takes_everything(path):
    model = new_model()
    before = copied(model)
    report = initialise_from(model, path)
    check(model, before, load_checkpoint(path).state_dict(), report)
    assert report.summary() == f"taken {len(before)} of {len(before)} tensors (100.0 % of the parameters) from {path}"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_half_precision_file_and_a_bundled_autoencoder(path, tmp_path):
    first = load_checkpoint(path)
    bundled = BundledAutoencoder({"latent_channels": 4}, {"decoder.weight": torch.zeros(3)})
    save_checkpoint(tmp_path / "half.safetensors", first, bundled, dtype=torch.float16)
    model = new_model()
    report = initialise_from(model, tmp_path / "half.safetensors")
    assert not report.missing and not report.unexpected
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.state_dict(), first.state_dict(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("depth", [1, 4])
def test_another_depth(path, depth):
    model = new_model(depth=depth)
    before, given = copied(model), load_checkpoint(path).state_dict()
    report = initialise_from(model, path)
    check(model, before, given, report)
    others = report.missing if depth == 4 else report.unexpected
    assert others and all(name.startswith(("transformer.blocks.", "transformer.fusions.")) for name in others)
    assert not report.mismatched and not (report.unexpected if depth == 4 else report.missing)


def test_another_way_for_the_portrait(path):
    model = new_model(add_portrait=True)
    before = copied(model)
    report = initialise_from(model, path)
    check(model, before, load_checkpoint(path).state_dict(), report)
    assert report.missing == ("transformer.portrait_to_frames.weight", "transformer.portrait_to_frames.bias")


@pytest.mark.parametrize("fusion", ["direct", "siamese"])
def test_another_fusion(path, fusion):
    try:
        model = new_model(portrait_fusion=fusion)
    except ValueError as error:
        pytest.skip(str(error))
    before = copied(model)
    report = initialise_from(model, path)
    check(model, before, load_checkpoint(path).state_dict(), report)
    assert report.missing and "keep their initial values" in report.summary()


def test_another_shape_is_named_with_both(path):
    model = new_model(audio_width=24)
    before = copied(model)
    report = initialise_from(model, path)
    check(model, before, load_checkpoint(path).state_dict(), report)
    assert ("transformer.blocks.0.cross.audio.key.weight", (32, 24), (32, 16)) in report.mismatched
    assert "transformer.blocks.0.cross.audio.key.weight: (32, 24) in the model, (32, 16) in the file" in report.text()
    assert "transformer.blocks.0.cross.audio.query.weight" in report.taken


@pytest.mark.parametrize("name", ["linear_long", "softmax", "softmax_long"])
def test_an_official_checkpoint(repository, name):
    path = repository / f"tests/data/reference/{name}.ckpt"
    official = read_official(path, **OPTIONS)
    model = LetsTalkModel(official.config)
    before = copied(model)
    report = initialise_from(model, path, **OPTIONS)
    check(model, before, official.state_dict(), report)
    assert not report.missing and not report.mismatched and not report.unexpected


def test_an_official_checkpoint_of_another_depth(repository):
    path = repository / "tests/data/reference/softmax.ckpt"
    official = read_official(path, **OPTIONS)
    model = LetsTalkModel(official.config.with_changes(depth=official.config.transformer.depth + 1))
    before = copied(model)
    report = initialise_from(model, path, **OPTIONS)
    check(model, before, official.state_dict(), report)
    assert report.missing


def test_an_official_checkpoint_says_which_option_it_needs(repository):
    model = new_model()
    before = copied(model)
    with pytest.raises(CheckpointError, match="num_heads must be given"):
        initialise_from(model, repository / "tests/data/reference/softmax.ckpt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_files_from_which_nothing_can_be_taken(path, tmp_path):
    whole = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_bytes(b"this is a text\n" * 9)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_checkpoint(tmp_path / "wide.safetensors", LetsTalkModel(PRESETS["tiny"]))
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del tensors["transformer.linear_out.bias"]
    save_file(tensors, tmp_path / "lacking.safetensors", metadata)
    model = new_model(latent_channels=8, audio_hidden=48, audio_tokens=2)
    before = copied(model)
    for name, sentence in {
        "nowhere.safetensors": "no such file",
        "cut.safetensors": "truncated or damaged",
        "text.ckpt": "not a PyTorch checkpoint",
        "other.safetensors": "another architecture",
        "lacking.safetensors": "missing linear_out.bias",
    }.items():
        with pytest.raises(CheckpointError, match=sentence) as caught:
            initialise_from(model, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_nothing_that_fits_is_an_error(path):
    model = new_model(width=64, audio_width=24, audio_hidden=48, patch_size=2, audio_tokens=2)
    before = copied(model)
    with pytest.raises(CheckpointError, match="none of its tensors"):
        initialise_from(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
