"""The second stage of a video's preparation, where latents are asked for: a draft becomes a shard with latents.

It is a stage of its own so that cutting, which takes processors, does not occupy a GPU meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from ...autoencoders import find_autoencoder
from ...errors import InputError
from ...picture.autoencoder import Autoencoder
from ..footage.shard_writer import write_shard
from ..footage.stretches import with_latents
from .clip_drafts import draft_of, read_draft
from .clip_filters import UNREADABLE
from .video_clips import (
    Encoded,
    NoVideosFault,
    Task,
    Unusable,
    blaming,
    make_folder,
    rejected,
    remove_written,
    write_rows,
)


def add_latents(task: Task, rows: list[dict], gpu: bool) -> list[dict]:
    """The rows of a video after the second stage; `rows` are those of prepare_video, and stay where it left no draft.

    gpu: encode on one, if torch sees one. A video that cannot be encoded is one rejected row. Raises InputError where
    nothing can be written, and where the GPU fails.
    """
    draft = draft_of(rows)
    if draft is None:
        return rows
    output, known = Path(task.output), {name: rows[0][name] for name in ("identity", "split", "content", "key")}
    shard = f"{known['split']}/{known['key']}.tar"
    try:
        make_folder((output / shard).parent)
        write_shard(output / shard, _encoded(task, output / draft, gpu))
        rows = [row | {"stored": shard if row["stored"] == draft else row["stored"]} for row in rows]
    except NoVideosFault as error:
        raise InputError(str(error)) from error
    except Unusable as error:
        remove_written(output, known["key"], output / shard)
        rows = [rejected(UNREADABLE, str(error)) | known]
    write_rows(output, rows)
    (output / draft).unlink(missing_ok=True)
    return rows


def _encoded(task: Task, draft: Path, gpu: bool) -> Iterator[Encoded]:
    autoencoder, digest = _autoencoder(task.settings.autoencoder, gpu)
    for stretch, files in read_draft(draft):
        with blaming(task.source), _blaming_gpu(autoencoder):
            members = with_latents(stretch, autoencoder, digest, keep_frames=False).members() | files
        yield Encoded(members)


@functools.cache
def _autoencoder(path: str, gpu: bool) -> tuple[Autoencoder, str]:
    """With its encoder_digest. Loaded once in a process."""
    autoencoder = find_autoencoder(path)
    digest = autoencoder.encoder_digest
    if gpu and torch.cuda.is_available():
        with _blaming_gpu(None):
            autoencoder = autoencoder.to("cuda")
    return autoencoder, digest


@contextlib.contextmanager
def _blaming_gpu(autoencoder: Autoencoder | None) -> Iterator[None]:
    """What fails on a GPU is no video's fault: clips are all of one size, and once it has failed it fails for all."""
    try:
        yield
    except RuntimeError as error:  # also torch.OutOfMemoryError
        if autoencoder is not None and next(autoencoder.parameters()).device.type == "cpu":
            raise
        said = re.sub(r"\s+", " ", str(error))
        raise NoVideosFault(f"The GPU cannot encode ({said}); free its memory or hide it, and go on.") from error
