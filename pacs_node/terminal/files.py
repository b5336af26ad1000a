"""Rows in files: a file is whole or not there. Parquet needs the extra `parquet`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pacs_node.errors import UserError

Row = Mapping[str, Any]

_ROWS_AT_ONCE = 10_000  # of a row group
_FLOATS = ("probability", "highest_probability", "threshold", "novelty", "age", "seconds_to_delivery")
_INTEGERS = (
    *("report_revision", "image_rows", "image_columns", "bits_stored", "tries", "status"),
    *("images_scored", "images_not_scored", "images_waiting"),
    *("is_newest", "is_replaced", "is_rescore"),
)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Return a context with the path of a new file that takes the place of `path` at its end.

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def parquet_writer() -> Callable[[Iterable[Row], Sequence[str], Path], None]:
    """Return what writes Parquet.

    Raises
    ------
    UserError
        If the extra is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise UserError("Parquet needs an extra: pip install 'pacs-node[parquet]'.") from error

    def write(rows: Iterable[Row], columns: Sequence[str], path: Path) -> None:
        schema = pa.schema([(name, _kind(pa, name)) for name in columns])
        left = iter(rows)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while some := list(islice(left, _ROWS_AT_ONCE)):
                writer.write_table(pa.Table.from_pylist([dict(row) for row in some], schema=schema))

    return write


def _kind(pa: Any, name: str) -> Any:
    """Return the type of a column, the same whatever the rows are."""
    if name.endswith("_at"):
        return pa.timestamp("us", tz="UTC")
    if name in _FLOATS:
        return pa.float64()
    return pa.int64() if name in _INTEGERS else pa.string()
