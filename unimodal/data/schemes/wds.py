"""`wds:SHARDS`: tar files in which the files of one record stand together under one name (WebDataset).

A tar file is read once for the places of its files, which are then kept (see `line_index.kept`): after that every record is read
by itself, so shuffling is over all records, not within a buffer.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tarfile
from typing import Any

import msgpack
import numpy as np

from unimodal.data.address import Address
from unimodal.data.cells import KINDS
from unimodal.data.dataset import Source
from unimodal.data.dividing import hashed
from unimodal.data.files import open_bytes, read_at
from unimodal.data.line_index import kept
from unimodal.data.tables import open_tables, splits_of
from unimodal.errors import RecordError, UsageError

FORM = "wds:TAR|GLOB|DIR, also TAR with {000..099}"
OPTIONS: dict[str, str] = {}
SUFFIXES = (".tar",)
VERSION = 1


def splits(address: Address) -> tuple[str, ...]:
    """List splits by the names of the shards in a folder; () for files."""
    return splits_of(address, SUFFIXES)


def open_split(address: Address, split: str | None) -> Source:
    """One record for each name in the shards, in their order."""
    rows = open_tables(address, split, SUFFIXES, _Shard)
    return Samples(rows.tables, rows.where)


@dataclasses.dataclass(frozen=True)
class Samples:
    """The records of shards. `id` is the name in the shard; what an ending becomes is said by `column_of`."""

    shards: tuple[Any, ...]  # tar files, in order
    where: str  # the source, for messages

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, place = self._at(index)
        return shard.record(place)

    def column(self, name: str) -> list[Any]:
        """The values under `name`."""
        if name == "id":
            return [key for shard in self.shards for key, _ in shard.samples]
        return [self._cell(i, name) for i in range(len(self))]

    def id_at(self, index: int) -> str:
        """The record's name."""
        shard, place = self._at(index)
        return shard.samples[place][0]

    def keys(self) -> np.ndarray:
        """A hash of each record's name."""
        return hashed(self.column("id"))

    def _cell(self, index: int, name: str) -> Any:
        shard, place = self._at(index)
        try:
            record = shard.record(place, name)
            if name not in record:
                there = ", ".join(sorted(shard.record(place)))
                raise UsageError(f"record {record['id']} has no {name!r}: there is {there}")
        except RecordError:
            return None
        return record[name]

    def _at(self, index: int) -> tuple[Any, int]:
        """The shard of a record, and its place there."""
        index = range(len(self))[index]
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self.shards[which], index - int(self._ends[which] - len(self.shards[which]))

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(shard) for shard in self.shards])


class _Shard:
    """One tar file: each record's name, and its files as [ending, first byte, bytes]."""

    def __init__(self, path: str):
        self.path = path
        packed = kept(path, f"tar{VERSION}", lambda: np.frombuffer(msgpack.packb(_samples(path)) or b"", np.uint8))
        self.samples: list[tuple[str, list[tuple[str, int, int]]]] = msgpack.unpackb(packed.tobytes(), use_list=False)

    def __len__(self) -> int:
        return len(self.samples)

    def record(self, place: int, only: str = "") -> dict[str, Any]:
        """only: read no more than may hold this column, as a picture takes far longer than its label."""
        name, files = self.samples[place]
        made: dict[str, Any] = {}
        for ending, start, size in files:
            column = column_of(ending)
            if only and column not in (only, "json"):
                continue
            data = read_at(self.path, start, size)
            if column == "json":
                made = {**_object(data, f"{name}.json"), **made}
            else:
                made[column] = _value(data, ending, column, f"{name}.{ending}")
        return {**made, "id": name}


def column_of(ending: str) -> str:
    """The column that a file becomes: `image`, `audio`, `text`, `label`, else its ending; in `left.jpg`, what is before."""
    first, dot, last = ending.rpartition(".")
    if dot:
        return first
    kind = next((kind for kind, endings in KINDS.items() if f".{ending.lower()}" in endings), None)
    return kind or {"txt": "text", "caption": "text", "transcript": "text", "cls": "label"}.get(ending, ending)


def _value(data: bytes, ending: str, column: str, where: str) -> Any:
    if ending.rpartition(".")[2] not in ("txt", "text", "caption", "transcript", "cls", "id", "json"):
        return data
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: not UTF-8 (byte {error.start})") from error
    return int(text) if column == "label" and text.isdecimal() else text


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({error})") from error
    return found if isinstance(found, dict) else {"json": found}


def _samples(path: str) -> list[tuple[str, list[tuple[str, int, int]]]]:
    """The records of a shard. A record's name is its files' path up to the first dot of the last part."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    try:
        with open_bytes(path) as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                folder, base = os.path.split(member.name)
                name, dot, ending = base.partition(".")
                if member.isfile() and dot and name:
                    found.setdefault(f"{folder}/{name}".lstrip("./"), []).append(
                        (ending, member.offset_data, member.size)
                    )
    except tarfile.TarError as error:
        raise UsageError(
            f"{path} is not a tar file that can be read at any place ({error}); .tar.gz: unpack it"
        ) from error
    return list(found.items())
