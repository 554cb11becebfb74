"""`parquet:FILE`: columns as Apache Parquet holds them, pictures and sounds as bytes or paths. Needs pyarrow."""

from __future__ import annotations

import functools
import json
import threading
from typing import Any

import numpy as np

from unimodal.data.address import Address
from unimodal.data.dataset import Source
from unimodal.data.dividing import hashed
from unimodal.data.files import is_remote, open_bytes
from unimodal.data.tables import Rows, open_tables, splits_of
from unimodal.errors import RecordError, UsageError

FORM = "parquet:FILE|GLOB|DIR"
OPTIONS = {"root": "the folder from which paths in cells count"}
SUFFIXES = (".parquet",)
_HELD = 8  # row groups in memory


def splits(address: Address) -> tuple[str, ...]:
    """List splits by the names of the files in a folder; () for one file."""
    return splits_of(address, SUFFIXES)


def open_split(address: Address, split: str | None) -> Source:
    """One record a row. A row group is read whole, and the last few are kept: small groups are quicker in random order."""
    rows = open_tables(address, split, SUFFIXES, _Table)
    return _ParquetRows(rows.tables, rows.folder, rows.where)


class _ParquetRows(Rows):
    def keys(self) -> np.ndarray:
        """A hash of each row's `id`, or of its place."""
        return hashed(self.column("id"))

    def column(self, name: str) -> list[Any]:
        """The values under `name`; no other column is read."""
        found: list[Any] = []
        for table in self.tables:
            if name != "id" and name not in table.names:
                raise UsageError(f"{table.path} has no column {name!r}: there is {', '.join(sorted(table.names))}")
            if name in table.names:
                values = table.values(name)
                found += map(str, values) if name == "id" else values
            else:
                found += [f"{table.short}:{place + 1}" for place in range(len(table))]
        return found


class _Table:
    """One file. Reopened, not copied, in another process."""

    def __init__(self, path: str):
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UsageError("parquet: needs the package pyarrow: pip install pyarrow") from error
        self.path, self.short = path, path.rsplit("/", 1)[-1]
        try:
            self.file = parquet.ParquetFile(open_bytes(path) if is_remote(path) else path)
        except Exception as error:  # pyarrow has errors of its own for damaged files, here and below
            raise UsageError(f"{path} is not a Parquet file ({_one_line(error)})") from error
        meta = self.file.metadata
        self._ends = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)])
        self.names = tuple(self.file.schema_arrow.names)
        self._lock = threading.Lock()  # a file's reader serves one thread at a time
        self._group = functools.lru_cache(_HELD)(self.file.read_row_group)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Table, (self.path,)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, place: int) -> dict[str, Any]:
        """The cells of a row."""
        group = int(np.searchsorted(self._ends, place, side="right"))
        try:
            with self._lock:
                table = self._group(group)
        except Exception as error:
            raise RecordError(f"{self.path}: row group {group} is damaged ({_one_line(error)})") from error
        first = int(self._ends[group - 1]) if group else 0
        try:  # texts are looked at when they are asked for
            return table.slice(place - first, 1).to_pylist()[0]
        except ValueError as error:
            raise RecordError(f"{self.path}: row {place + 1} is damaged ({_one_line(error)})") from error

    def values(self, column: str) -> list[Any]:
        """All cells of a column. Raises UsageError where they cannot be read."""
        try:
            with self._lock:
                return self.file.read(columns=[column])[column].to_pylist()
        except Exception as error:
            raise UsageError(f"{self.path}: column {column!r} is damaged ({_one_line(error)})") from error

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names that Hugging Face's tables keep beside their schema, () where there are none."""
        told = (self.file.schema_arrow.metadata or {}).get(b"huggingface")
        try:
            features = json.loads(told).get("info", {}).get("features", {}) if told else {}
            return tuple(features.get(column, {}).get("names") or ())
        except (ValueError, AttributeError, TypeError) as error:
            raise UsageError(f"{self.path}: what the table says of its features is damaged") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
