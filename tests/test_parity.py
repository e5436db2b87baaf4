"""The same numbers as the research code, end to end: convert, load, compute (random weights, see data/reference)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from letstalk_core.diffusion.objective import Diffusion
from letstalk_core.diffusion.samplers import sample
from letstalk_core.model.checkpoint import load_checkpoint
from letstalk_core.model.official import convert_checkpoint

REFERENCE = Path(__file__).parent / "data/reference"


@pytest.fixture(scope="module", params=["linear_long", "softmax_long", "softmax"])
def reference(request, tmp_path_factory):
    """A converted and loaded model, and the reference's inputs and outputs."""
    target = tmp_path_factory.mktemp("converted") / "model.safetensors"
    convert_checkpoint(REFERENCE / f"{request.param}.ckpt", target, num_heads=4, audio_blocks=3, audio_channels=16)
    return load_checkpoint(target), load_file(REFERENCE / f"{request.param}.io.safetensors")


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest value."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def predict_of(model, io):
    def predict(x, t):
        with torch.no_grad():
            return model.transformer(
                x, t, portrait=io["reference"], audio_tokens=io["audio_tokens"], memory=io["motion"]
            )

    return predict


def test_audio_tokens(reference):
    model, io = reference
    with torch.no_grad():
        close(model.audio_projection(io["audio_features"]), io["audio_tokens"], 1e-5)


def test_transformer(reference):
    model, io = reference
    close(predict_of(model, io)(io["x"], io["timesteps"]), io["output"], 1e-5)


def test_ddim(reference):
    model, io = reference
    close(sample(predict_of(model, io), io["ddim_noise"], Diffusion(), 10, "ddim"), io["ddim10_output"], 1e-4)


def test_posterior(reference):
    _, io = reference
    diffusion, t = Diffusion(), io["timesteps"]
    x0, _ = diffusion.predictions(io["output"], io["x"], t)
    close(diffusion.schedule.posterior_mean(x0, io["x"], t), io["posterior_mean"], 1e-5)
    fraction = diffusion.split_variance(io["output"])[1]
    close(diffusion.schedule.learned_log_variance(fraction, t), io["posterior_log_variance"], 1e-5)


def test_losses(reference):
    model, io = reference
    diffusion, t = Diffusion(), io["timesteps"]
    xt = diffusion.add_noise(io["x0"], io["noise"], t)
    close(xt, io["q_sample"], 1e-5)
    losses = diffusion.losses(predict_of(model, io)(xt, t), io["x0"], xt, io["noise"], t)
    close(losses["mse"], io["loss_mse"], 1e-5)
    close(losses["vlb"], io["loss_vb"], 1e-5)
    close(losses["total"], io["loss_total"], 1e-5)
