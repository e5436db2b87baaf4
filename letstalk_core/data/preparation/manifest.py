"""The manifest: a Parquet file with a row for every clip, kept and rejected. The same clips give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from ...files import check_file, write_durably
from .preparation_settings import VERSION
from .video_clips import MEASURES

MANIFEST = "manifest.parquet"
_TEXT = ("video", "identity", "split", "content", "key", "stored", "thumbnail")


def _schema():
    import pyarrow

    text, number, flag = pyarrow.string(), pyarrow.float64(), pyarrow.bool_()
    fields = [(name, text) for name in _TEXT] + [("clip", pyarrow.int32()), ("start", number)]
    fields += [(name, number) for name in MEASURES] + [("kept", flag), ("sound", flag)]
    fields += [("width", pyarrow.int32()), ("height", pyarrow.int32()), ("fps", number)]
    fields += [("filters", pyarrow.list_(text)), ("reasons", pyarrow.list_(text))]
    return pyarrow.schema(fields, metadata={"letstalk_preparation": str(VERSION)})


def write_manifest(path: Path, rows: Sequence[dict]) -> None:
    """Write rows, sorted by video and clip. InputError where pyarrow is missing or nothing can be written."""
    pyarrow = _pyarrow()
    rows = sorted(rows, key=lambda row: (row["video"], row["key"], row["clip"]))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, _schema()), buffer, compression="zstd")
    write_durably(path, buffer.getvalue())


def read_manifest(path: str | Path) -> list[dict]:
    """The rows of a manifest. InputError where it is missing, damaged, or of another version."""
    pyarrow, path = _pyarrow(), check_file(path, "manifest")
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is a damaged Parquet file; prepare again, which makes it anew.") from error
    version = (table.schema.metadata or {}).get(b"letstalk_preparation", b"none").decode()
    if version != str(VERSION) or not table.schema.equals(_schema()):
        raise InputError(
            f"{path} is a manifest of version {version}, and this is version {VERSION}; prepare again into another "
            "folder."
        )
    return table.to_pylist()


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("The manifest is written with pyarrow; install it with: pip install pyarrow") from None
    return pyarrow
