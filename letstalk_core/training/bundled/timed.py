"""Training for a given time: the learning rate falls to zero as the minutes run out, on a CPU or one GPU.

For what this repository ships, where minutes of a GPU are what there is; it needs torch alone. `train` counts steps.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .muon import Muon

SAVE_EVERY, LOG_EVERY = 60.0, 10.0  # seconds
WARMUP = 0.02  # share of the time
BETAS, CLIP = (0.9, 0.97), 1.0
AVERAGE_SHARE = 6  # the average of weights is over the last sixth of the steps, at most MOST_DECAY
MOST_DECAY = 0.999


def prepare_arithmetic() -> None:
    """For a whole process: tiny numbers are zero, a GPU multiplies in TF32 and tries out its convolutions."""
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


class TimedRun:
    """One training in one folder: state.pt to go on from, log.jsonl.

    Args:
        folder: made if missing; what is in it is resumed.
        module: all of its parameters that require a gradient are trained.
        minutes: in all, those of a resumed run included.
        peak: the largest learning rate.
        device: where the module is.
        weight_decay: of what AdamW trains.
        matrices: parameters that Muon trains; AdamW has the others.
    """

    def __init__(
        self, folder: Path, module: nn.Module, minutes: float, peak: float, device: torch.device | str = "cpu",
        weight_decay: float = 0.0, matrices: list[nn.Parameter] | None = None,
    ):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.module, self.seconds, self.peak = folder, module, 60 * minutes, peak
        self.device = torch.device(device)
        taken = {id(matrix) for matrix in matrices or []}
        others = [one for one in module.parameters() if one.requires_grad and id(one) not in taken]
        self.optimizers = [torch.optim.AdamW(others, peak, BETAS, weight_decay=weight_decay, fused=True)]
        if matrices:
            self.optimizers.append(Muon(matrices, peak))
        self.average = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.step, self.elapsed = 0, 0.0
        self.state = folder / "state.pt"
        if self.state.exists():
            self._load()

    def fit(self, loss_of: Callable[[int], tuple[Tensor, dict[str, Tensor]]]) -> None:
        """Train until the time is over. loss_of(step) gives the loss of a batch, which follows from the step's number,
        and other numbers for the log."""
        if self.elapsed < self.seconds:
            loss_of(self.step)[0].backward()  # what the first step compiles takes none of the time
        began, saved, logged = time.monotonic() - self.elapsed, self.elapsed, self.elapsed
        while self.elapsed < self.seconds:
            rate = self.peak * self._share(self.elapsed / self.seconds)
            self.module.zero_grad(set_to_none=True)
            loss, numbers = loss_of(self.step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), CLIP)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
            self.step += 1
            self._update_average()
            self.elapsed = time.monotonic() - began
            if self.elapsed - logged > LOG_EVERY or self.elapsed >= self.seconds:
                logged = self.elapsed
                self._log({"loss": loss.detach(), "learning_rate": rate, **numbers})
            if self.elapsed - saved > SAVE_EVERY:
                saved = self.elapsed
                self._save()
        self._save()

    def averaged(self) -> nn.Module:
        """The module with averaged weights, in evaluation mode, without gradients."""
        self.module.load_state_dict(self.average)
        return self.module.eval().requires_grad_(False)

    @staticmethod
    def _share(passed: float) -> float:
        """Of the largest learning rate, when `passed` (0..1) of the time is over: a short rise, then half a cosine."""
        return min(1.0, (passed + 1e-3) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(passed, 1.0)))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(MOST_DECAY, 1 - 1 / (self.step / AVERAGE_SHARE + 1))
        state = self.module.state_dict()
        floats = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in floats], [state[name] for name in floats], 1 - decay)

    def _log(self, numbers: dict[str, float | Tensor]) -> None:
        line = {"step": self.step, "seconds": round(self.elapsed, 1)}
        line |= {name: float(value) for name, value in numbers.items()}
        print(json.dumps(line), flush=True)
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        aside = self.state.with_suffix(".part")
        torch.save(
            {
                "module": self.module.state_dict(), "average": self.average,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step, "elapsed": self.elapsed,
            },
            aside,
        )  # fmt: skip
        os.replace(aside, self.state)

    def _load(self) -> None:
        state = torch.load(self.state, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average, self.step, self.elapsed = state["average"], state["step"], state["elapsed"]
