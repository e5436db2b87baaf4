"""What trainings on a source have in common once model and loss are there: from examples to the finished file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ..data.source import Source
from .examples import BatchOrder, load_batches
from .export import step_of_file
from .loop import Loss, TrainingRun
from .training_config import TrainingConfig


def autocast(run: TrainingRun, loss_of_batch: Callable[[nn.Module, dict], Loss]) -> Callable[[dict], Loss]:
    """loss_of_batch(module, batch) as a function of the batch: with the run's module, in its precision."""

    def loss_of(batch: dict) -> Loss:
        with run.accelerator.autocast():
            return loss_of_batch(run.module, batch)

    return loss_of


def fit_source(
    run: TrainingRun,
    config: TrainingConfig,
    source: Source,
    stretches: np.ndarray,
    loss_of: Callable[[dict], Loss],
    after_save: Callable[[int, dict[str, Tensor]], None],
    path: Path,
) -> Path | None:
    """Train on these stretches of a source to the end; returns `path`, which after_save(step, averaged weights) writes.

    Returns None where it was asked to stop before.
    """
    accelerator = run.accelerator
    order = BatchOrder(
        stretches, config.seed, config.batch_size, accelerator.process_index, accelerator.num_processes,
        run.batches_done,
    )  # fmt: skip
    finished = run.fit(loss_of, load_batches(source, order, config.workers, run.device.type == "cuda"), after_save)
    if finished and step_of_file(path) != run.step:  # the checkpoint was the last thing that could be written
        after_save(run.step, run.averaged_state())
    accelerator.end_training()
    return path if finished else None
