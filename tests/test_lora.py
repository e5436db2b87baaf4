"""LoRA: adapters begin as nothing, what was trained is what is applied, and files that don't fit are refused."""

import copy
import sys
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from letstalk_core.errors import InputError
from letstalk_core.model.checkpoint import LetsTalkModel, load_checkpoint, save_checkpoint
from letstalk_core.model.fusion import AUDIO_FUSIONS, PORTRAIT_FUSIONS
from letstalk_core.model.lora import (
    A,
    B,
    add_lora,
    apply_loras,
    base_state_dict,
    lora_targets,
    plain_model,
    save_lora,
)

from .tiny import CONFIG

pytest.importorskip("peft")
NAME = "transformer.blocks.0.temporal.qkv"


def open_model(**changes) -> LetsTalkModel:
    """The tiny model with its zeroed gates opened, so that every layer matters."""
    torch.manual_seed(0)
    model = LetsTalkModel(CONFIG.with_changes(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.2)
    return model


def trained(model: LetsTalkModel, rank: int = 2, alpha: float = 3.0, seed: int = 5) -> LetsTalkModel:
    """The model with adapters that add something, as training would leave them."""
    add_lora(model, rank, alpha)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=generator)
    return model


def answer(model: LetsTalkModel) -> torch.Tensor:
    """The model's output for fixed inputs of every kind."""
    generator, config = torch.Generator().manual_seed(1), model.config
    features = (2, config.transformer.clip_frames, config.audio.window, config.audio.blocks, config.audio.channels)
    sizes = {"latents": (2, 4, 4, 2, 2), "portrait": (2, 4, 2, 2), "memory": (2, 2, 4, 2, 2), "features": features}
    given = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    with torch.no_grad():
        tokens = model.audio_projection(given.pop("features"))
        return model.transformer(given.pop("latents"), torch.tensor([3.0, 700.0]), audio_tokens=tokens, **given)


