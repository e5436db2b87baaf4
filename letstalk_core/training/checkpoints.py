"""Checkpoints of a training: folders that are there whole or not at all, the newest few of them.

`step-00001000/` holds accelerate's state (weights, optimizer, learning rate, random states), `average.safetensors` and
`run.json`. It is written beside, synced and renamed, so that a crash or a full disk leaves the one before.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InputError
from ..files import cannot_write, sync_folder

AVERAGE, RUN = "average.safetensors", "run.json"


@dataclass(frozen=True)
class State:
    """A checkpoint that can be resumed."""

    folder: Path
    step: int


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them; in a distributed run every process calls the same."""

    def __init__(self, folder: Path, accelerator, keep: int):
        self.folder, self.accelerator, self.keep = folder, accelerator, keep

    def newest(self) -> Path | None:
        """The folder of the last whole checkpoint; None before the first."""
        found = sorted(path for path in self.folder.glob("step-*") if (path / RUN).is_file())
        return found[-1] if found else None

    def last(self, fixed: dict, examples: int) -> State | None:
        """The checkpoint to go on from, or None at the beginning.

        fixed: the settings that a continuation must share; examples: those of a step. Raises InputError where the
        checkpoint is of a training with others (listing the differences), or damaged.
        """
        folder = self.newest()
        if folder is None:
            return None
        fixed = json.loads(json.dumps(fixed))  # as they were written: lists, no tuples
        try:
            kept = json.loads((folder / RUN).read_text())
            before, step = kept["identity"], kept["step"]  # "identity": what `fixed` is called in run.json
        except (ValueError, KeyError) as error:
            raise _damaged(folder, error) from None
        differences = [
            f"{name} was {before.get(name)!r} and is {fixed.get(name)!r}"
            for name in sorted(fixed)  # what only the run has is of an earlier version and decides nothing now
            if before.get(name) != fixed.get(name)
        ]
        if differences:
            raise InputError(
                f"{self.folder.parent} holds a training with another configuration: {'; '.join(differences)}. Set them "
                "back to go on, or choose another folder with run=FOLDER."
            )
        if kept["examples"] != examples:
            processes, world = kept["processes"], self.accelerator.num_processes
            raise InputError(
                f"{self.folder.parent} was trained with {kept['examples']} examples a step ({processes} processes), "
                f"but batch_size x accumulation x {world} processes are {examples}; start {processes} processes, or "
                "set batch_size or accumulation so that the product is the same."
            )
        return State(folder, step)

    def load_average(self, state: State, module: nn.Module) -> None:
        """Put the averaged weights of a checkpoint into a module. InputError where it is damaged."""
        try:
            tensors = load_file(state.folder / AVERAGE)
            module.load_state_dict(tensors)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise _damaged(state.folder, error) from None

    def load(self, state: State) -> None:
        """Put weights, optimizer, learning rate and random states of a checkpoint into what accelerate has prepared.

        InputError where it is damaged.
        """
        try:
            self.accelerator.load_state(str(state.folder))
        except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise _damaged(state.folder, error) from None

    def save(self, step: int, average: dict[str, Tensor], fixed: dict, examples: int) -> Path:
        """Write a checkpoint whole or not at all, then delete the oldest; returns its folder.

        InputError where it cannot be written.
        """
        target = self.folder / f"step-{step:08d}"
        if self.newest() == target:  # stopped right after it was saved
            return target
        aside = self.folder / f".{target.name}.part"
        accelerator = self.accelerator
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
        accelerator.wait_for_everyone()
        try:
            aside.mkdir(parents=True, exist_ok=True)
            accelerator.save_state(str(aside))
            if accelerator.is_main_process:
                save_file({name: value.contiguous() for name, value in average.items()}, aside / AVERAGE)
                run = {"step": step, "examples": examples, "processes": accelerator.num_processes, "identity": fixed}
                (aside / RUN).write_text(json.dumps(run, indent=2))
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save says RuntimeError when a disk is full
            # Raised at once, whatever the other processes wait for: the launcher ends them.
            shutil.rmtree(aside, ignore_errors=True)
            kept = self.newest()
            left = f" The checkpoint before it is whole: {kept}." if kept else ""
            raise InputError(f"{cannot_write(target, error)}{left}") from error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _sync(aside)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(aside, target)
            sync_folder(self.folder)
            for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        accelerator.wait_for_everyone()
        return target


def _damaged(folder: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{folder} is damaged ({reason}); delete it to go on from the one before.")


def _sync(folder: Path) -> None:
    """Put everything in a folder on the disk before this returns."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
