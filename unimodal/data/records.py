"""ArrayRecord files of msgpack maps: the one format that is written here."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgpack
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from grain.sources import ArrayRecordDataSource

from unimodal.errors import RecordError, UsageError

SUFFIX = ".array_record"
_SHARD = re.compile(r"(?P<split>.+?)(?:-(?P<index>\d+)-of-(?P<count>\d+))?")


def write_array_record(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> int:
    """Writes records as one ArrayRecord file (group size 1, zstd) and returns how many.

    A record is a map of str, bytes, int, float, bool, None and lists or maps of these, with a string under "id"
    that no other record has. The file appears under its name only when it is complete.

    Raises UsageError for a missing or repeated id, a value of another type, or no records at all.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    seen: set[str] = set()
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,zstd:19")
    try:
        for record in records:
            writer.write(_packed(record, seen))
        writer.close()
        if not seen:
            raise UsageError(f"no records to write to {path}: give at least one")
        partial.replace(path)
    finally:
        if writer.is_open():
            writer.close()
        partial.unlink(missing_ok=True)
    return len(seen)


def _packed(record: Mapping[str, Any], seen: set[str]) -> bytes:
    name = record.get("id")
    if not isinstance(name, str):
        raise UsageError(f"every record needs a string under 'id', found {name!r}")
    if name in seen:
        raise UsageError(f"record id {name!r} is used twice; ids must be unique")
    seen.add(name)
    try:
        return bytes(msgpack.packb(dict(record), use_bin_type=True) or b"")
    except (TypeError, OverflowError, ValueError) as error:
        raise UsageError(f"record {name!r} cannot be written as msgpack: {error}") from error


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """Records of one split by index. A record without an id gets "SPLIT/INDEX"."""

    split: str  # its name
    names: tuple[str, ...]  # paths of the files
    reader: Any = dataclasses.field(repr=False, compare=False)  # of array_record
    classes: tuple[str, ...] = ()  # what the numbers under `label` stand for; (): nobody says

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # negative indices, and IndexError past the end
        try:
            record = msgpack.unpackb(self.reader[index])
        except (ValueError, RuntimeError, msgpack.UnpackException) as error:
            raise RecordError(f"record {index} of {self._where()} is damaged or not a msgpack map: {error}") from error
        if not isinstance(record, dict):
            raise RecordError(f"record {index} of {self._where()} is a {type(record).__name__}, expected a msgpack map")
        record.setdefault("id", f"{self.split}/{index}")
        return record

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names that the numbers under `column` stand for, () if they stand for nothing."""
        return self.classes if column == "label" else ()

    def _where(self) -> str:
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} … ({len(self.names)} shards)"


def splits_in(directory: Path) -> dict[str, list[Path]]:
    """Split name -> its ArrayRecord files in order, for everything in `directory` named SPLIT[-I-of-N].array_record."""
    found: dict[str, list[Path]] = {}
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        match = _SHARD.fullmatch(path.name.removesuffix(SUFFIX))
        if match:
            found.setdefault(match["split"], []).append(path)
    return found


def open_array_record(directory: Path, split: str) -> ArrayRecords:
    """DIRECTORY/SPLIT.array_record, or all of DIRECTORY/SPLIT-*-of-*.array_record.

    DIRECTORY/classes.txt, if it is there, names the classes in the order of their numbers, one a line.

    Raises UsageError when the directory or the split is not there, a shard is missing, or a file cannot be read.
    """
    if not directory.is_dir():
        raise UsageError(
            f"no directory {directory}: expected one with {split}{SUFFIX} in it; "
            "if a recipe names it, the first lines of the recipe say how to make it"
        )
    found = splits_in(directory)
    if not found:
        raise UsageError(f"no {SUFFIX} files in {directory}: expected {split}{SUFFIX} or {split}-00000-of-N{SUFFIX}")
    if split not in found:
        raise UsageError(f"no split {split!r} in {directory}: it has {', '.join(sorted(found))}")
    paths = found[split]
    _check_shards(directory, split, paths)
    for path in paths:
        if path.stat().st_size == 0:
            raise UsageError(f"{path} is empty: expected an ArrayRecord file with at least one record")
    try:
        reader: Any = ArrayRecordDataSource([str(path) for path in paths])
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{paths[0]} is not a whole ArrayRecord file: {_one_line(error)}") from error
    if len(reader) == 0:
        raise UsageError(f"{paths[0]} has no records: expected at least one")
    return ArrayRecords(split, tuple(str(path) for path in paths), reader, _class_names(directory / "classes.txt"))


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        names = tuple(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error
    if not names or not all(names) or len(set(names)) < len(names):
        raise UsageError(f"{path} should have one class a line, each another one")
    return names


def _check_shards(directory: Path, split: str, paths: list[Path]) -> None:
    marks = [_SHARD.fullmatch(path.name.removesuffix(SUFFIX)) for path in paths]
    indices = [int(mark["index"]) for mark in marks if mark and mark["index"]]
    counts = {int(mark["count"]) for mark in marks if mark and mark["count"]}
    if not counts:
        return
    if len(counts) > 1 or len(indices) != len(paths):
        raise UsageError(f"{directory} mixes different shardings of {split!r}: keep one set of -I-of-N files")
    missing = sorted(set(range(counts.pop())) - set(indices))
    if missing:
        raise UsageError(f"{directory} lacks shard {missing[0]} of split {split!r}: found {len(paths)} files")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