def state(model: LetsTalkModel) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(model: LetsTalkModel, before: dict) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(
        torch.equal(value.view(torch.uint8), before[name].view(torch.uint8)) for name, value in now.items()
    )


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A LoRA of open_model()."""
    path = tmp_path_factory.mktemp("lora") / "anna.safetensors"
    save_lora(path, trained(open_model()), notes={"trained_on": "noise"})
    return path


def test_a_new_adapter_adds_exactly_nothing():
    model = open_model()
    before, weights = answer(model), state(model)
    names = add_lora(model, 4, 8.0)
    assert names == lora_targets(open_model())
    assert torch.equal(answer(model), before)
    assert all(torch.equal(value, weights[name]) for name, value in base_state_dict(model).items())
    assert base_state_dict(model).keys() == weights.keys()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {f"{name}{part}.default.weight" for name in names for part in (A, B)}
    tokens = model.audio_projection(torch.randn(1, 4, 5, 4, 80))
    inputs = dict(latents=torch.randn(1, 4, 4, 2, 2), portrait=torch.randn(1, 4, 2, 2), audio_tokens=tokens)
    model.transformer(timesteps=torch.tensor([5.0]), **inputs).square().mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {f"{NAME}.lora_B.default.weight", "audio_projection.third.lora_B.default.weight"} <= reached


@pytest.mark.parametrize("audio", AUDIO_FUSIONS)
@pytest.mark.parametrize("portrait", PORTRAIT_FUSIONS)
@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_every_attention_of_every_fusion_is_adapted(portrait, audio, attention):
    model = open_model(portrait_fusion=portrait, audio_fusion=audio, attention=attention)
    targets = lora_targets(model)
    parts = ("temporal.qkv", "temporal.out", "temporal.mix", "spatial.qkv", "spatial.out")
    assert {f"transformer.blocks.1.{part}" for part in parts} <= set(targets)
    heard = ("window.first", "window.second", "third", "control.0", "control.2")
    assert {f"audio_projection.{part}" for part in heard} <= set(targets)
    assert not [name for name in targets if "feed_forward" in name or "modulation" in name or "embedding" in name]
    attentions = ("temporal", "spatial", "cross", "attention")
    assert all(name.startswith("audio_projection.") or any(a in name for a in attentions) for name in targets)
    before, model = answer(model), trained(model)
    assert [name for name, module in model.named_modules() if hasattr(module, "lora_A")] == targets
    assert not torch.allclose(answer(model), before, atol=0.01)
    torch.testing.assert_close(answer(plain_model(model, merged=True)), answer(model), rtol=0, atol=1e-5)


def test_saved_loaded_and_applied_it_is_the_trained_model(lora, tmp_path):
    model = trained(open_model())
    before = answer(open_model())
    assert (answer(model) - before).abs().max() > 0.05
    applied = open_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_loras(applied, [(lora, 1.0)])
    torch.testing.assert_close(answer(applied), answer(model), rtol=0, atol=1e-5)
    assert all(parameter.requires_grad for parameter in applied.parameters())
    merged = plain_model(model, merged=True)
    torch.testing.assert_close(merged.state_dict(), applied.state_dict(), rtol=0, atol=1e-6)
    assert equal(plain_model(model), state(open_model()))
    save_checkpoint(tmp_path / "merged.safetensors", merged)
    torch.testing.assert_close(
        answer(load_checkpoint(tmp_path / "merged.safetensors")), answer(model), rtol=0, atol=1e-5
    )


def test_a_copy_of_the_model_as_an_average_of_weights_is_saved_alike(lora, tmp_path):
    save_lora(tmp_path / "copy.safetensors", copy.deepcopy(trained(open_model())), notes={"trained_on": "noise"})
    copied, original = open_model(), open_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_loras(copied, [(tmp_path / "copy.safetensors", 1.0)])
        apply_loras(original, [(lora, 1.0)])
    assert equal(copied, state(original))


def test_the_file_says_what_it_is(lora):
    with safe_open(lora, "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert metadata["format"] == "letstalk-lora-1" and (metadata["rank"], float(metadata["alpha"])) == ("2", 3.0)
    assert metadata["letstalk_config"] == CONFIG.to_json() and metadata["trained_on"] == "noise"
    assert keys == {name + part for name in lora_targets(open_model()) for part in (A, B)}
    assert load_file(lora)[NAME + A].shape == (2, 64) and load_file(lora)[NAME + B].shape == (192, 2)


def test_strength(lora):
    weight, pair = open_model().get_submodule(NAME).weight, load_file(lora)
    added = 1.5 * (pair[NAME + B] @ pair[NAME + A])
    for strength in (0.5, -1.0, 2):
        model = open_model()
        apply_loras(model, [(lora, strength)])
        torch.testing.assert_close(model.get_submodule(NAME).weight, weight + strength * added)
    for dtype in (torch.float32, torch.bfloat16):
        model = open_model().to(dtype)
        model.get_submodule(NAME).weight.data[0, 0] = -0.0
        before = state(model)
        with pytest.warns(UserWarning):
            apply_loras(model, [(lora, 0.0)])
        assert equal(model, before)
    for strength in (float("nan"), float("inf"), 10.5):
        model = open_model()
        with pytest.raises(InputError, match="strength of .*choose one from -10 to 10"):
            apply_loras(model, [(lora, strength)])


def test_several_add_up_and_are_of_the_same_base(lora, tmp_path):
    save_lora(tmp_path / "other.safetensors", trained(open_model(), rank=1, seed=6))
    together, one, other = open_model(), open_model(), open_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_loras(together, [(lora, 1.0), (tmp_path / "other.safetensors", 0.5)])
        apply_loras(one, [(lora, 1.0)])
        apply_loras(other, [(tmp_path / "other.safetensors", 0.5)])
    base = open_model().state_dict()
    sums = {name: one.state_dict()[name] + other.state_dict()[name] - value for name, value in base.items()}
    torch.testing.assert_close(together.state_dict(), sums)
    before = state(one)
    with pytest.raises(InputError, match="no such file"):
        apply_loras(one, [(lora, 1.0), (tmp_path / "nowhere.safetensors", 1.0)])
    assert equal(one, before)


def test_another_base_is_a_warning(lora):
    model = open_model()
    model.transformer.linear_out.bias.data += 1
    before = answer(model)
    with pytest.warns(UserWarning, match="anna.safetensors was trained on other weights"):
        apply_loras(model, [(lora, 1.0)])
    assert not torch.equal(answer(model), before)
    half = open_model().half().float()
    kept = plain_model(half)
    assert trained(kept).lora_base_digest == trained(half.half()).lora_base_digest  # the values count, not their type


def rewritten(path, target, change):
    """A copy of a LoRA, changed as change(tensors, metadata) does."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, target, metadata)
    return target


