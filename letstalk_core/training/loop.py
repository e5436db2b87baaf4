"""What every training shares: steps on accelerate that can be stopped and resumed, an average of the weights, a log."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError, NotFiniteError
from ..precision import computes_bf16
from .checkpoints import Checkpoints
from .stopping import StopRequest
from .training_config import LoopConfig, fixed_settings

WAIT = timedelta(hours=12)  # for the main process, while it prepares data or samples a video


@dataclass(frozen=True)
class Loss:
    """What one batch gives: the loss of each example [B] (or of all, []), other numbers for the log, names."""

    per_example: Tensor
    numbers: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # the examples', for the message when one is not finite


def small_config(steps: int, learning_rate: float) -> LoopConfig:
    """The loop's settings for the small networks of this repository, which learn on a CPU in minutes."""
    return LoopConfig(
        steps=steps, learning_rate=learning_rate, schedule="cosine", warmup_steps=min(100, steps // 2), beta2=0.98,
        gradient_clip=1.0, gradient_clip_start=0, ema_decay=0.999, device="cpu", save_every=200, keep_checkpoints=1,
    )  # fmt: skip


def native_precision(name: str, device: str = "auto") -> str:
    """accelerate's name of a precision; "auto" is bf16 where the hardware computes in it, else full precision."""
    if name == "auto":
        kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        return "bf16" if computes_bf16(kind) else "no"
    return "no" if name == "fp32" else name


def make_accelerator(config: LoopConfig, folder: Path):
    """accelerate's Accelerator for a training in `folder`: one process, or as `accelerate launch` started it.

    InputError without accelerate.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
    except ImportError:
        raise InputError("Training needs accelerate; run pip install -r requirements-train.txt.") from None
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    return Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=native_precision(config.precision, config.device),
        gradient_accumulation_steps=config.accumulation,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
    )


class TrainingRun:
    """One training in one folder: `checkpoints/` to resume from, losses in `log.jsonl` and `tensorboard/`.

    Data must depend on the number of the batch alone (a generator seeded by it); then a run that was stopped and
    resumed takes the same steps as one that was not, bit for bit on a CPU.

    Args:
        folder: made if missing; the last checkpoint in it is resumed.
        module: what is trained, all of its parameters that require a gradient. `run.module` is accelerate's, to be
            called for the loss; `run.own` is the module itself.
        config: how long and how.
        batch_size: examples of one batch in one process; a continuation must have the same number in all.
        given: what else a continuation must have in common with the run, such as the size of the data; JSON. With
            fixed_settings of config it is `run.fixed`.
    """

    def __init__(
        self, folder: Path, module: nn.Module, config: LoopConfig, batch_size: int = 1, accelerator=None,
        given: dict | None = None,
    ):  # fmt: skip
        from accelerate.utils import DistributedType
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.folder, self.config, self.own = folder, config, module
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator = accelerator or make_accelerator(config, folder)
        self.examples = batch_size * config.accumulation * self.accelerator.num_processes  # those of one step
        self.checkpoints = Checkpoints(folder / "checkpoints", self.accelerator, config.keep_checkpoints)
        self.fixed = {**fixed_settings(config), **(given or {})}
        state = self.checkpoints.last(self.fixed, self.examples)
        if state is not None:
            self.checkpoints.load_average(state, module)  # into the module for a moment: the average starts from there
        optimizer = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            lr=config.learning_rate, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )  # fmt: skip
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        # Not prepared: accelerate would step it once per process.
        self.scheduler = get_scheduler(
            config.schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=config.steps
        )
        whole = self.accelerator.distributed_type is not DistributedType.FSDP  # shards are averaged one by one
        self.ema = EMAModel(list(self.module.parameters()), decay=config.ema_decay, foreach=whole)
        self.accelerator.register_for_checkpointing(self.scheduler)
        self.step = 0
        if state is not None:
            self.checkpoints.load(state)
            self.step = self.ema.optimization_step = state.step
            self.accelerator.step = self.batches_done  # also where `accumulation` is another than it was
        self._trim_log()

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def batches_done(self) -> int:
        """Batches of this process so far: the number of the next one."""
        return self.step * self.config.accumulation

    def averaged_state(self) -> dict[str, Tensor]:
        """The state dict of the module with averaged weights, whole, on the CPU; every process must ask."""
        parameters = list(self.module.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        state = self.accelerator.get_state_dict(self.module)
        state = {name: value.detach().cpu().clone() for name, value in state.items()}
        self.ema.restore(parameters)
        return state

    def record(self, numbers: dict[str, float]) -> None:
        """Write numbers of this step to log.jsonl and TensorBoard."""
        if self.accelerator.is_main_process:
            self.accelerator.log(numbers, step=self.step)
            with open(self.folder / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": self.step, **numbers}) + "\n")

    def averaged(self) -> nn.Module:
        """The module itself with its averaged weights; the training is over then."""
        self.ema.copy_to(list(self.module.parameters()))
        return self.accelerator.unwrap_model(self.module).eval()

    def fit(
        self,
        loss_of: Callable[[object], Loss],
        batches: Iterable | None = None,
        on_save: Callable[[int, dict[str, Tensor]], None] | None = None,
    ) -> bool:
        """Run the steps that are left; False where it was asked to stop before (Ctrl-C), with everything saved.

        batches: from number `batches_done` on; by default just these numbers. on_save(step, averaged weights): called
        in every process after each save. Raises NotFiniteError for a loss or gradient that is NaN or infinite.
        """
        with StopRequest() as stop, self._bar() as bar:
            iterator, log = iter(itertools.count(self.batches_done) if batches is None else batches), LossLog(self)
            while self.step < self.config.steps and not log.stop_asked:
                for _ in range(self.config.accumulation):
                    with self.accelerator.accumulate(self.module):
                        self._update(loss_of(next(iterator)), log, stop)
                self.step += 1
                bar.update()
                if self.step % self.config.log_every == 0:
                    bar.set_postfix_str(log.write())
                if self.step % self.config.save_every == 0 or self.step == self.config.steps or log.stop_asked:
                    self._save(on_save)
            return self.step >= self.config.steps

    def _update(self, loss: Loss, log: LossLog, stop: StopRequest) -> None:
        """Learn from one batch: its gradient, and after the last one of a step the weights and their average."""
        log.add(loss, bool(stop))  # before the weights change: a loss that is not finite stops here
        self.accelerator.backward(loss.per_example.mean())
        if self.accelerator.sync_gradients:
            self._clip(loss, log)
            self.optimizer.step()
            self.scheduler.step()
            self.ema.step(list(self.module.parameters()))
        self.optimizer.zero_grad(set_to_none=True)

    def _clip(self, loss: Loss, log: LossLog) -> None:
        """Clip the gradient, the same in every process. Raises NotFiniteError where it is not finite."""
        active = self.config.gradient_clip and self.step >= self.config.gradient_clip_start
        largest = self.config.gradient_clip if active else math.inf
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), largest)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a sharded model's
        if not torch.isfinite(norm) and self.accelerator.scaler is None:  # in fp16 the scaler leaves such a step out
            raise NotFiniteError(log.not_finite(loss, "gradient"))

    def _save(self, on_save) -> None:
        average = self.averaged_state()
        self.checkpoints.save(self.step, average, self.fixed, self.examples)
        if on_save is not None:
            on_save(self.step, average)

    def _bar(self):
        from tqdm import tqdm

        return tqdm(
            total=self.config.steps, initial=self.step, unit="step", desc=self.folder.name, mininterval=2,
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip

    def _trim_log(self) -> None:
        """Forget what was logged after the checkpoint: those steps are taken again."""
        path = self.folder / "log.jsonl"
        if self.accelerator.is_main_process and path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= self.step]
            path.write_text("".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # half a line, from a crash
        return math.inf


class LossLog:
    """Numbers averaged over processes and batches until they are written, and the watch over what is not finite."""

    def __init__(self, run: TrainingRun):
        self.run, self.sums, self.count, self.stop_asked = run, {}, 0, False
        self.began, self.began_step = time.monotonic(), run.step
        if run.accelerator.is_main_process and not run.accelerator.trackers:
            run.accelerator.init_trackers("tensorboard")

    def add(self, loss: Loss, stop: bool) -> None:
        """Count one batch. Raises NotFiniteError in every process when the loss of any of them is not finite."""
        accelerator = self.run.accelerator
        values = {"loss": loss.per_example.detach().mean(), **loss.numbers}
        packed = torch.stack([*(value.float().to(self.run.device) for value in values.values())])
        packed = torch.cat([packed, packed.new_tensor([float(stop)])])
        if accelerator.num_processes > 1:
            packed = accelerator.reduce(packed, "mean")
        *means, stops = packed.tolist()
        if not math.isfinite(means[0]):
            raise NotFiniteError(self.not_finite(loss, "loss"))
        self.stop_asked |= stops > 0
        self.count += 1
        for name, mean in zip(values, means, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + mean

    def not_finite(self, loss: Loss, what: str) -> str:
        """The sentence about a batch; it names the examples that are to blame, or all of them."""
        from accelerate.utils import gather_object

        values = loss.per_example.detach().reshape(-1).tolist()
        bad = [name for name, value in zip(loss.names, values) if not math.isfinite(value) or what == "gradient"]
        bad = gather_object(bad) if self.run.accelerator.num_processes > 1 else bad
        of = f" for {', '.join(sorted(set(bad))[:8])}" if bad else ""
        kept = self.run.checkpoints.newest()
        left = f"the last good checkpoint is {kept}" if kept else "no checkpoint had been saved yet"
        return (
            f"The {what} is not finite at step {self.run.step + 1}{of}; {left}. Look at these samples, or lower the "
            "learning rate."
        )

    def write(self) -> str:
        """Write the means since the last call as a line of log.jsonl and to TensorBoard; returns them as text."""
        run = self.run
        means = {name: total / self.count for name, total in self.sums.items()}
        means["learning_rate"] = run.scheduler.get_last_lr()[0]
        speed = (run.step - self.began_step) / max(1e-9, time.monotonic() - self.began)
        run.record({**means, "steps_per_second": speed})
        self.sums, self.count = {}, 0
        self.began, self.began_step = time.monotonic(), run.step
        return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items() if name != "learning_rate")
