"""What the first stage of a video's preparation leaves in work/ for the second, where latents are asked for.

A draft is a tar file like a shard, and like it is there whole or not at all; the second stage reads one clip at a time.
It has the pixels as they were cut out. In a shard they are H.264, near to them but not the same, and latents that were
made of those would be of other pixels. So a draft takes width * height * 3 bytes a frame, and is removed once the shard
is there.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..footage.shard_writer import Stretch, encode_frames

DRAFT = ".draft.tar"  # how its name ends


def draft_of(rows: Sequence[dict]) -> str | None:
    """Where the draft of a video lies in the output, of the rows after the first stage; None where there is none."""
    return next((row["stored"] for row in rows if row["stored"].endswith(DRAFT)), None)


def draft_members(stretch: Stretch, keep_frames: bool) -> dict[str, bytes]:
    """The files of a stretch without latents in a draft. The MP4 of a shard is made here too: that needs no GPU."""
    about = {"name": stretch.name, "fps": stretch.fps, "context": stretch.context}
    about |= {"audio_encoder": stretch.audio_encoder}
    about["controls"] = {name: [float(value) for value in track] for name, track in (stretch.controls or {}).items()}
    files = {"json": json.dumps(about).encode()}
    files |= {f"{name}.npy": _npy(getattr(stretch, name)) for name in ("features", "frames", "sound")}
    if keep_frames:
        files["mp4"] = encode_frames(stretch.frames, stretch.fps)
    return files


def read_draft(path: Path) -> Iterator[tuple[Stretch, dict[str, bytes]]]:
    """The stretches of a draft with their pixels, and the files that go into the shard as they are."""
    with tarfile.open(path, "r:") as tar:
        for _, members in itertools.groupby(tar, lambda member: member.name.partition(".")[0]):
            files = {member.name.partition(".")[2]: tar.extractfile(member).read() for member in members}
            arrays = {name: np.load(io.BytesIO(files[f"{name}.npy"])) for name in ("features", "frames", "sound")}
            yield Stretch(**json.loads(files["json"]), **arrays), {name: files[name] for name in files if name == "mp4"}


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()
