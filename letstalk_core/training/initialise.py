"""The beginning of a training from another model's weights, as far as they fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..model.checkpoint import LetsTalkModel, load_checkpoint
from ..model.official import read_official
from ..weights import some_of

Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]  # name, shape in the model, shape in the file


@dataclass(frozen=True)
class InitReport:
    """What initialise_from took from a file and what not; names are those of the model's state dict."""

    source: str
    taken: tuple[str, ...]
    missing: tuple[str, ...]  # in the model, not in the file
    unexpected: tuple[str, ...]  # in the file, not in the model
    mismatched: tuple[Mismatch, ...]  # in both, of different shapes
    taken_parameters: int
    parameters: int  # how many the model has

    def summary(self) -> str:
        """What was taken, in one line."""
        initial = [*self.missing, *(name for name, *_ in self.mismatched)]
        share = 100 * self.taken_parameters / self.parameters
        line = f"taken {len(self.taken)} of {len(self.taken) + len(initial)} tensors ({share:.1f} % of the parameters)"
        line += f" from {self.source}"
        if initial:
            line += f"; {len(initial)} keep their initial values: {some_of(initial)}"
        if self.unexpected:
            line += f"; {len(self.unexpected)} of the file are not used: {some_of(self.unexpected)}"
        return line

    def text(self) -> str:
        """The summary and every name, one a line."""
        mismatched = [f"{name}: {ours} in the model, {theirs} in the file" for name, ours, theirs in self.mismatched]
        groups = {
            "taken": self.taken,
            "initial values, not in the file": self.missing,
            "initial values, of another shape in the file": mismatched,
            "in the file, not used": self.unexpected,
        }
        lines = [self.summary()]
        for title, names in groups.items():
            lines += [f"{title} ({len(names)}):", *(f"  {name}" for name in names)] if names else []
        return "\n".join(lines)


@torch.no_grad()
def initialise_from(model: LetsTalkModel, path: str | Path, **options: int | None) -> InitReport:
    """Take from a checkpoint every tensor whose name and shape are a tensor's of the model; the rest stays as it is.

    path: a .safetensors of this package, of any configuration, or a checkpoint of the official layout (any other
    suffix), for which options are those of model.official.read_official. The transformer and the audio projection are
    taken, not the autoencoder. Call it before adapters are added. Raises CheckpointError where the file cannot be read,
    where an option is needed, and where nothing fits; then the model is as it was.
    """
    ours = Path(path).suffix.lower() == ".safetensors"
    given = (load_checkpoint(path) if ours else read_official(path, **options)).state_dict()
    wanted = model.state_dict()
    both = [name for name in wanted if name in given]
    taken = [name for name in both if wanted[name].shape == given[name].shape]
    if not taken:
        raise CheckpointError(f"{path}: none of its tensors has the name and shape of one of this model's")
    for name in taken:
        wanted[name].copy_(given[name])
    return InitReport(
        source=str(path),
        taken=tuple(taken),
        missing=tuple(name for name in wanted if name not in given),
        unexpected=tuple(name for name in given if name not in wanted),
        mismatched=tuple(
            (name, tuple(wanted[name].shape), tuple(given[name].shape))
            for name in both
            if wanted[name].shape != given[name].shape
        ),
        taken_parameters=sum(wanted[name].numel() for name in taken),
        parameters=sum(value.numel() for value in wanted.values()),
    )
