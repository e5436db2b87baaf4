"""The loss of the transformer and its audio projection: what is seen, what is added to it, what is asked for."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import LetsTalkConfig
from ..diffusion.objective import FLOW_OBJECTIVES, Diffusion
from ..model.checkpoint import LetsTalkModel
from ..model.latents import to_model_space
from ..picture.autoencoder import Autoencoder
from ..pixels import normalise
from .examples import on_device
from .loop import Loss
from .training_config import TransformerTraining

PIXEL_SIGMA = (-3.0, 0.5)  # mean and deviation of the logarithm of the pixel noise (paper, Section 3.4)
SHARED_NOISE = 0.8  # share of memory_shared_noise's variance that is the same in all memory frames


class Denoiser(nn.Module):
    """Audio projection and transformer in one forward pass, as distributed training needs it."""

    _no_split_modules = ["Block"]  # what FSDP keeps whole

    def __init__(self, model: LetsTalkModel):
        super().__init__()
        self.model = model

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        portrait: Tensor,
        memory: Tensor | None,
        features: Tensor,
        controls: Tensor | None,
        audio_kept: Tensor,
    ) -> Tensor:
        """The transformer's output [B,F,output_channels,h,w] for noisy latents [B,F,C,h,w] at timesteps [B].

        portrait [B,C,h,w], memory [B,M,C,h,w], features [B,F,W,L,E] and controls [B,F,W,n] are the conditions;
        audio_kept [B] is 0 where the audio is dropped, else 1.
        """
        tokens = self.model.audio_projection(features, controls) * audio_kept[:, None, None, None]
        return self.model.transformer(latents, timesteps, portrait=portrait, audio_tokens=tokens, memory=memory)


class TransformerLoss:
    """The loss of batches (training/examples.py); every random number follows from an example's own seed.

    mouth_reader: a linear map [C*h*w,n] from the model's latents of a frame, flat, to what a mouth does; what it reads
    of their errors is added to the loss (not for the objective "noise"). It is little of the latents, and what one sees
    first.
    """

    def __init__(
        self, config: TransformerTraining, model: LetsTalkConfig, autoencoder: Autoencoder | None, device: torch.device,
        mouth_reader: Tensor | None = None,
    ):  # fmt: skip
        self.config, self.model_config, self.autoencoder, self.device = config, model, autoencoder, device
        self.mouth_reader = mouth_reader
        self.diffusion = Diffusion.from_config(model)

    def __call__(self, denoiser: nn.Module, batch: dict) -> Loss:
        """The loss of one batch; denoiser: a Denoiser, as accelerate prepared it."""
        draws = Draws(batch["seed"], self.device)
        batch = on_device(batch, self.device)
        x0, memory, portrait = self._latents(batch, draws)
        times = self._times(draws)
        noise = draws.normal(x0.shape[1:])
        noisy = self.diffusion.add_noise(x0, noise, times)
        config = self.config
        portrait_kept = draws.uniform() >= config.portrait_dropout
        output = denoiser(
            self.diffusion.model_input(noisy, times),
            self.diffusion.model_timesteps(times),
            portrait * portrait_kept[:, None, None, None],
            memory,
            batch["features"],
            self._asked(batch, draws),
            (draws.uniform() >= config.audio_dropout).float(),
        )
        weight = self._weight(batch, x0)
        losses = self.diffusion.losses(output, x0, noisy, noise, times, weight)
        numbers = {name: value.detach().mean() for name, value in losses.items() if name != "total"}
        if self.diffusion.objective != "noise":  # there an error near pure noise is magnified without bound
            error = self.diffusion.predictions(output, noisy, times)[0] - x0
            numbers["x0_error"] = error.detach().square().mean()
        total = losses["total"]
        if self.mouth_reader is not None:
            misread = self._misread(error)
            numbers["mouth_error"] = misread.detach().mean()
            total = total + misread
        return Loss(total, numbers, batch["name"])

    def _misread(self, error: Tensor) -> Tensor:
        """The mean square of what the map reads of errors [B,F,C,h,w], [B]."""
        with torch.autocast(self.device.type, enabled=False):
            return (error.float().flatten(2) @ self.mouth_reader).square().mean((1, 2))

    def _asked(self, batch: dict, draws: Draws) -> Tensor | None:
        """The controls [B,F,W,n] that the model is told of: of a share of examples not all, so that it learns to invent
        the others."""
        if not self.model_config.departures.controls or "controls" not in batch:
            return None
        controls, share = batch["controls"], self.config.control_dropout
        if not share:
            return controls
        dropped = draws.uniform() * (draws.uniform() < share)  # of each example: how likely each of them is left out
        left_out = draws.uniform((1, 1, controls.shape[-1])) < dropped[:, None, None, None]
        return controls.masked_fill(left_out, float("nan"))

    @torch.no_grad()
    def _latents(self, batch: dict, draws: Draws) -> tuple[Tensor, Tensor | None, Tensor]:
        """Clip and regularised memory in the model's space, and the portrait's latents."""
        sigma = (PIXEL_SIGMA[0] + PIXEL_SIGMA[1] * draws.normal(())).exp() if self.config.memory_pixel_noise else None
        portrait = self._encoded(batch["portrait"][:, None], draws, sigma)[:, 0]
        x0 = to_model_space(self._encoded(batch["clip"], draws), portrait, self.model_config)
        if not self.model_config.transformer.memory_frames:
            return x0, None, portrait
        memory = to_model_space(self._encoded(batch["memory"], draws, sigma), portrait, self.model_config)
        return x0, self._regularised(memory, draws), portrait

    def _encoded(self, frames: Tensor, draws: Draws, sigma: Tensor | None = None) -> Tensor:
        """Latents float32 [B,n,C,h,w] of uint8 pixels [B,n,3,H,W] with noise of sigma [B], or latents as they are."""
        if frames.dtype != torch.uint8:
            if sigma is not None:
                raise ValueError("pixel noise needs pixels of portrait and memory, and these are latents")
            return frames.float()
        images = normalise(frames)
        if sigma is not None:
            images = images + sigma[:, None, None, None, None] * draws.normal(images.shape[1:])
        return rearrange(
            self.autoencoder.encode(rearrange(images, "b n c h w -> (b n) c h w")).float(),
            "(b n) c h w -> b n c h w",
            b=len(frames),
        )

    def _regularised(self, memory: Tensor, draws: Draws) -> Tensor:
        """Memory [B,M,C,h,w] with noise and dropped positions, as sampling's own errors will be (paper, Section 3.4).

        memory_shared_noise is not the paper's: noise that differs between the memory frames can be averaged away, so
        it does not teach the model to take faces from the portrait rather than from a memory that has drifted.
        """
        config, shape = self.config, memory.shape[1:]
        if config.memory_noise_steps:
            steps = (draws.uniform() * config.memory_noise_steps).long()
            kept = self.diffusion.schedule.alphas_cumprod.to(memory.device)[steps].float()[:, None, None, None, None]
            memory = kept.sqrt() * memory + (1 - kept).sqrt() * draws.normal(shape)
        if config.memory_shared_noise:
            sigma = config.memory_shared_noise * draws.uniform()[:, None, None, None, None]
            alike, own = draws.normal((1, *shape[1:])), draws.normal(shape)
            memory = memory + sigma * (SHARED_NOISE**0.5 * alike + (1 - SHARED_NOISE) ** 0.5 * own)
        if config.memory_mask:
            masked = draws.uniform()[:, None, None, None, None] < config.memory_mask_share
            masked = masked & (draws.uniform((shape[0], 1, *shape[2:])) < config.memory_mask)
            memory = memory.masked_fill(masked, 0.0)
        return memory

    def _times(self, draws: Draws) -> Tensor:
        """Diffusion times [B], 1 for the share of first guesses."""
        times = torch.cat([self.diffusion.draw_times(1, generator) for generator in draws.generators]).to(self.device)
        if self.diffusion.objective in FLOW_OBJECTIVES and self.config.first_guess_share:
            times = times.masked_fill(draws.uniform() < self.config.first_guess_share, 1.0)
        return times

    def _weight(self, batch: dict, x0: Tensor) -> Tensor | None:
        """Weights [B,F,1,h,w], of mean 1 in each example: more for mouth and eyes, and for eyes while they blink."""
        config = self.config
        if "regions" not in batch or not (config.mouth_weight or config.eye_weight):
            return None
        regions = batch["regions"]
        pool = regions.shape[-1] // x0.shape[-1]
        mouth = F.avg_pool2d((regions == 1).float()[:, None], pool)[:, :, None]  # [B,1,1,h,w]
        eyes = F.avg_pool2d((regions == 2).float()[:, None], pool)[:, :, None]
        weight = 1 + config.mouth_weight * mouth + config.eye_weight * eyes * self._blinking(batch)
        return weight / weight.mean((1, 2, 3, 4), keepdim=True)

    def _blinking(self, batch: dict) -> Tensor | float:
        """The eyes' weight [B,F,1,1,1]: more where they are closing or closed, where that is known."""
        names = self.model_config.departures.controls
        if "controls" not in batch or "eyelids" not in names:
            return 1.0
        middle = batch["controls"].shape[2] // 2
        closed = batch["controls"][:, :, middle, names.index("eyelids")] > 0.2  # [B,F]
        return 1 + self.config.blink_weight * closed.float()[:, :, None, None, None]


class Draws:
    """Random numbers of a batch: each example has a generator of its own, so that its place does not matter.

    Noise is drawn on a GPU where there is one: a step of 64 clips takes 2 million numbers, which would keep it waiting.
    """

    def __init__(self, seeds: list[int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device
        self.of_noise = self.generators
        if device.type == "cuda":
            self.of_noise = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers [B, *shape]."""
        return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in self.of_noise]).to(self.device)

    def uniform(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform numbers [B, *shape] in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)
