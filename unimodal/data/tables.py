"""Tables of one row a record in text files: what jsonl, csv and tsv have in common."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from unimodal.data import cells
from unimodal.data.address import SPLITS, Address
from unimodal.data.dividing import mixed
from unimodal.data.files import expand, is_folder, open_bytes, parent, read_at, splits_in
from unimodal.data.line_index import keys_in, line_index
from unimodal.errors import RecordError, UsageError

MOST_BYTES = 1 << 26
"""The longest record that is read: 64 MiB."""

Parse = Callable[[bytes, str], dict[str, Any]]
"""The bytes of a record, and its name for messages → its cells. Raises RecordError."""


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Rows of one file."""

    path: str  # of the file
    index: np.ndarray = dataclasses.field(repr=False, compare=False)  # bytes where rows begin
    parse: Parse = dataclasses.field(repr=False, compare=False)  # a line → cells
    skip: int = 0  # records at the top that are none, such as a header

    def __len__(self) -> int:
        return len(self.index) - self.skip

    def row(self, place: int) -> dict[str, Any]:
        """The cells of row `place`, as they are written."""
        found = self.index[place + self.skip]
        where = f"{self.path}, record {place + 1}"
        if found["length"] > MOST_BYTES:
            raise RecordError(f"{where}: {found['length']:,} bytes are more than {MOST_BYTES:,}")
        return self.parse(read_at(self.path, int(found["start"]), int(found["length"])), where)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one table after another. A record's `id` is its cell `id`, else "FILE:ROW", counted from 1."""

    tables: tuple[Any, ...]  # in order
    folder: str  # that paths in cells count from
    where: str  # the source, for messages

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, row = self._row(range(len(self))[index])
        return {**cells.opened(row, self.folder, name), "id": name}

    def column(self, name: str) -> list[Any]:
        """The values under `name`, without opening files. None for rows that cannot be read."""
        found = []
        for index in range(len(self)):
            try:
                key, row = self._row(index)
            except RecordError:
                found.append(None)
                continue
            if name != "id" and name not in row:
                there = ", ".join(sorted(row))
                raise UsageError(f"record {key} of {self.where} has no {name!r}: there is {there}")
            found.append(key if name == "id" else row[name])
        return found

    def id_at(self, index: int) -> str:
        """The row's id, or its place where it cannot be read."""
        try:
            return self._row(index)[0]
        except RecordError:
            which = int(np.searchsorted(self._ends, index, side="right"))
            table = self.tables[which]
            return f"{os.path.basename(table.path)}:{index - int(self._ends[which] - len(table)) + 1}"

    def keys(self) -> np.ndarray:
        """A hash of what each row says, so that equal rows are in one split."""
        keys = [keys_in(table.index)[table.skip :] for table in self.tables]
        return mixed(keys[0] if len(keys) == 1 else np.concatenate(keys))

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names of numbers, () where the tables do not say."""
        found = {getattr(table, "class_names", lambda _: ())(column) for table in self.tables}
        return found.pop() if len(found) == 1 else ()

    def _row(self, index: int) -> tuple[str, dict[str, Any]]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        table = self.tables[which]
        place = index - int(self._ends[which] - len(table))
        row = table.row(place)
        own = row.get("id")
        return (str(own) if own is not None else f"{os.path.basename(table.path)}:{place + 1}"), row

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(table) for table in self.tables])


def paths_of(address: Address, split: str | None, suffixes: tuple[str, ...]) -> list[str]:
    """The files of a split, or all. Raises UsageError where there are none."""
    if "{split}" in address.path:
        return expand(address.path.replace("{split}", split or "*"))
    if not is_folder(address.path):
        return expand(address.path)
    found = splits_in(address.path, suffixes)
    if split is not None and split not in found:
        there = ", ".join(sorted(found)) or "nothing"
        raise UsageError(f"no split {split!r} in {address.path}: it has {there}")
    paths = [path for name, files in sorted(found.items()) if split in (None, name) for path in files]
    if not paths:
        raise UsageError(f"no files in {address.path} that end in {' or '.join(suffixes)}")
    return paths


def splits_of(address: Address, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """The splits that files are named after; () where there are none, and the records are to be divided."""
    if "{split}" in address.path:
        return tuple(address.names.get(name, name) for name in SPLITS)
    if not is_folder(address.path):
        return ()
    found = splits_in(address.path, suffixes)
    wanted = {*SPLITS, *address.names.values()} & set(found)
    return tuple(sorted(found)) if wanted else ()


def open_tables(address: Address, split: str | None, suffixes: tuple[str, ...], make: Callable[[str], Any]) -> Rows:
    """The rows of all files of a split. `make` opens one."""
    paths = paths_of(address, split, suffixes)
    folder = address.options.get("root") or (address.path if is_folder(address.path) else parent(paths[0]))
    rows = Rows(tuple(make(path) for path in paths), folder, str(address))
    if not len(rows):
        raise UsageError(f"{address} has no records")
    return rows


def text_table(path: str, parse: Parse, *, quoted: bool = False, skip: int = 0) -> TextTable:
    """Open one file."""
    return TextTable(path, line_index(path, quoted=quoted), parse, skip)


def first_record(path: str) -> bytes:
    """The bytes of a csv file's first record, for its header."""
    index = line_index(path, quoted=True)
    if not len(index):
        raise UsageError(f"{path} is empty: expected a line of column names")
    with open_bytes(path) as file:
        file.seek(int(index[0]["start"]))
        return file.read(int(index[0]["length"]))
