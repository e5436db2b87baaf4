"""What both trainings share: steps that can be stopped and resumed, an average of the weights, a log."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..files import move_into_place


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def mixed_precision() -> torch.autocast:
    """Matrix products in bfloat16 where this CPU computes in it (twice as fast or more); elsewhere it changes nothing.

    Use it around the forward pass; losses are better in float32.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


class TrainingRun:
    """One training in one folder: weights, their average, optimizer and step in `state.pt`, losses in `log.jsonl`.

    Data must depend on the step alone (a generator seeded by (seed, step)); then a run that was stopped and resumed
    takes the same steps as one that was not.

    Args:
        folder: made if missing; a `state.pt` in it is resumed.
        module: what is trained, all of its parameters that require a gradient.
        steps: length of the run; the learning rate falls to its end.
        peak: highest learning rate of AdamW.
    """

    def __init__(
        self, folder: Path, module: nn.Module, steps: int, peak: float, average: float = 0.999, clip: float = 1.0
    ):
        self.folder, self.module, self.steps, self.peak, self.average, self.clip = (
            folder,
            module,
            steps,
            peak,
            average,
            clip,
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.averaged = copy.deepcopy(module).requires_grad_(False)
        self.step = 0
        if self.state_path.exists():
            state = torch.load(self.state_path, weights_only=True)
            module.load_state_dict(state["module"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    @property
    def state_path(self) -> Path:
        return self.folder / "state.pt"

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        aside = self.state_path.with_suffix(".part")
        torch.save(state, aside)
        move_into_place(aside, self.state_path)

    def update(self, loss: torch.Tensor) -> None:
        """One optimizer step, and the moving average after it (shorter at the beginning)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.peak)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the loss or its gradient is not finite at step {self.step}")
        self.optimizer.step()
        decay = min(self.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.averaged.parameters(), self.module.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def fit(self, loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]], save_every: int = 200) -> None:
        """Run the steps that are left. loss_of(step) gives the loss and numbers for the log."""
        began, sums = time.time(), {}
        with tqdm(total=self.steps, initial=self.step, unit="step", desc=self.folder.name, mininterval=10) as bar:
            while self.step < self.steps:
                loss, numbers = loss_of(self.step)
                self.update(loss)
                self.step += 1
                bar.update()
                for name, value in numbers.items():
                    sums.setdefault(name, []).append(value)
                if self.step % 50 == 0:
                    means = {name: sum(values) / len(values) for name, values in sums.items()}
                    line = {"step": self.step, "seconds": round(time.time() - began, 1), **means}
                    with open(self.folder / "log.jsonl", "a") as log:
                        log.write(json.dumps(line) + "\n")
                    bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
                    sums = {}
                if self.step % save_every == 0 or self.step == self.steps:
                    self.save()
