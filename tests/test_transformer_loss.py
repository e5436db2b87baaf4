"""The loss of the transformer: what the denoiser is given, what is left out, and what noise is on the memory."""

import pytest
import torch

from letstalk_core.autoencoders import find_autoencoder
from letstalk_core.model.checkpoint import LetsTalkModel
from letstalk_core.training.build import build_model
from letstalk_core.training.loop import make_accelerator
from letstalk_core.training.transformer_loss import Denoiser, TransformerLoss

from .training_runs import configured, write_latents

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("data"))


def open_model(config) -> LetsTalkModel:
    """A model whose every input matters: a fresh one's gates are closed."""
    torch.manual_seed(config.seed)
    model = build_model(config, find_autoencoder(config.autoencoder, config.init_from), make_accelerator(config, None))
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def loss_of(config):
    model = open_model(config)
    return TransformerLoss(config, model.config, find_autoencoder(config.autoencoder, config.init_from), CPU), Denoiser(
        model
    )


def batch(count=3, **more):
    generator = torch.Generator().manual_seed(0)
    latents = {name: torch.randn(count, *shape, generator=generator) for name, shape in
               (("clip", (4, 4, 4, 4)), ("memory", (2, 4, 4, 4)), ("portrait", (4, 4, 4)))}  # fmt: skip
    features = torch.randn(count, 4, 5, 4, 80, generator=generator)
    return {**latents, "features": features, "seed": list(range(count)), "name": [str(i) for i in range(count)], **more}


@pytest.mark.parametrize(("key", "given"), [("audio_dropout", "features"), ("portrait_dropout", "portrait")])
def test_a_dropped_condition_is_not_seen(tmp_path, data, key, given):
    for dropped in (0.0, 1.0):
        compute, denoiser = loss_of(configured(tmp_path, data, **{"audio_dropout": 0.0, key: dropped}))
        usual = compute(denoiser, batch()).per_example
        changed = compute(denoiser, batch(**{given: batch()[given] + 1})).per_example
        assert torch.equal(usual, changed) == (dropped == 1.0)


def test_an_example_has_the_same_loss_in_any_batch(tmp_path, data):
    """So that batches may be spread over processes."""
    names = ["eyelids", "smile"]
    config = configured(
        tmp_path, data, audio_dropout=0.5, portrait_dropout=0.5, mouth_weight=2.0, eye_weight=2.0, blink_weight=2.0,
        control_dropout=0.9, model=dict(controls=names),
    )  # fmt: skip
    compute, denoiser = loss_of(config)
    regions = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(3)) < 0.1).to(torch.uint8)
    whole = batch(regions=regions, controls=torch.rand(3, 4, 5, 2))
    together = compute(denoiser, whole).per_example
    for i in range(3):
        alone = {name: value[i : i + 1] for name, value in whole.items()}
        torch.testing.assert_close(compute(denoiser, alone).per_example[0], together[i])


def test_what_is_read_of_the_mouth_counts(tmp_path, data):
    config = configured(tmp_path, data, model=dict(objective="x0", learn_variance=False, default_sampler="euler"))
    compute, denoiser = loss_of(config)
    plain = compute(denoiser, batch())

    def more_with(reader):
        found = TransformerLoss(config, denoiser.model.config, None, CPU, reader)(denoiser, batch())
        return float((found.per_example - plain.per_example).detach().mean()), float(found.numbers["mouth_error"])

    everything, one = 2 * torch.eye(4 * 4 * 4), 2 * torch.eye(4 * 4 * 4, 1)
    assert more_with(0 * one) == (0, 0)
    assert more_with(everything)[0] == pytest.approx(4 * float(plain.numbers["x0_error"]), rel=1e-4)
    more, said = more_with(one)
    assert more > 0 and more == pytest.approx(said, rel=1e-3)


# What the denoiser is given -------------------------------------------------------------------------------------------

OFF = dict(memory_pixel_noise=False, memory_noise_steps=0, memory_mask=0.0)
NAMES = ("latents", "timesteps", "portrait", "memory", "features", "controls", "audio_kept")  # of Denoiser.forward


class Recorder(torch.nn.Module):
    """In a denoiser's place: it keeps what it is given, and answers zeros."""

    def __init__(self, model):
        super().__init__()
        self.channels, self.given = model.output_channels, None

    def forward(self, latents, *others):
        self.given = dict(zip(NAMES, (latents, *others), strict=True))
        return latents.new_zeros(*latents.shape[:2], self.channels, *latents.shape[3:])


def given_by(config, batch, autoencoder=None) -> dict[str, torch.Tensor | None]:
    """What the loss gives the denoiser of a batch."""
    model = config.model_config()
    recorder = Recorder(model)
    TransformerLoss(config, model, autoencoder, CPU)(recorder, batch)
    return recorder.given


