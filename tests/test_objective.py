"""Objectives: what is mixed, what a model is to answer, and what its answer costs."""

import math

import pytest
import torch

from letstalk_core.config import OBJECTIVES
from letstalk_core.diffusion.objective import (
    FLOW_OBJECTIVES,
    TIMESTEPS,
    Diffusion,
    discretised_log_likelihood,
)

from .test_diffusion import of


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_answer_gives_back_what_was_mixed(objective):
    diffusion, generator = of(objective), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 3, 2, 2, 2, generator=generator)
    t = diffusion.draw_times(4, generator)
    xt = diffusion.add_noise(x0, noise, t)
    output = diffusion.target(x0, noise, t)
    if diffusion.learn_variance:
        output = torch.cat([output, torch.zeros_like(output)], dim=2)
    for found, expected in zip(diffusion.predictions(output, xt, t), (x0, noise), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert diffusion.losses(output, x0, xt, noise, t)["mse"].max() < 1e-10


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_times(objective):
    diffusion = of(objective)
    t = diffusion.draw_times(4000, torch.Generator().manual_seed(3))
    assert torch.equal(t, diffusion.draw_times(4000, torch.Generator().manual_seed(3)))
    assert t.is_floating_point() == (objective in FLOW_OBJECTIVES)
    span = diffusion.model_timesteps(t).float()
    assert span.min() >= 0
    assert span.max() <= TIMESTEPS
    assert abs(span.mean() - 500) < 25
    middle = ((span > 250) & (span < 750)).float().mean()
    assert abs(middle - (0.728 if objective in FLOW_OBJECTIVES else 0.5)) < 0.03  # logit-normal or uniform


def test_the_loss_of_x0_is_that_of_the_flow_but_for_late_times():
    generator, t = torch.Generator().manual_seed(0), torch.tensor([0.1, 0.4, 0.5, 0.8, 1.0])
    x0, noise, output = torch.randn(3, 5, 2, 3, 2, 2, generator=generator)
    diffusion = of("x0")
    xt = diffusion.add_noise(x0, noise, t)
    velocity = (xt - output) / t[:, None, None, None, None]
    expected = of("flow").losses(velocity, x0, xt, noise, t)["mse"]
    expected = expected * (t / 0.5).clamp(max=1) ** 2  # below t = 0.5 the weight 1 / t^2 grows no more
    losses = diffusion.losses(output, x0, xt, noise, t)
    torch.testing.assert_close(losses["mse"], expected, rtol=1e-4, atol=0)
    assert torch.equal(losses["total"], losses["mse"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weights_scale_their_elements_and_one_is_neutral(objective):
    diffusion, generator = of(objective), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 2, 3, 2, 2, generator=generator)
    output = torch.randn(3, 2, 6 if diffusion.learn_variance else 3, 2, 2, generator=generator)
    t = torch.tensor([0.0, 0.3, 0.9]) if objective in FLOW_OBJECTIVES else torch.tensor([0, 10, 900])
    arguments = (output, x0, diffusion.add_noise(x0, noise, t), noise)
    plain = diffusion.losses(*arguments, t)
    weight = torch.zeros(1, 1, 1, 2, 2)
    weight[..., 0, 0] = 4
    of_one_place = diffusion.losses(*(value[..., :1, :1] for value in arguments), t)
    torch.testing.assert_close(diffusion.losses(*arguments, t, weight=weight), of_one_place)
    for name, value in diffusion.losses(*arguments, t, weight=torch.ones(1)).items():
        torch.testing.assert_close(value, plain[name])
        assert value.shape == (3,)


def test_the_variational_bound_trains_the_variance_alone():
    diffusion = of("noise")
    x0, noise = torch.randn(2, 2, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    output = torch.zeros(2, 2, 6, 2, 2, requires_grad=True)
    t = torch.tensor([0, 500])
    diffusion.losses(output, x0, diffusion.add_noise(x0, noise, t), noise, t)["vlb"].sum().backward()
    assert output.grad[:, :, :3].abs().max() == 0
    assert (output.grad[:, :, 3:] != 0).any()


def test_the_likelihood_of_the_first_step_is_that_of_a_normal_bin():
    x, mean, deviation = torch.tensor(0.2), torch.tensor(0.25), torch.tensor(0.3)
    normal = torch.distributions.Normal(mean, deviation)
    expected = (normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)).log()
    torch.testing.assert_close(discretised_log_likelihood(x, mean, deviation.log()), expected, rtol=5e-3, atol=5e-3)
    bins = torch.linspace(-1, 1, 256)
    total = discretised_log_likelihood(bins, mean, deviation.log()).exp().sum()
    assert math.isclose(total, 1, rel_tol=1e-4)


def test_contradictory_objectives():
    for objective in ("v", *FLOW_OBJECTIVES):
        with pytest.raises(ValueError, match="learn_variance"):
            Diffusion(objective, learn_variance=True)
    with pytest.raises(ValueError, match="'score'"):
        Diffusion("score", learn_variance=False)
