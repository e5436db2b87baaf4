"""Samplers, checked against distributions whose perfect denoiser is known."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from letstalk_core.config import OBJECTIVES, SAMPLERS
from letstalk_core.diffusion.objective import (
    FLOW_OBJECTIVES,
    TIMESTEPS,
    Diffusion,
    Schedule,
)
from letstalk_core.diffusion.samplers import (
    SAMPLER_FUNCTIONS,
    clip_generator,
    clip_noise,
    guided,
    sample,
    samplers_for,
    spaced_by_snr,
    spaced_timesteps,
)

PAIRS = [(objective, sampler) for objective in OBJECTIVES for sampler in samplers_for(objective)]
POINT = torch.linspace(-2, 2, 24).reshape(1, 2, 3, 2, 2)


def of(objective: str) -> Diffusion:
    return Diffusion(objective, learn_variance=objective == "noise")


def perfect(diffusion: Diffusion, mean, variance: float):
    """The best possible model of data drawn from N(mean, variance)."""

    def predict(x, timesteps):
        t = timesteps / TIMESTEPS if diffusion.objective in FLOW_OBJECTIVES else timesteps
        a, b = diffusion.alpha_sigma(t, x)
        if diffusion.objective == "x0":  # back from the linear estimate to x_t; at t = 1 there is nothing in it
            x = torch.where(a > 0, x * (a**2 + b**2) / a, a)
        x0 = mean + a * variance / (a**2 * variance + b**2) * (x - a * mean)
        answer = diffusion.target(x0, (x - a * x0) / b, t)
        return torch.cat([answer, -torch.ones_like(answer)], dim=2) if diffusion.learn_variance else answer

    return predict


@pytest.mark.parametrize(("objective", "sampler"), PAIRS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_sampler_finds_a_point(objective, sampler, steps):
    diffusion = of(objective)
    found = sample(
        perfect(diffusion, POINT, 0.0), clip_noise(0, 0, POINT.shape), diffusion, steps, sampler,
        generator=clip_generator(0, 0, "steps"),
    )  # fmt: skip
    torch.testing.assert_close(found, POINT, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("objective", "sampler", "steps", "tolerance"),
    [("noise", "ddpm", 250, 0.03), ("v", "ddpm", 250, 0.03), ("noise", "ddim", 250, 0.03), ("v", "dpm++", 20, 0.03),
     ("noise", "dpm++", 20, 0.03), ("flow", "euler", 250, 0.03), ("x0", "euler", 250, 0.03)],
)  # fmt: skip
def test_every_sampler_recovers_a_gaussian(objective, sampler, steps, tolerance):
    diffusion = of(objective)
    noise = clip_noise(1, 0, (5000, 1, 1, 2, 2))
    drawn = sample(
        perfect(diffusion, 1.5, 0.25), noise, diffusion, steps, sampler, generator=clip_generator(1, 0, "steps")
    )
    assert abs(drawn.mean() - 1.5) < tolerance
    assert abs(drawn.std() - 0.5) < tolerance


def test_dpm_needs_fewer_steps_than_ddim():
    diffusion, noise = of("v"), clip_noise(1, 0, (2000, 1, 1, 1, 1))
    predict = perfect(diffusion, 0.0, 0.25)
    exact = 0.5 * noise  # the probability flow of a Gaussian only scales
    errors = {name: (sample(predict, noise, diffusion, 10, name) - exact).abs().mean() for name in ("ddim", "dpm++")}
    assert errors["dpm++"] < 0.25 * errors["ddim"]


@pytest.mark.parametrize(("objective", "sampler"), PAIRS)
def test_same_seed_same_result(objective, sampler):
    diffusion = of(objective)

    def draw(seed):
        noise = clip_noise(0, 0, POINT.shape)
        predict = perfect(diffusion, 0.3, 0.5)
        return sample(predict, noise, diffusion, 5, sampler, generator=clip_generator(seed, 0, "steps"))

    assert torch.equal(draw(1), draw(1))
    assert torch.equal(draw(1), draw(2)) == (sampler != "ddpm")


def test_euler_is_exact_on_a_straight_flow():
    noise = clip_noise(0, 0, POINT.shape)
    for objective, answer in (("flow", noise - POINT), ("x0", POINT)):
        for steps in (1, 3, 20):
            found = sample(lambda x, t: answer, noise, of(objective), steps, "euler")  # noqa: B023
            torch.testing.assert_close(found, POINT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", FLOW_OBJECTIVES)
def test_a_time_shift_moves_the_steps_towards_noise_and_keeps_both_ends(objective):
    diffusion, seen = Diffusion(objective, False, time_shift=6.0), []

    def predict(x, timesteps):
        seen.append(float(timesteps[0]) / TIMESTEPS)
        return POINT if objective == "x0" else noise - POINT

    noise = torch.randn(POINT.shape, generator=torch.Generator().manual_seed(1))
    found = sample(predict, noise, diffusion, 4, "euler")
    assert seen == pytest.approx([1.0, 18 / 19, 6 / 7, 2 / 3])
    torch.testing.assert_close(found, POINT)
    assert diffusion.shifted(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
    drawn = diffusion.draw_times(4000, torch.Generator().manual_seed(0))
    assert drawn.min() > 0 and drawn.max() < 1 and float(drawn.median()) == pytest.approx(6 / 7, abs=0.02)


def test_a_model_that_answers_x0_is_given_the_linear_estimate_of_it():
    diffusion = Diffusion("x0", False)
    generator = torch.Generator().manual_seed(2)
    x0, noise = torch.randn((2, 60000, 1), generator=generator)
    for time in (0.05, 0.5, 0.9):
        t = torch.full((60000,), time)
        xt = diffusion.add_noise(x0, noise, t)
        best = float((xt * x0).sum() / xt.square().sum())  # least squares
        torch.testing.assert_close(diffusion.model_input(xt, t), best * xt, rtol=0.02, atol=0.02)
    assert not diffusion.model_input(noise, torch.ones(60000)).any()  # pure noise says nothing
    assert torch.equal(diffusion.model_input(x0, torch.zeros(60000)), x0)  # and without noise nothing is to estimate


def test_other_models_are_given_what_is_noisy():
    xt = torch.randn(POINT.shape)
    for objective in ("noise", "v", "flow"):
        assert of(objective).model_input(xt, torch.ones(1, dtype=torch.long)) is xt


@pytest.mark.parametrize(("objective", "sampler"), PAIRS)
def test_callback_sees_every_step_and_can_cancel(objective, sampler):
    diffusion, seen = of(objective), []

    def callback(step, steps, x0):
        seen.append((step, steps))
        torch.testing.assert_close(x0, POINT, rtol=1e-3, atol=1e-3)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(
            perfect(diffusion, POINT, 0.0), clip_noise(0, 0, POINT.shape), diffusion, 5, sampler,
            generator=clip_generator(0, 0, "steps"), callback=callback,
        )  # fmt: skip
    assert seen == [(1, 5), (2, 5), (3, 5)]


def test_models_are_asked_at_their_own_timesteps():
    asked = []

    def predict(x, t):
        asked.append((t.dtype, t.tolist()))
        return torch.zeros_like(x)

    noise = torch.zeros(2, 1, 1, 1, 1)
    for objective in FLOW_OBJECTIVES:
        sample(predict, noise, of(objective), 2, "euler")
        assert asked == [(torch.float32, [1000.0, 1000.0]), (torch.float32, [500.0, 500.0])]
        asked.clear()
    sample(predict, noise, of("v"), 2, "ddim")
    assert asked == [(torch.int64, [999, 999]), (torch.int64, [0, 0])]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        sample(lambda x, t: x, POINT, of("v"), steps, "ddim")


def test_a_wrong_sampler_names_those_that_fit():
    for objective in FLOW_OBJECTIVES:
        with pytest.raises(ValueError, match="choose euler"):
            sample(lambda x, t: x, POINT, of(objective), 5, "ddim")
    with pytest.raises(ValueError, match=r"dpm\+\+, ddim, ddpm"):
        sample(lambda x, t: x, POINT, of("noise"), 5, "euler")
    with pytest.raises(ValueError, match="'heun' does not go"):
        sample(lambda x, t: x, POINT, of("v"), 5, "heun")
    assert SAMPLER_FUNCTIONS.keys() == SAMPLERS.keys()
    assert all(samplers_for(objective) for objective in OBJECTIVES)


# Ascending; short and long steps of log-SNR take turns, as equal ones would hide a ratio the wrong way round.
UNEVEN = torch.tensor([17, 19, 44, 50, 103, 116, 218, 239, 377, 401, 533, 554, 665, 682, 776, 792, 875, 888])


def test_dpm_is_of_second_order_where_steps_differ_in_length(monkeypatch):
    """Where x0 is l = log(alpha / sigma) itself, a second-order step of length h is exact but for alpha h^3 / 12.

    As d(x / sigma) = e^l x0 dl (arXiv 2211.01095, Section 4), x / sigma grows by the difference of e^l (l - 1).
    """
    monkeypatch.setattr("letstalk_core.diffusion.samplers.spaced_by_snr", lambda schedule, steps: UNEVEN)
    diffusion, visited = of("v"), []

    def predict(x, timesteps):
        squared = float(diffusion.schedule.alphas_cumprod[timesteps[0]])
        alpha, sigma = squared**0.5, (1 - squared) ** 0.5
        level = math.log(alpha / sigma)
        visited.append((x.double(), alpha, sigma, level))
        return (alpha * x - level) / sigma

    sample(predict, clip_noise(0, 0, (1, 1, 1, 2, 2)), diffusion, len(UNEVEN), "dpm++")
    lengths = torch.tensor([level for *_, level in visited]).diff()
    assert (lengths[1:] / lengths[:-1]).log().abs().min() > math.log(3)
    steps = list(zip(visited[:-1], visited[1:], strict=True))
    for (x, _, sigma, level), (reached, alpha_next, sigma_next, next_level) in steps[1:]:  # the first is of first order
        exact = sigma_next * (x / sigma + math.exp(next_level) * (next_level - 1) - math.exp(level) * (level - 1))
        assert (reached - exact).abs().max() < alpha_next * (next_level - level) ** 3 / 12 + 2e-5


@pytest.mark.parametrize("steps", [2, 3, 10, 25, 400, 999, 1000])
@pytest.mark.parametrize("spacing", [spaced_timesteps, lambda steps: spaced_by_snr(Schedule.linear(), steps)])
def test_spacings_have_both_ends_and_no_timestep_twice(spacing, steps):
    timesteps = spacing(steps)
    assert (len(timesteps), int(timesteps[0]), int(timesteps[-1])) == (steps, 0, 999)
    assert (timesteps.diff() > 0).all()


def test_clip_noise():
    shape = (2, 3, 4)
    torch.manual_seed(1)
    first = clip_noise(7, 0, shape)
    torch.manual_seed(2)
    assert torch.equal(first, clip_noise(7, 0, shape))
    others = [clip_noise(7, 1, shape), clip_noise(8, 0, shape), clip_noise(0, 7, shape), clip_noise(-7, 0, shape)]
    others.append(torch.randn(shape, generator=clip_generator(7, 0, "steps")))
    assert all((first - other).abs().min() > 0 for other in others)
    clip_noise(2**64 - 1, 10**6, shape)  # ComfyUI's largest seed


def test_guidance():
    calls = []

    def both(x, t):
        """Answers of 3 under the condition and 1 without, with a learned variance."""
        calls.append((x.shape[0], t.tolist()))
        return torch.tensor([3.0, 1.0]).reshape(2, 1, 1, 1, 1).expand(2, 2, 6, 2, 2)

    mixed = guided(both, 2.5)(POINT, torch.full((1,), 7.0))
    assert mixed.shape == (1, 2, 6, 2, 2) and (mixed[:, :, :3] == 6).all()
    assert (mixed[:, :, 3:] == 3).all()  # the variance is the conditional's
    assert calls == [(2, [7.0, 7.0])]  # as one batch


class Copies(TorchDispatchMode):
    """Counts what is copied from one device to another."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        self.count += len({tensor.device.type for tensor in tensors}) > 1
        return result


@pytest.mark.parametrize(
    ("objective", "sampler"), [("noise", "ddim"), ("v", "dpm++"), ("flow", "euler"), ("x0", "euler")]
)
def test_denoising_copies_nothing_to_the_device(objective, sampler):
    """A copy waits for all that the device has to do before it; "meta" stands for one here."""
    noise = torch.zeros(1, 2, 3, 4, 4, device="meta")
    with Copies() as copies:
        torch.zeros(1).to("meta")
        assert copies.count == 1  # it would be seen
        sample(lambda x, t: x * t.float(), noise, Diffusion(objective, False), 4, sampler)
    assert copies.count == 1
