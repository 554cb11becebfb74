"""Columns beside files: `metadata.csv`, `captions.tsv` and the like, one row for each file, by its `file_name`."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from unimodal.data.tables import MOST_BYTES
from unimodal.errors import UsageError

NAMES = ("metadata.jsonl", *(f"{n}.{e}" for n in ("metadata", "captions", "transcripts") for e in ("csv", "tsv")))
KEY = "file_name"
KEYS = (KEY, "filename", "file", "path")
"""Columns that name the file; the first of them that a table has."""
csv.field_size_limit(MOST_BYTES)  # as of tables: a caption may be longer than Python's 131,072 characters
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][-+]?\d{1,3})?")

Row = dict[str, Any]


def read_rows(tables: Collection[Path], files: Collection[Path]) -> dict[Path, Row]:
    """File → its other columns, over all `tables`. A `file_name` counts from the folder that its table lies in.

    Values of JSON stay what they are. A column of csv in which every value is a whole number, or every one a number,
    over all tables, becomes that, but for `text`; 007 is no number. Columns that a row leaves out are None.

    Raises UsageError, naming table and line, for a table that cannot be read, a file that is named twice or is not
    among `files`, and for a folder with both kinds of table.
    """
    known, rows = set(files), {}
    spelled: dict[str, list[Row]] = {}  # column → rows of csv that have it
    for table in sorted(tables):
        beside = [other.name for other in sorted(tables) if other.parent == table.parent]
        if len(beside) > 1:
            raise UsageError(f"{table.parent} has both {beside[0]} and {beside[1]}: keep one")
        for line, row in _jsonl(table) if table.suffix == ".jsonl" else _csv(table):
            where = f"{table}, line {line}"
            key = next((key for key in KEYS if isinstance(row.get(key), str)), None)
            if key is None:
                raise UsageError(f"{where}: no {KEY}; the columns are {', '.join(sorted(row))}")
            name = row.pop(key)
            path = table.parent / name.replace("\\", "/")
            if path not in known:
                raise UsageError(f"{where}: there is no file {name} to read in {table.parent}")
            if path in rows:
                raise UsageError(f"{where}: {name} is named twice")
            rows[path] = row
            for column in row if table.suffix != ".jsonl" else ():
                spelled.setdefault(column, []).append(row)
    for column, having in spelled.items():
        _to_numbers(column, having)
    columns = sorted({column for row in rows.values() for column in row})
    return {path: {column: row.get(column) for column in columns} for path, row in rows.items()}


def _to_numbers(column: str, rows: list[Row]) -> None:
    for kind, pattern in ((int, _WHOLE), (float, _NUMBER)):
        if column != "text" and all(pattern.fullmatch(row[column]) for row in rows):
            for row in rows:
                row[column] = kind(row[column])
            return
        # Not so for 007, which is a name.
        if kind is int and any(re.fullmatch(r"-?0\d+", row[column]) for row in rows):
            return


def _csv(table: Path) -> Iterator[tuple[int, Row]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        plain: Any = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if table.suffix == ".tsv" else {}
        reader = csv.DictReader(file, strict=True, **plain)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UsageError(f"{table}, line {reader.line_num}: expected {len(reader.fieldnames or ())} values")
                yield reader.line_num, dict(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{table}, line {reader.line_num}: not a table of UTF-8 text ({error})") from error


def _jsonl(table: Path) -> Iterator[tuple[int, Row]]:
    try:
        lines = table.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{table} is not UTF-8 text (byte {error.start})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{table}, line {number}: not JSON ({error})") from error
        if not isinstance(row, Mapping):
            raise UsageError(f"{table}, line {number}: expected an object such as {{{KEY!r}: …}}")
        yield number, dict(row)
