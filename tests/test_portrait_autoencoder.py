"""The autoencoder that looks at the portrait: what it gives, what it needs, and that it trains, is kept and is used."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from letstalk_core import pipeline as pipelines
from letstalk_core.data.people.pictures import PuppetPictures
from letstalk_core.errors import InputError
from letstalk_core.files import ASSETS
from letstalk_core.picture.autoencoder import build_autoencoder, load_autoencoder
from letstalk_core.picture.picture_file import read_image
from letstalk_core.picture.portrait_autoencoder import AT_REST, FLOW_REACH, MOVING, Join, RMSNorm2d, steadied, warp
from letstalk_core.pipeline import LetsTalkPipeline
from letstalk_core.render.render import write_video
from letstalk_core.training import train_autoencoder
from letstalk_core.training.bundled import train_portrait_autoencoder as bundled
from letstalk_core.training.bundled.muon import orthogonal
from letstalk_core.training.bundled.timed import TimedRun
from letstalk_core.training.training_config import AutoencoderTraining
from letstalk_core.video.clips import SamplingSettings
from letstalk_core.video.reader import read_video_frames

from .tiny import GUIDED_AUTOENCODER, write_tiny_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def guided():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(GUIDED_AUTOENCODER)
    for parameter in autoencoder.parameters():  # a fresh one moves and adds nothing
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.05)
    return autoencoder.eval().requires_grad_(False)


def images(count, size=64, seed=1):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_flow_of_nothing_changes_nothing_and_one_of_a_pixel_is_one_pixel():
    values = images(2, 16)
    torch.testing.assert_close(warp(values, torch.zeros(2, 2, 16, 16)), values, atol=1e-5, rtol=0)
    flow = torch.zeros(2, 2, 16, 16)
    flow[:, 0] = 2 / 16  # a sixteenth of the width, in halves of the picture
    torch.testing.assert_close(warp(values, flow)[..., :-1], values[..., 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_written_out_is_what_pytorch_has(layout):
    """The join of two levels is one convolution of both in a row; the norm is PyTorch's, also of zeros."""
    torch.manual_seed(0)
    own, seen = (torch.randn(3, 6, 5, 7).contiguous(memory_format=layout) for _ in range(2))
    join, norm = Join(6), RMSNorm2d(6)
    both = torch.nn.functional.conv2d(torch.cat([own, seen], 1), join.weight, join.bias)
    torch.testing.assert_close(join(own, seen), both)
    own[0, :, 0, 0] = 0
    torch.nn.init.uniform_(norm.weight)
    expected = torch.nn.functional.rms_norm(own.movedim(1, -1), (6,), norm.weight, 1e-6).movedim(-1, 1)
    torch.testing.assert_close(norm(own), expected)
    own.requires_grad_(True)
    norm(own).square().sum().backward()
    assert own.grad.isfinite().all()


