"""Denoising: from noise to latents through a callable predict(x, t).

x is [B,F,C,h,w] and t the model's own timesteps [B]; the answer is what the model gives ([B,F,C or 2C,h,w]). Nothing
here knows the model. Guidance is a wrapper around predict. Arithmetic is float32 whatever predict computes in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import TIMESTEPS, samplers_for
from .objective import CHANNELS, Diffusion, Schedule

Predict = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, int, Tensor], None]


def clip_generator(seed: int, clip_index: int, stream: str = "noise") -> torch.Generator:
    """A CPU generator for one clip of one video: neighbouring seeds, clips and streams share nothing."""
    digest = hashlib.blake2b(f"{seed}/{clip_index}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def clip_noise(seed: int, clip_index: int, shape: tuple[int, ...]) -> Tensor:
    """The starting noise of a clip, float32 on the CPU: the same on any device and after any resumption."""
    return torch.randn(shape, generator=clip_generator(seed, clip_index))


def guided(predict_both: Predict, scale: float) -> Predict:
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional), asked for as one batch.

    predict_both: gives the conditional answers to the first half of a batch [2B,...] and the unconditional ones to the
    second. A learned variance (channels beyond x's own) is the conditional's.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = predict_both(torch.cat([x, x]), torch.cat([t, t])).chunk(2)
        channels = x.shape[CHANNELS]
        own, rest = conditional.split((channels, conditional.shape[CHANNELS] - channels), dim=CHANNELS)
        base = unconditional.narrow(CHANNELS, 0, channels)
        return torch.cat([base + scale * (own - base), rest], dim=CHANNELS)

    return predict


def sample(
    predict: Predict,
    noise: Tensor,
    diffusion: Diffusion,
    steps: int,
    sampler: str,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Latents, float32 and of noise's shape and device, after `steps` evaluations of predict.

    generator: a CPU generator, needed by "ddpm", which draws noise at every step. callback(step, steps, x0_prediction):
    after each step, step from 1; it cancels by raising.
    Raises ValueError where steps is not in 1..1000, the sampler does not fit the objective, or a generator is missing.
    """
    check_sampler(sampler, diffusion.objective)
    if not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"steps is {steps}, not between 1 and {TIMESTEPS}")
    if generator is None and sampler == "ddpm":
        raise ValueError(f"sampler {sampler!r} draws noise at every step and needs a generator")
    report = callback or (lambda step, steps, x0: None)
    return SAMPLER_FUNCTIONS[sampler](predict, noise.float(), diffusion, steps, generator, report)


def check_sampler(sampler: str, objective: str) -> None:
    """Raises ValueError, naming the samplers that fit, unless this one goes with the objective."""
    if sampler not in samplers_for(objective):
        fitting = ", ".join(samplers_for(objective))
        raise ValueError(f"sampler {sampler!r} does not go with a model trained on {objective!r}; choose {fitting}")


def spaced_timesteps(steps: int) -> Tensor:
    """`steps` training timesteps from 0 to 999, ascending and evenly spread, both ends included (one step: 999).

    The reference's spacing for "ddpm" and "ddim".
    """
    if steps == 1:
        return torch.tensor([TIMESTEPS - 1])
    return torch.linspace(0, TIMESTEPS - 1, steps, dtype=torch.float64).round().long()


def spaced_by_snr(schedule: Schedule, steps: int) -> Tensor:
    """`steps` timesteps of the full schedule from 0 to 999, ascending, as evenly spread in log-SNR as integers can be.

    What a second-order solver needs: even timesteps end in a jump of log-SNR so long that it overshoots.
    """
    if steps == 1:
        return spaced_timesteps(1)
    log_snr = torch.special.logit(schedule.alphas_cumprod).flip(0)  # ascending
    wanted = torch.linspace(float(log_snr[0]), float(log_snr[-1]), steps, dtype=torch.float64)
    nearest = TIMESTEPS - 1 - torch.searchsorted((log_snr[1:] + log_snr[:-1]) / 2, wanted).flip(0)
    order = torch.arange(steps)
    room = (nearest - order).cummax(0).values.clamp(max=TIMESTEPS - steps)  # no timestep twice
    return room + order


