"""Training objectives and what follows from them (paper, Section 3.1).

The sources: DDPM arXiv 2006.11239, learned variance 2102.09672, v-prediction 2202.00512, rectified flow 2209.03003.
Every x here is [B,...]; latents are [B,F,C,h,w] and CHANNELS is the axis that a learned variance doubles.
Times t are [B]: integers 0..999 for "noise" and "v", floats in [0,1] for "flow" and "x0" (1 is pure noise). One number
serves for the whole batch: then nothing has to be copied to a GPU, which would wait for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import TIMESTEPS, DiffusionConfig, LetsTalkConfig

BETA_FIRST, BETA_LAST = 1e-4, 0.02
CHANNELS = 2
FLOW_OBJECTIVES = ("flow", "x0")  # objectives on the straight path of rectified flow
LEAST_TIME = 0.5  # below this time the weight of "x0" errors, 1 / t^2, grows no more


class Schedule:
    """Variance-preserving noise levels, one float64 entry per step.

    x_t = alpha x_0 + sigma noise with alpha = sqrt(alphas_cumprod) and sigma = sqrt(1 - alphas_cumprod). The full
    schedule has 1000 steps with linear betas. `respaced` keeps some of them: the betas become those of the longer
    jumps, `timesteps` stay what the model was trained with.
    """

    def __init__(self, alphas_cumprod: Tensor, timesteps: Tensor):
        self.alphas_cumprod, self.timesteps = alphas_cumprod, timesteps  # [n] each
        self.alphas_cumprod_prev = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        self.betas = 1 - alphas_cumprod / self.alphas_cumprod_prev
        variance = self.betas * (1 - self.alphas_cumprod_prev) / (1 - alphas_cumprod)
        # The first entry is 0, whose logarithm is not defined: it takes the second's, as in arXiv 2102.09672.
        self.posterior_log_variance = torch.cat(
            [variance[1:2] if len(variance) > 1 else self.betas, variance[1:]]
        ).log()
        self.posterior_of_x0 = self.betas * self.alphas_cumprod_prev.sqrt() / (1 - alphas_cumprod)
        self.posterior_of_xt = (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - alphas_cumprod)

    @classmethod
    def linear(cls) -> Schedule:
        betas = torch.linspace(BETA_FIRST, BETA_LAST, TIMESTEPS, dtype=torch.float64)
        return cls((1 - betas).cumprod(0), torch.arange(TIMESTEPS))

    def respaced(self, timesteps: Tensor) -> Schedule:
        """The schedule of these steps alone, ascending [n]."""
        return Schedule(self.alphas_cumprod[timesteps], timesteps)

    def posterior_mean(self, x0: Tensor, xt: Tensor, index: Tensor | int) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) at schedule indices [B]."""
        return pick(self.posterior_of_x0, index, xt) * x0 + pick(self.posterior_of_xt, index, xt) * xt

    def learned_log_variance(self, fraction: Tensor, index: Tensor | int) -> Tensor:
        """From -1, the posterior's log-variance, linearly to 1, log beta (arXiv 2102.09672, eq. 15)."""
        low, high = pick(self.posterior_log_variance, index, fraction), pick(self.betas.log(), index, fraction)
        return low + (fraction + 1) / 2 * (high - low)


def pick(values: Tensor, index: Tensor | int, like: Tensor) -> Tensor | float:
    """values[index] for each element of the batch, shaped and typed to multiply `like` [B,...]; at least float32."""
    if isinstance(index, int):
        return float(values[index])
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    picked = values[index.to(values.device)].to(device=like.device, dtype=dtype)
    return picked.reshape(-1, *[1] * (like.ndim - 1))