DAMAGE = {
    "one half": (lambda tensors, metadata: tensors.pop(NAME + A), "not pairs of lora_A and lora_B"),
    "stranger": (lambda tensors, metadata: tensors.update(scale=torch.ones(1)), "not pairs of lora_A and lora_B"),
    "nothing": (lambda tensors, metadata: tensors.clear(), "not pairs of lora_A and lora_B"),
    "no rank": (lambda tensors, metadata: metadata.pop("rank"), "no rank and alpha"),
    "alpha": (lambda tensors, metadata: metadata.update(alpha="nan"), "no rank and alpha"),
    "rank": (lambda tensors, metadata: metadata.update(rank="3"), "is not of rank 3"),
    "format": (lambda tensors, metadata: metadata.update(format="letstalk-lora-2"), "not a LoRA of LetsTalk"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_files_that_contradict_themselves(lora, tmp_path, case):
    change, sentence = DAMAGE[case]
    path, model = rewritten(lora, tmp_path / "changed.safetensors", change), open_model()
    before = state(model)
    with pytest.raises(InputError, match=sentence) as caught:
        apply_loras(model, [(path, 1.0)])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert equal(model, before)


def test_files_that_are_something_else(lora, tmp_path):
    whole = lora.read_bytes()
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.safetensors").write_bytes(b"this is a text\n" * 9)
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"lora": torch.zeros(2)}, tmp_path / "pickle.ckpt")
    save_file({"lora_unet_down.weight": torch.zeros(2)}, tmp_path / "images.safetensors", {"format": "pt"})
    save_file({"lora_unet_down.weight": torch.zeros(2)}, tmp_path / "bare.safetensors")
    save_checkpoint(tmp_path / "model.safetensors", open_model())
    model = open_model()
    before = state(model)
    for name, sentence in {
        "nowhere.safetensors": "no such file",
        "empty.safetensors": "the file is empty",
        "text.safetensors": "not a safetensors file, or a truncated one",
        "cut.safetensors": "not a safetensors file, or a truncated one",
        "pickle.ckpt": "not a safetensors file, or a truncated one",
        "images.safetensors": "not a LoRA of LetsTalk",
        "bare.safetensors": "not a LoRA of LetsTalk",
        "model.safetensors": "a whole model, not a LoRA",
    }.items():
        with pytest.raises(InputError, match=sentence) as caught:
            apply_loras(model, [(tmp_path / name, 1.0)])
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert equal(model, before)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(width=128), r"as its transformer\.blocks\.0\.\S+ is \(64, 32\) and this model's is \(128, 32\)"),
        (dict(audio_width=48), r"as its audio_projection\.control\.2 is \(32, 32\) and this model's is \(48, 32\)"),
        (dict(depth=1), r"this one has no layer transformer\.blocks\.1\..* and \d+ more"),
    ],
)
def test_a_model_of_other_shapes_names_the_first(lora, changes, sentence):
    model = open_model(**changes)
    before = state(model)
    with pytest.raises(InputError, match=sentence):
        apply_loras(model, [(lora, 1.0)])
    assert equal(model, before)


def test_saving_is_whole_or_nothing(tmp_path, monkeypatch):
    model = trained(open_model())
    save_lora(tmp_path / "new" / "lora.safetensors", model)
    before = (tmp_path / "new" / "lora.safetensors").read_bytes()

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="cannot be written .no space"):
        save_lora(tmp_path / "new" / "lora.safetensors", model)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["lora.safetensors"]
    assert (tmp_path / "new" / "lora.safetensors").read_bytes() == before
    with pytest.raises(InputError, match="is a folder"):
        save_lora(tmp_path / "new", model)


def test_what_add_lora_refuses(tmp_path, monkeypatch):
    for rank, alpha in ((0, 1.0), (4, 0.0), (4, float("nan"))):
        with pytest.raises(InputError, match="rank of 1 or more and an alpha above 0"):
            add_lora(open_model(), rank, alpha)
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(trained(open_model()), 2, 2.0)
    with pytest.raises(ValueError, match="no adapters"):
        save_lora(tmp_path / "nothing.safetensors", open_model())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"):
        add_lora(open_model(), 2, 2.0)