@pytest.mark.parametrize("height, width", [(64, 64), (32, 96)])
def test_any_size_that_divides(guided, height, width):
    frames = images(3, 96)[:, :, :height, :width]
    latents = guided.encode(frames)
    assert guided.downscale == 16 and latents.shape == (3, 4, height // 16, width // 16)
    decoded = guided.decode(latents, guided.look_at(frames[:1]))
    assert decoded.shape == frames.shape and decoded.abs().max() <= 1


def test_a_fresh_one_shows_the_portrait():
    torch.manual_seed(0)
    fresh = build_autoencoder(GUIDED_AUTOENCODER).eval()
    portrait = images(1)
    with torch.no_grad():
        shown = fresh.decode(fresh.encode(images(2, seed=5)), fresh.look_at(portrait))
    assert (shown - portrait).abs().mean() < 0.25 * portrait.abs().mean()


def test_portrait_and_latents_both_count(guided):
    latents = guided.encode(images(1))
    one, other = (guided.look_at(images(1, seed=seed)) for seed in (2, 3))
    assert (guided.decode(latents, one) - guided.decode(latents, other)).abs().max() > 0.1
    assert (guided.decode(latents, one) - guided.decode(2 * latents, one)).abs().max() > 1e-4


def test_frames_do_not_depend_on_their_batch(guided):
    latents, portraits = guided.encode(images(5)), guided.look_at(images(5, seed=7))
    whole = guided.decode(latents, portraits, chunk=5)
    torch.testing.assert_close(guided.decode(latents, portraits, chunk=2), whole, atol=1e-5, rtol=1e-4)
    one = guided.look_at(images(1, seed=7))
    same = guided.decode(latents, guided.look_at(images(1, seed=7).expand(5, -1, -1, -1)))
    torch.testing.assert_close(guided.decode(latents, one, chunk=3), same, atol=1e-5, rtol=1e-4)


def test_in_bfloat16_it_shows_the_same(guided):
    smooth = torch.nn.functional.interpolate(images(4, 8), (64, 64), mode="bilinear")
    latents, portrait = guided.encode(smooth[:3]), smooth[3:]
    whole = guided.decode(latents, guided.look_at(portrait))
    guided.to(torch.bfloat16)
    error = (guided.decode(latents, guided.look_at(portrait)) - whole).abs()
    assert error.mean() < 0.01 * whole.abs().mean() and error.max() < 0.05


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_warp_reads_between_pixels_in_any_precision(shift):
    """0.3 pixels of 256 are less than bfloat16 tells apart in the right half of the picture."""
    ramp = torch.linspace(-1, 1, 256).expand(1, 1, 4, 256)
    flow = torch.zeros(1, 2, 4, 256)
    flow[:, 0] = shift * 2 / 256
    wanted = warp(ramp, flow)
    assert (warp(ramp.bfloat16(), flow) - wanted).abs().max() < 0.006  # of the ramp itself


def test_what_hardly_moves_keeps_still():
    lengths = torch.linspace(0, 1, 101) / 128  # to a pixel of 256
    flow = torch.stack([0.6 * lengths, -0.8 * lengths])[None, :, None]
    steady = torch.linalg.vector_norm(steadied(flow), dim=1).flatten()
    assert not steady[lengths < AT_REST].any() and (steady.diff() >= 0).all()
    torch.testing.assert_close(steadied(flow)[..., lengths >= MOVING], flow[..., lengths >= MOVING])


def test_a_still_background_is_the_photograph(guided):
    """A flow of a twentieth of a pixel, where nothing is painted: used as it is in training, which has to learn it."""
    decoder, seen = guided.model.decoder, guided.look_at(images(1))
    for flow in decoder.flow:
        torch.nn.init.zeros_(flow.weight)
        torch.nn.init.zeros_(flow.bias)
    decoder.flow[-1].bias[0] = AT_REST / 2 / FLOW_REACH
    decoder.paint.weight.zero_()
    decoder.paint.bias.view(4, -1)[3] = 100.0
    latents = guided.encode(images(2))
    still = guided.decode(latents, seen)
    torch.testing.assert_close(still, images(1).expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    assert (guided.train().decode(latents, seen) - still).abs().max() > 1e-3


def test_what_it_refuses(guided):
    with pytest.raises(InputError, match="beside a portrait"):
        guided.decode(torch.zeros(1, 4, 4, 4))
    with pytest.raises(InputError, match="multiples of 16"):
        guided.look_at(images(1, 56))
    with pytest.raises(InputError, match="does not make a PortraitAutoencoder"):
        build_autoencoder({**GUIDED_AUTOENCODER, "encoder_layers_per_block": [1]})


def test_a_file_of_its_own(guided, tmp_path):
    guided.latent_scale = 0.5
    bundled.save(guided, tmp_path / "autoencoder.safetensors", {"photographs": {"whole": 30.0}})
    loaded = load_autoencoder(tmp_path / "autoencoder.safetensors")
    assert loaded.guided and loaded.latent_scale == 0.5 and loaded.downscale == 16
    torch.testing.assert_close(loaded.encode(images(2)), guided.encode(images(2)), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("has_bf16", [False, True])
def test_by_default_it_computes_in_bfloat16_where_the_cpu_does(tmp_path, monkeypatch, has_bf16):
    monkeypatch.setattr(pipelines, "computes_bf16", lambda device: has_bf16)
    portrait = {"autoencoder_config": GUIDED_AUTOENCODER, "image_size": 64, "autoencoder": "portrait"}
    made = [
        write_tiny_checkpoint(tmp_path / "guided.safetensors", **portrait),
        write_tiny_checkpoint(tmp_path / "dc-ae.safetensors"),
    ]
    guided, other = (LetsTalkPipeline.load(file, "cpu") for file in made)
    assert next(guided.autoencoder.parameters()).dtype is (torch.bfloat16 if has_bf16 else torch.float32)
    assert {next(part.parameters()).dtype for part in (guided.model, other.model, other.autoencoder)} == {torch.float32}
    exact = LetsTalkPipeline.load(made[0], "cpu", "fp32")
    assert next(exact.autoencoder.parameters()).dtype is torch.float32
    assert (exact.digest == guided.digest) is not has_bf16
    with nullcontext() if has_bf16 else pytest.warns(UserWarning, match="emulates bf16, many times slower"):
        LetsTalkPipeline.load(made[0], "cpu", "bf16")


def test_a_model_that_bundles_one_makes_a_video(tmp_path):
    """Untrained, it shows the portrait, so the portrait has reached the decoder."""
    checkpoint = write_tiny_checkpoint(
        tmp_path / "tiny.safetensors", autoencoder_config=GUIDED_AUTOENCODER, image_size=64, autoencoder="portrait"
    )  # fmt: skip
    pipeline = LetsTalkPipeline.load(checkpoint, "cpu")
    assert pipeline.autoencoder.guided and pipeline.config.autoencoder == "portrait"
    frames = []
    for picture in ("portrait.jpg", "drawing.png"):
        output = tmp_path / f"{Path(picture).stem}.mp4"
        settings = SamplingSettings(seed=1)
        assert write_video(pipeline, ASSETS / picture, ASSETS / "speech.wav", output, settings, max_seconds=0.4) == 10
        frames.append(read_video_frames(output)[0])
    shown = pipeline.crop(read_image(ASSETS / "portrait.jpg")).image
    first, second = (torch.from_numpy(frame).permute(2, 0, 1) / 127.5 - 1 for frame in frames)
    assert (first - shown).abs().mean() < 0.5 * (second - shown).abs().mean()


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("muon", [False, True])
def test_minutes_end_with_a_learning_rate_of_nothing(tmp_path, muon):
    torch.manual_seed(0)
    layer, data = torch.nn.Linear(4, 3), torch.randn(64, 4)
    target = data @ torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.2, -1.0, 0.4, 2.0], [-2.0, 0.3, 1.0, -0.6]]).T

    def loss_of(step):
        return (layer(data) - target).square().mean(), {}

    before = float(loss_of(0)[0].detach())
    run = TimedRun(tmp_path, layer, 1.5 / 60, 0.05, matrices=[layer.weight] if muon else None)
    run.fit(loss_of)
    assert 1.5 <= run.elapsed < 3 and len(run.optimizers) == 1 + muon
    assert all(group["lr"] < 0.002 for optimizer in run.optimizers for group in optimizer.param_groups)
    assert float((run.averaged()(data) - target).square().mean()) < 0.1 * before
    steps = run.step
    other = torch.nn.Linear(4, 3)
    resumed = TimedRun(tmp_path, other, 1.5 / 60, 0.05, matrices=[other.weight] if muon else None)
    resumed.fit(lambda step: pytest.fail("the time is over"))
    assert resumed.step == steps
    torch.testing.assert_close(resumed.averaged().weight, layer.weight)