class Diffusion:
    """One objective: how noise is added, what the model must answer, and what its answer says.

    "noise": predict the noise, and with learn_variance also the reverse variance (the paper). "v": predict
    v = alpha noise - sigma x0. "flow": rectified flow, x_t = (1 - t) x0 + t noise, v = noise - x0.
    "x0": the same flow and the same loss, but the model answers x0, from which v = (x_t - x0) / t follows: a narrow
    model need not carry the noise through its layers (arXiv 2511.13720). Nor is it given the noise (model_input).
    time_shift: above 1 moves the times of training and of sampling on the straight path towards noise
    (arXiv 2403.03206, eq. 23).
    Raises ValueError for another objective, or for a learned variance with any but "noise".
    """

    def __init__(self, objective: str = "noise", learn_variance: bool = True, time_shift: float = 1.0):
        DiffusionConfig(objective, learn_variance)  # refuses what does not go together
        self.objective, self.learn_variance, self.time_shift = objective, learn_variance, time_shift
        self.schedule = Schedule.linear()

    @classmethod
    def from_config(cls, config: LetsTalkConfig) -> Diffusion:
        return cls(config.diffusion.objective, config.diffusion.learn_variance, config.departures.time_shift)

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Random times [count], on the generator's device: uniform, but on the straight path logit-normal
        (arXiv 2403.03206, Section 3.1) and shifted by time_shift."""
        place = dict(generator=generator, device=generator.device)
        if self.objective not in FLOW_OBJECTIVES:
            return torch.randint(0, TIMESTEPS, (count,), **place)
        return self.shifted(torch.randn(count, **place).sigmoid())

    def shifted(self, t: Tensor) -> Tensor:
        """Times in [0,1] moved towards 1; 0 and 1 stay."""
        return self.time_shift * t / (1 + (self.time_shift - 1) * t)

    def model_input(self, xt: Tensor, t: Tensor | float) -> Tensor:
        """What the model is given for x_t: itself, but for "x0" the linear estimate of x0 from it.

        With data of variance 1 that is a x_t / (a^2 + b^2). At t = 1, where x_t says nothing, it is zero: the first
        guess then follows from portrait, memory and audio alone.
        """
        if self.objective != "x0":
            return xt
        a, b = self.alpha_sigma(t, xt)
        return xt * (a / (a**2 + b**2))

    def model_timesteps(self, t: Tensor | float) -> Tensor | float:
        """What the model is given for time t: t itself, or 1000 t on the straight path."""
        return t * TIMESTEPS if self.objective in FLOW_OBJECTIVES else t

    def alpha_sigma(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor] | tuple[float, float]:
        """(alpha, sigma) of x_t = alpha x_0 + sigma noise, shaped to multiply `like` [B,...]."""
        if self.objective in FLOW_OBJECTIVES:
            if isinstance(t, Tensor):
                t = t.to(device=like.device, dtype=torch.float32).reshape(-1, *[1] * (like.ndim - 1))
            return 1 - t, t
        alphas_cumprod = self.schedule.alphas_cumprod
        return pick(alphas_cumprod.sqrt(), t, like), pick((1 - alphas_cumprod).sqrt(), t, like)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        a, b = self.alpha_sigma(t, x0)
        return a * x0 + b * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the first C channels of the model's output should be at t."""
        if self.objective == "noise":
            return noise
        if self.objective == "flow":
            return noise - x0
        if self.objective == "x0":
            return x0
        a, b = self.alpha_sigma(t, x0)
        return a * noise - b * x0

    def predictions(self, output: Tensor, xt: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(x0, noise) that the model's output at x_t implies, each the shape of xt, float32 at least."""
        answer, a, b = self.split_variance(output)[0], *self.alpha_sigma(t, xt)
        answer = answer.to(torch.promote_types(torch.float32, xt.dtype))
        if self.objective == "noise":
            return (xt - b * answer) / a, answer
        if self.objective == "flow":
            return xt - b * answer, xt + a * answer
        if self.objective == "x0":
            return answer, (xt - a * answer) / b
        return a * xt - b * answer, b * xt + a * answer

    def split_variance(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The model's output as (prediction, variance fraction in about [-1, 1] or None)."""
        return tuple(output.chunk(2, dim=CHANNELS)) if self.learn_variance else (output, None)

    def losses(
        self, output: Tensor, x0: Tensor, xt: Tensor, noise: Tensor, t: Tensor, weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of each element of the batch, float32 [B]: "total" is the sum of "mse" and, if learned, "vlb".

        weight: broadcast to x0, such as the emphasis of the mouth; its scale matters, 1 is neutral.
        """
        answer, fraction = self.split_variance(output.float())
        error = (answer - self.target(x0.float(), noise.float(), t)) ** 2
        if self.objective == "x0":
            error = error / self.alpha_sigma(t, error)[1].clamp(min=LEAST_TIME) ** 2  # the error of v
        losses = {"mse": _mean(error, weight)}
        if fraction is not None:
            # The variance must not pull at the mean: that one is trained by the MSE (arXiv 2102.09672, Section 3.1).
            losses["vlb"] = self._variational_bound(answer.detach(), fraction, x0.float(), xt.float(), t, weight)
        return {"total": sum(losses.values()), **losses}

    def _variational_bound(self, noise, fraction, x0, xt, t, weight) -> Tensor:
        """KL of the posterior from the model's step, in bits per element; at t = 0 the likelihood of x0."""
        schedule = self.schedule
        a, b = self.alpha_sigma(t, xt)
        mean = schedule.posterior_mean((xt - b * noise) / a, xt, t)
        log_variance = schedule.learned_log_variance(fraction, t)
        true_mean = schedule.posterior_mean(x0, xt, t)
        true_log_variance = pick(schedule.posterior_log_variance, t, xt)
        ratio = (true_log_variance - log_variance).exp()
        distance = (true_mean - mean) ** 2 * (-log_variance).exp()
        divergence = 0.5 * (log_variance - true_log_variance - 1 + ratio + distance)
        first = (t == 0).to(x0.device).reshape(-1, *[1] * (x0.ndim - 1))
        nats = torch.where(first, -discretised_log_likelihood(x0, mean, 0.5 * log_variance), divergence)
        return _mean(nats, weight) / math.log(2)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log-probability of the bin of width 2/255 around x under a Gaussian (arXiv 2006.11239, eq. 13).

    The outermost bins, beyond +-0.999, reach to infinity. Uses the tanh approximation of the normal distribution, as
    the reference does.
    """

    def below(value: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    scale = (-log_deviation).exp()
    upper, lower = below((x - mean + 1 / 255) * scale), below((x - mean - 1 / 255) * scale)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over everything but the batch, [B]."""
    return (values if weight is None else values * weight).flatten(1).mean(1)
