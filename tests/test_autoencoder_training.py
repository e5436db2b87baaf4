"""Training of an autoencoder: from every kind of pictures, stopped and resumed, to a file that can be used."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from letstalk_core import weights
from letstalk_core.autoencoders import find_autoencoder
from letstalk_core.data.images import image_folder
from letstalk_core.errors import InputError
from letstalk_core.picture.autoencoder import build_autoencoder, load_autoencoder
from letstalk_core.pipeline import BUNDLED_MODEL
from letstalk_core.training import train_autoencoder as training
from letstalk_core.training.config_file import load_config
from letstalk_core.training.examples import collate
from letstalk_core.training.reconstruction import ReconstructionLoss, Reconstructor, psnr, reconstruction_loss
from letstalk_core.training.train import train
from letstalk_core.training.training_config import AutoencoderTraining

from .test_pictures import SIZE, picture, write_frames, write_pictures, write_video
from .tiny import AUTOENCODER


@pytest.fixture(autouse=True)
def few_pictures_are_measured(monkeypatch):
    monkeypatch.setattr(training, "SCALE_PICTURES", 16)
    monkeypatch.setattr(training, "HELD_OUT_PICTURES", 8)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The file of an untrained autoencoder that is as small as they go."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(AUTOENCODER)
    path = tmp_path_factory.mktemp("autoencoder") / "tiny.safetensors"
    save_file(autoencoder.model.state_dict(), path, {"config": json.dumps(autoencoder.config)})
    return path


def configured(run: Path, tiny: Path | str, data_path: Path, **more) -> AutoencoderTraining:
    values = dict(
        task="autoencoder", run=str(run), init_from=str(tiny), data="images", data_path=str(data_path), image_size=SIZE,
        steps=4, batch_size=2, workers=0, save_every=2, log_every=1, device="cpu", precision="fp32",
        learning_rate=2e-3, gradient_clip=1.0, gradient_clip_start=0, ema_decay=0.9,
    )  # fmt: skip
    given = {**values, **more}.items()
    return load_config(None, [f"{n}={value if isinstance(value, str) else json.dumps(value)}" for n, value in given])


def log_of(run: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def content(path: Path) -> tuple[dict, dict]:
    """Weights as bytes, and metadata: the order in a safetensors file is another one each time."""
    with safe_open(path, "pt") as file:
        return {name: value.numpy().tobytes() for name, value in load_file(path).items()}, file.metadata()


# The whole way --------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_file_can_be_used(tmp_path, tiny):
    data = write_pictures(tmp_path / "in", 8)
    config = configured(
        tmp_path / "run", tiny, data, steps=80, save_every=40, sample_every=80, held_out_share=0.25, workers=1
    )
    path = train(config)
    assert path == tmp_path / "run" / "autoencoder.safetensors"
    losses, quality = log_of(tmp_path / "run", "loss"), log_of(tmp_path / "run", "held_out_psnr")
    assert np.mean([losses[step] for step in range(71, 81)]) < 0.5 * losses[1]
    assert quality.keys() == {40, 80} and quality[80] > quality[40]
    autoencoder = load_autoencoder(path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["held_out_psnr"] == f"{quality[80]:.2f}" and file.metadata()["trained_steps"] == "80"
    source = image_folder(data, SIZE)
    pixels = torch.stack([source.read(i, np.random.default_rng(i))["image"] for i in range(8)])
    latents = autoencoder.encode(pixels.float() / 127.5 - 1)
    assert 0.5 < latents.std() < 2  # latents that a diffusion model can start from noise with
    assert psnr(autoencoder.decode(latents), pixels.float() / 127.5 - 1) > 12
    used = find_autoencoder(str(path))
    assert used.encoder_digest == autoencoder.encoder_digest and used.latent_scale == autoencoder.latent_scale != 1
    sheet = np.asarray(Image.open(tmp_path / "run" / "samples" / "step-00000080.png")).astype(float)
    assert sheet.shape == (2 * SIZE, 8 * SIZE, 3)
    assert np.abs(sheet[:SIZE] - sheet[SIZE:]).mean() < np.abs(sheet[:SIZE] - sheet[SIZE:, ::-1]).mean()
    assert [file.name for file in (tmp_path / "run" / "samples").iterdir()] == ["step-00000080.png"]


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, tiny, monkeypatch):
    data = write_pictures(tmp_path / "in")
    whole = train(configured(tmp_path / "whole", tiny, data, steps=6, held_out_share=0.3))
    usual, calls = ReconstructionLoss.__call__, []

    def stopping(self, *arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise ZeroDivisionError  # as good as any crash
        return usual(self, *arguments)

    monkeypatch.setattr(ReconstructionLoss, "__call__", stopping)
    with pytest.raises(ZeroDivisionError):
        train(configured(tmp_path / "parts", tiny, data, steps=6, held_out_share=0.3))
    monkeypatch.setattr(ReconstructionLoss, "__call__", usual)
    parts = train(configured(tmp_path / "parts", tiny, data, steps=6, held_out_share=0.3, workers=1))
    assert content(whole) == content(parts)
    for name in ("loss", "held_out_psnr"):
        assert log_of(tmp_path / "whole", name) == log_of(tmp_path / "parts", name)


def test_a_lost_file_is_written_from_the_last_checkpoint(tmp_path, tiny):
    config = configured(tmp_path / "run", tiny, write_pictures(tmp_path / "in"))
    path = train(config)
    before = content(path)
    path.unlink()
    assert content(train(config)) == before
    logged = (tmp_path / "run" / "log.jsonl").read_text()
    train(config)  # nothing is left to do
    assert (tmp_path / "run" / "log.jsonl").read_text() == logged


def test_without_a_start_it_is_the_small_dc_ae(tmp_path):
    path = train(configured(tmp_path / "run", "", write_pictures(tmp_path / "in"), steps=1, batch_size=1))
    autoencoder = load_autoencoder(path)
    assert autoencoder.latent_channels == 32 and autoencoder.downscale == 16


def test_with_a_frozen_encoder_the_latents_stay(tmp_path, tiny):
    path = train(configured(tmp_path / "run", tiny, write_pictures(tmp_path / "in"), frozen=r"^model\.encoder"))
    before, after = load_autoencoder(tiny), load_autoencoder(path)
    assert before.encoder_digest == after.encoder_digest
    changed = {k for k, v in load_file(tiny).items() if not torch.equal(v, load_file(path)[k])}
    assert changed and all(name.startswith("decoder.") for name in changed)


@pytest.mark.parametrize("kind", ["videos", "shards", "avatar"])
def test_every_kind_of_data_is_trained_on(tmp_path, tiny, kind):
    data, more = tmp_path / "in", {}
    data.mkdir()
    if kind == "videos":
        write_video(data / "a.mp4")
    elif kind == "shards":
        pytest.importorskip("webdataset")
        write_frames(data / "a.tar")
    else:
        more = dict(avatar_people=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no face in them
        path = train(configured(tmp_path / "run", tiny, data, data=kind, steps=2, **more))
    assert load_autoencoder(path).latent_scale > 0


# Loss -----------------------------------------------------------------------------------------------------------------


def test_an_examples_loss_is_its_own_whatever_the_batch(tiny):
    autoencoder = load_autoencoder(tiny)
    examples = [
        {"image": torch.from_numpy(picture(i, SIZE, SIZE)).permute(2, 0, 1), "seed": i, "name": str(i)}
        | {"regions": torch.from_numpy(np.random.default_rng(i).integers(0, 3, (SIZE, SIZE), np.uint8))}
        for i in range(3)
    ]
    loss, reconstructor = ReconstructionLoss(autoencoder, torch.device("cpu")), Reconstructor(autoencoder)
    together = loss(reconstructor, collate(examples))
    alone = torch.cat([loss(reconstructor, collate([example])).per_example for example in examples])
    torch.testing.assert_close(together.per_example, alone)
    assert together.names == ["0", "1", "2"]


def test_mouth_and_eyes_count_more():
    images, regions = torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    regions[:, 2:4, 2:4], regions[:, 5:7, 5:7] = 1, 2
    losses = {}
    for name, at in {"mouth": 2, "eyes": 5, "elsewhere": 0}.items():
        output = images.clone()
        output[:, :, at : at + 2, at : at + 2] = 0.5
        losses[name] = reconstruction_loss(output, images, regions).item()
    assert losses["mouth"] > 2 * losses["elsewhere"] and losses["eyes"] > 2 * losses["elsewhere"]
    same = torch.zeros_like(regions)
    torch.testing.assert_close(reconstruction_loss(output, images, same), reconstruction_loss(output, images))


# What is wrong is said ------------------------------------------------------------------------------------------------


def one_sentence(call, *said: str) -> None:
    with pytest.raises(InputError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    assert all(part in str(caught.value) for part in said) and "\n" not in str(caught.value), caught.value


def test_folders_that_cannot_be_used(tmp_path, tiny):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("text")
    (tmp_path / "texts" / "a.mp4").write_text("text")

    def run(folder, **more):
        return lambda: train(configured(tmp_path / "run", tiny, tmp_path / folder, **more))

    one_sentence(run("missing"), "missing is not a folder", "data_path")
    one_sentence(run("empty"), "There are no pictures in", "(0 other files)", ".png")
    one_sentence(run("texts"), "None of the 1 pictures", "a.png is damaged or no picture")
    one_sentence(run("missing", data="videos"), "is not a folder")
    one_sentence(run("texts", data="videos"), "None of the 1 videos", "a.mp4")
    one_sentence(run("empty", data="shards"), "no training data")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_settings_that_cannot_be_used(tmp_path, tiny):
    data = write_pictures(tmp_path / "in", 2)

    def run(**more):
        return lambda: train(configured(tmp_path / "run", more.pop("start", tiny), data, **more))

    one_sentence(run(image_size=40), "image_size is 40", "multiple of 16")
    one_sentence(run(start=tmp_path / "none.safetensors"), "no autoencoder at")
    one_sentence(run(autoencoder="other.safetensors"), "give one of them")
    one_sentence(run(frozen="nothing"), "no parameter has such a name")


def test_nothing_held_out_is_said(tmp_path, tiny):
    data = write_pictures(tmp_path / "in", 2)
    with pytest.warns(UserWarning, match="nothing is held out"):
        train(configured(tmp_path / "run", tiny, data, steps=1, held_out_share=0.1))
    assert log_of(tmp_path / "run", "held_out_psnr") == {}


def test_a_full_disk_leaves_the_file_of_before(tmp_path, tiny, monkeypatch):
    data = write_pictures(tmp_path / "in", 2)
    path = train(configured(tmp_path / "run", tiny, data, steps=2))
    before = path.read_bytes()

    def full(part, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "move_into_place", full)
        one_sentence(lambda: train(configured(tmp_path / "run", tiny, data, steps=4)), "cannot be written", "No space")
    assert path.read_bytes() == before and not list((tmp_path / "run").glob(".*.part"))
    assert content(train(configured(tmp_path / "run", tiny, data, steps=4)))[1]["trained_steps"] == "4"


# Footage --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_footage(tmp_path, shared):
    """The bundled model's autoencoder learns a real face."""
    clips = sorted((shared / "media" / "clips").glob("W009*.mp4"))
    if not clips:
        pytest.skip("no clips in the shared folder")
    (tmp_path / "in").mkdir()
    for clip in clips:
        shutil.copyfile(clip, tmp_path / "in" / clip.name)
    train(
        configured(
            tmp_path / "run", BUNDLED_MODEL, tmp_path / "in", data="videos", image_size=64, steps=20, batch_size=4,
            save_every=20, held_out_share=0.4, learning_rate=2e-4,
        )  # fmt: skip
    )  # fmt: skip
    error = log_of(tmp_path / "run", "mse")
    at_the_end = sum(error[step] for step in range(16, 21)) / 5  # a batch of 4 has half or twice the error of the next
    assert at_the_end < 0.6 * error[1] and log_of(tmp_path / "run", "held_out_psnr")[20] > 25
