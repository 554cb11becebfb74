"""`csv:FILE`: a table with a line of column names, UTF-8, cells between commas, quoted where they hold any (RFC 4180)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

from unimodal.data.address import Address
from unimodal.data.dataset import Source
from unimodal.data.tables import MOST_BYTES, TextTable, first_record, open_tables, splits_of, text_table
from unimodal.errors import RecordError, UsageError

FORM = "csv:FILE|GLOB|DIR"
OPTIONS = {
    "root": "the folder from which paths in cells count",
    "columns": "names of the columns, joined by commas, for a file without a line of names",
    "separator": "what stands between cells: one character, or semicolon, as `;` joins sources",
}
SUFFIXES = (".csv",)
csv.field_size_limit(MOST_BYTES)  # of Python's own reader, which refuses a cell of more than 131,072 characters
_SPELT = {"semicolon": ";", "tab": "\t"}  # separators that are hard to write


def splits(address: Address) -> tuple[str, ...]:
    """List splits by the names of the files in a folder; () for one file."""
    return splits_of(address, SUFFIXES)


def open_split(address: Address, split: str | None) -> Source:
    """One record a row. Cells are texts."""
    return open_tables(address, split, SUFFIXES, partial(open_file, address=address, separator=",", quoted=True))


def open_file(path: str, *, address: Address, separator: str, quoted: bool) -> TextTable:
    """One table. `quoted`: whether double quotes hold cells together. Raises UsageError for columns named twice."""
    separator = _SPELT.get(asked := address.options.get("separator", separator), asked)
    if len(separator) != 1:
        raise UsageError(f"{address}: separator={separator!r} should be one character")
    given = address.options.get("columns")
    if given is not None:
        names = given.split(",")
    else:
        try:
            names = cells_of(first_record(path), separator, quoted, f"{path}, first line")
        except RecordError as error:
            raise UsageError(str(error)) from error
    if len(set(names)) < len(names) or not all(names):
        raise UsageError(f"{path}: each column needs a name of its own, found {', '.join(map(repr, names))}")
    if len(names) == 1 and (other := next((name for name, mark in _SPELT.items() if mark in names[0]), None)):
        raise UsageError(f"{path}: its one column is {names[0]!r}: if columns are separated so, add ?separator={other}")
    parse = partial(row_of, names=tuple(names), separator=separator, quoted=quoted)
    return text_table(path, parse, quoted=quoted, skip=0 if given is not None else 1)


def row_of(line: bytes, where: str, *, names: Sequence[str], separator: str, quoted: bool) -> dict[str, Any]:
    """A row by the names of its columns. Raises RecordError for more or fewer cells."""
    found = cells_of(line, separator, quoted, where)
    if len(found) != len(names):
        raise RecordError(f"{where}: {len(found)} cells, where the table has {len(names)} columns")
    return dict(zip(names, found, strict=True))


def cells_of(line: bytes, separator: str, quoted: bool, where: str) -> list[str]:
    """The cells of one record. Raises RecordError for what is not UTF-8, or no row."""
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: not UTF-8 (byte {error.start})") from error
    if not quoted:
        return text.split(separator)
    try:
        # A record may hold lines' ends between quotes, so all of it is handed over at once.
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise RecordError(f"{where}: not a row of cells ({error})") from error
    if len(rows) != 1:
        raise RecordError(f"{where}: {len(rows)} rows, where one was expected")
    return rows[0]
