"""`jsonl:FILE`: one JSON object a line, UTF-8. Paths of pictures and sounds in it are opened."""

from __future__ import annotations

import json
from typing import Any

from unimodal.data.address import Address
from unimodal.data.dataset import Source
from unimodal.data.tables import open_tables, splits_of, text_table
from unimodal.errors import RecordError

FORM = "jsonl:FILE|GLOB|DIR"
OPTIONS = {"root": "the folder from which paths in cells count"}
SUFFIXES = (".jsonl", ".ndjson", ".json")


def splits(address: Address) -> tuple[str, ...]:
    """List splits by the names of the files in a folder; () for one file."""
    return splits_of(address, SUFFIXES)


def open_split(address: Address, split: str | None) -> Source:
    """One record a line."""
    return open_tables(address, split, SUFFIXES, lambda path: text_table(path, parse))


def parse(line: bytes, where: str) -> dict[str, Any]:
    """A line as a record. Raises RecordError for what is no object of JSON."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise RecordError(f'{where}: {type(row).__name__}, where an object such as {{"text": …}} was expected')
    return row