def _denoise_ddpm(predict, x, diffusion, steps, generator, report) -> Tensor:
    """Ancestral sampling on the respaced schedule, with the learned variance if there is one (the paper: 250 steps)."""
    schedule = diffusion.schedule.respaced(spaced_timesteps(steps))
    for index in reversed(range(steps)):
        output, x0, _ = _evaluate(predict, x, diffusion, int(schedule.timesteps[index]))
        report(steps - index, steps, x0)
        x = schedule.posterior_mean(x0, x, index)
        if index > 0:
            fraction = diffusion.split_variance(output)[1]
            if fraction is None:
                fraction = -torch.ones_like(x)
            log_variance = schedule.learned_log_variance(fraction, index)
            x = x + (0.5 * log_variance).exp() * torch.randn(x.shape, generator=generator).to(x.device)
    return x


def _denoise_ddim(predict, x, diffusion, steps, generator, report) -> Tensor:
    """DDIM without noise of its own (arXiv 2010.02502, eq. 12 with sigma 0)."""
    schedule = diffusion.schedule.respaced(spaced_timesteps(steps))
    for index in reversed(range(steps)):
        _, x0, noise = _evaluate(predict, x, diffusion, int(schedule.timesteps[index]))
        report(steps - index, steps, x0)
        alpha_prev = float(schedule.alphas_cumprod_prev[index])
        x = alpha_prev**0.5 * x0 + (1 - alpha_prev) ** 0.5 * noise
    return x


def _denoise_dpm(predict, x, diffusion, steps, generator, report) -> Tensor:
    """DPM-Solver++ 2M (arXiv 2211.01095, Algorithm 2); the first and the last step are of first order."""
    schedule = diffusion.schedule.respaced(spaced_by_snr(diffusion.schedule, steps))
    before_last: tuple[Tensor, float] | None = None  # the x0 of the step before and the log-SNR step that led here
    for index in reversed(range(steps)):
        _, x0, _ = _evaluate(predict, x, diffusion, int(schedule.timesteps[index]))
        report(steps - index, steps, x0)
        if index == 0:
            return x0  # no noise is left: the step to infinite log-SNR is x0 itself
        alpha, alpha_prev = float(schedule.alphas_cumprod[index]), float(schedule.alphas_cumprod_prev[index])
        step = 0.5 * math.log(alpha_prev / (1 - alpha_prev) * (1 - alpha) / alpha)  # of log(sqrt(alpha / (1 - alpha)))
        towards = x0
        if before_last is not None:
            earlier, earlier_step = before_last
            towards = x0 + 0.5 * step / earlier_step * (x0 - earlier)
        x = ((1 - alpha_prev) / (1 - alpha)) ** 0.5 * x - alpha_prev**0.5 * math.expm1(-step) * towards
        before_last = x0, step
    raise AssertionError("steps is at least 1")


def _denoise_euler(predict, x, diffusion, steps, generator, report) -> Tensor:
    """Euler's method from t = 1 to 0, in equal steps but for the time shift: exact where the flow is straight."""
    times = diffusion.shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()
    for step in range(steps):
        _, x0, noise = _evaluate(predict, x, diffusion, times[step])
        report(step + 1, steps, x0)
        x = x + (times[step + 1] - times[step]) * (noise - x0)
    return x


def _evaluate(predict: Predict, x: Tensor, diffusion: Diffusion, time: float) -> tuple[Tensor, Tensor, Tensor]:
    """One evaluation at the time of the whole batch: (output, x0, noise), float32."""
    kind = torch.float32 if isinstance(time, float) else torch.int64
    timesteps = torch.full(x.shape[:1], diffusion.model_timesteps(time), device=x.device, dtype=kind)
    output = predict(diffusion.model_input(x, time), timesteps).float()
    return output, *diffusion.predictions(output, x, time)


# By the names of config.SAMPLERS, which says the objectives that each goes with.
SAMPLER_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "dpm++": _denoise_dpm,
    "ddim": _denoise_ddim,
    "ddpm": _denoise_ddpm,
    "euler": _denoise_euler,
}