def regularised(tmp_path, data, count=400, **parts) -> tuple[torch.Tensor, torch.Tensor]:
    """A memory as the data has it and as the denoiser sees it."""
    latents = batch(count)
    return latents["memory"], given_by(configured(tmp_path, data, **{**OFF, **parts}), latents)["memory"]


def test_of_some_examples_the_model_is_not_told_all_that_is_asked_for(tmp_path, data):
    latents = batch(200, controls=torch.rand(200, 4, 5, 3))
    names = ["eyelids", "yaw", "smile"]
    for share in (0.0, 0.5):
        config = configured(tmp_path, data, **OFF, control_dropout=share, model=dict(controls=names))
        given = given_by(config, latents)["controls"]
        known = given.isfinite()
        assert torch.equal(given[known], latents["controls"][known])
        assert torch.equal(known, known[:, :1, :1].expand_as(known))  # a control is left out for the whole clip
        kept = known[:, 0, 0].float().sum(1)
        assert (kept < 3).float().mean() == pytest.approx(share * 0.75, abs=0.1)
        assert not share or {0, 1, 2, 3} == set(kept.tolist())


def test_clean_conditions_and_a_noisy_clip_are_seen(tmp_path, data):
    latents = batch()
    given = given_by(configured(tmp_path, data, **OFF, audio_dropout=0.0), latents)
    for name in ("portrait", "memory", "features"):
        assert torch.equal(given[name], latents[name]), name
    assert given["audio_kept"].tolist() == [1, 1, 1] and given["controls"] is None
    assert given["latents"].shape == latents["clip"].shape and not torch.equal(given["latents"], latents["clip"])
    given = given_by(configured(tmp_path, data, **OFF, audio_dropout=1.0, portrait_dropout=1.0), latents)
    assert given["audio_kept"].tolist() == [0, 0, 0] and given["portrait"].abs().max() == 0
    assert given_by(configured(tmp_path, data, **OFF, model=dict(memory_frames=0)), latents)["memory"] is None


def test_the_mask_drops_a_quarter_of_the_positions(tmp_path, data):
    before, after = regularised(tmp_path, data, memory_mask=0.25)
    dropped = (after == 0).all(2)  # [n,M,h,w]
    assert torch.equal(after.movedim(2, -1)[~dropped], before.movedim(2, -1)[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (dropped[:, 0] & dropped[:, 1]).float().mean().item() == pytest.approx(0.25**2, abs=0.02)  # each frame's own
    _, half = regularised(tmp_path, data, memory_mask=0.25, memory_mask_share=0.5)
    assert (half == 0).all(2).flatten(1).any(1).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_the_latent_noise_is_that_of_the_first_timesteps(tmp_path, data):
    before, after = regularised(tmp_path, data, memory_noise_steps=50)
    betas = torch.linspace(1e-4, 0.02, 1000)
    kept = (1 - betas).cumprod(0)[:50]
    noise = (1 - kept).mean() + (kept.sqrt() - 1).square().mean()  # of memory of variance 1
    assert (after - before).square().mean().item() == pytest.approx(noise.item(), rel=0.1)
    _, more = regularised(tmp_path, data, memory_noise_steps=500)
    assert (more - before).square().mean() > 5 * (after - before).square().mean()


def test_shared_noise_is_mostly_alike_in_all_memory_frames(tmp_path, data):
    before, after = regularised(tmp_path, data, memory_shared_noise=0.5)
    assert (after - before).square().mean().item() == pytest.approx(0.5**2 / 3, rel=0.1)  # sigma is uniform in 0..0.5
    first, second = (after - before).unbind(1)
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item() == pytest.approx(0.8, abs=0.05)


def test_pixel_noise_is_on_portrait_and_memory_before_encoding(tmp_path, data):
    config, seen = configured(tmp_path, data, **{**OFF, "memory_pixel_noise": True}), []
    autoencoder = find_autoencoder(config.autoencoder, config.init_from)
    usual = autoencoder.encode
    autoencoder.encode = lambda images: (seen.append(images), usual(images))[1]
    pixels = {name: torch.full((64, *n, 3, 64, 64), 127, dtype=torch.uint8) for name, n in
              (("clip", (4,)), ("memory", (2,)), ("portrait", ()))}  # fmt: skip
    given = given_by(config, batch(64, **pixels), autoencoder)
    portrait, clip, memory = (images.add(1 / 255).unflatten(0, (64, -1)).flatten(1).std(1) for images in seen)
    assert clip.max() == 0
    assert torch.allclose(portrait, memory, rtol=0.1)  # one sigma an example
    assert memory.log().mean().item() == pytest.approx(-3, abs=0.25)
    assert memory.log().std().item() == pytest.approx(0.5, abs=0.15)
    torch.testing.assert_close(given["memory"].flatten(0, 1), usual(seen[2]))  # and it is what is seen