def test_what_is_not_told_is_a_share_of_each_pictures_own_motion():
    torch.manual_seed(0)
    start = torch.randn(3, 4, 2, 2)
    moved = torch.tensor([1.0, 0.1, 1.0])[:, None, None, None] * torch.randn(3, 4, 2, 2)
    latents = start + moved
    nothing, whole = bundled.untold_share(latents, start, start), bundled.untold_share(latents, start, latents)
    assert torch.all(nothing > 0.05) and torch.all(whole == 0)
    half = bundled.untold_share(latents, start, start + moved / 2)
    torch.testing.assert_close(half, nothing / 4)
    assert nothing[0] > 0.8 > nothing[1]  # one that hardly moved is no reason to move it


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_steps_of_muon_are_nearly_orthogonal(shape):
    """Also those of a gradient that has one direction above all others."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    matrix += 30 * torch.randn(shape[0], 1, generator=generator) * torch.randn(1, shape[1], generator=generator)
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values[:-2].min() > 0.5 and values.max() < 1.3


def test_it_trains_where_little_is_installed():
    """A lent graphics card's machine has torch and little else; einops and tqdm are small files of Python."""
    absent = (
        "av",
        "diffusers",
        "torchaudio",
        "torchvision",
        "accelerate",
        "transformers",
        "PIL",
        "scipy",
        "matplotlib",
    )
    program = f"""
import sys
for name in {absent}:
    sys.modules[name] = None
import letstalk_core.training.bundled.train_portrait_autoencoder, letstalk_core.training.bundled.train_faces
from letstalk_core.data.people.cast import random_puppet
from letstalk_core.data.people.gestures import random_controls
puppet, rng = random_puppet(0)
assert puppet.render(random_controls(rng, 1)).shape == (1, 3, 256, 256)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


def test_it_learns_from_puppets_and_drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "SMALL_PORTRAIT_AE", GUIDED_AUTOENCODER)
    monkeypatch.setattr(bundled.shutil, "which", lambda name: None)  # nothing is compiled for a few steps
    autoencoder, teacher = bundled.train(tmp_path, 4 / 60, torch.device("cpu"), 4, puppets=2, speaking=2)
    report = bundled.quality(autoencoder, tmp_path, teacher, 2)
    assert report.keys() == {"poses", "speaking", "drawings"}
    assert 0.5 < autoencoder.latent_scale * float(autoencoder.encode(images(2, 256)).std()) < 50
    for numbers in report.values():
        assert 0 < numbers.pop("untold") < 3
        assert len(numbers) == 9 and all(5 < value < 60 for value in numbers.values()), report
    last = json.loads((tmp_path / "autoencoder" / "log.jsonl").read_text().splitlines()[-1])
    assert last["loss"] > 0 and last["learning_rate"] < 1e-3


def test_the_decoder_alone_goes_on(tmp_path, monkeypatch, capsys):
    """Its latents stay what they are, and a transformer that makes such fits as before."""
    monkeypatch.setattr(bundled, "SMALL_PORTRAIT_AE", GUIDED_AUTOENCODER)
    monkeypatch.setattr(bundled.shutil, "which", lambda name: None)
    device, few = torch.device("cpu"), {"puppets": 2, "speaking": 2}
    bundled.run(tmp_path, 2 / 60, device, 4, **few)
    start = (tmp_path / "autoencoder.safetensors").rename(tmp_path / "before.safetensors")
    teacher = load_file(bundled.teacher_beside(start))
    bundled.run(tmp_path, 2 / 60, device, 4, start, **few, decoder_only=True)
    before, after = load_autoencoder(start), load_autoencoder(tmp_path / "autoencoder.safetensors")
    assert after.latent_scale == before.latent_scale
    for name, value in load_file(bundled.teacher_beside(start)).items():
        assert torch.equal(value, teacher[name]), name
    changed = {
        name.split(".")[0]
        for (name, old), new in zip(before.model.state_dict().items(), after.model.state_dict().values(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {"decoder"}  # in a folder of its own: the minutes of the whole one are over
    bundled.teacher_beside(start).unlink()
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--minutes", "1", "--decoder-only", "--start", str(start)])
    with pytest.raises(SystemExit):
        bundled.main()
    assert "with its teacher.safetensors beside it" in capsys.readouterr().err


def test_train_has_it_and_people_too(tmp_path, monkeypatch):
    monkeypatch.setattr(train_autoencoder, "SMALL_PORTRAIT_AE", GUIDED_AUTOENCODER)
    monkeypatch.setattr(train_autoencoder, "HELD_OUT_PICTURES", 3)
    monkeypatch.setattr(train_autoencoder, "SCALE_PICTURES", 3)
    config = AutoencoderTraining(
        run=str(tmp_path / "run"), data="people", data_path=str(tmp_path / "people"), guided=True, avatar_people=2,
        steps=2, batch_size=1, save_every=1, sample_every=2, device="cpu", workers=0, held_out_share=0.5,
    )  # fmt: skip
    path = train_autoencoder.train_autoencoder(config)
    trained = load_autoencoder(path)
    assert trained.guided and trained.latent_channels == 4 and trained.downscale == 16
    assert len(PuppetPictures(tmp_path / "people", 2)) == 2
    from PIL import Image

    assert Image.open(tmp_path / "run" / "samples" / "step-00000002.png").size == (8 * 256, 3 * 256)
    again = train_autoencoder.train_autoencoder(config)
    assert again == path
