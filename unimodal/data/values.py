"""Questions to any source that need no examples: its first records, one column, the names of classes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from unimodal.data.dataset import Source
from unimodal.data.shares import refuse_weights
from unimodal.errors import RecordError, UsageError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Some:
    """`count` records of a source: the first ones, or `spread` over all of it at even distances."""

    source: Source  # of all records
    count: int  # of those that are taken
    spread: bool = False  # at even distances

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.place(range(self.count)[index])]

    def place(self, index: int) -> int:
        """The place in the source of record `index`."""
        return int(index) * len(self.source) // self.count if self.spread else int(index)


def first(source: Source, count: int) -> Source:
    """The first `count` records, for learning from few. Raises UsageError if there are not so many, or none."""
    if not 1 <= count <= len(source):
        raise UsageError(f"the first {count} records were asked for, of {len(source)}")
    refuse_weights(source, "its first records")
    return _Some(source, count)


def evenly(source: Source, count: int) -> Source:
    """`count` records at even distances, which a source in the order of its classes has of all of them. Raises UsageError
    if there are not so many, or none."""
    if not 1 <= count <= len(source):
        raise UsageError(f"{count} records were asked for, of {len(source)}")
    refuse_weights(source, "some of its records")
    return _Some(source, count, spread=True)


def class_names(source: Source, column: str = "label") -> tuple[str, ...]:
    """The names that the numbers under `column` stand for, in order: those of class folders over all splits, of
    DIR/classes.txt beside ArrayRecord files, of a TFDS ClassLabel. () where the source does not say."""
    found: Any = source
    while not hasattr(found, "class_names"):
        if not hasattr(found, "source"):
            return ()
        found = found.source  # of `first` and `cached`
    return found.class_names(column)


def id_at(source: Source, index: int) -> str:
    """The id of a record, read or not: as far as its source knows it without reading, else its place."""
    found: Any = source
    if isinstance(found, _Some) and not found.spread:
        found = found.source
    known = getattr(found, "id_at", None)
    return str(index) if known is None else known(index)


def readable(source: Source) -> dict[str, Any]:
    """The first record that can be read, to see which columns there are. Raises the first one's error where none can."""
    problem = None
    for index in range(len(source)):
        try:
            return source[index]
        except RecordError as error:
            problem = problem or error
    raise problem or UsageError("the data source is empty")


def read_all(source: Source, read: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """What `read` makes of each record, one after another, without those that cannot be read."""
    for index in range(len(source)):
        with contextlib.suppress(RecordError):
            yield read(source[index])


def column(source: Source, name: str, places: Iterable[int] | None = None) -> list[Any]:
    """The values of all records under `name`, or of those at `places`. Of folders and tables no picture or sound is read for
    it; else every one of these records is. None for a record that cannot be read.

    Raises UsageError for a record without, naming it and what it has.
    """
    if isinstance(source, _Some):
        return column(source.source, name, map(source.place, range(source.count) if places is None else places))
    reader = getattr(source, "column", None)
    if reader is not None:
        values = reader(name)
        return values if places is None else [values[place] for place in places]
    return read_column(source, name, places)


def read_column(source: Source, name: str, places: Iterable[int] | None = None) -> list[Any]:
    """`column` of a source that cannot do better than to read every record."""
    values = []
    for i in range(len(source)) if places is None else places:
        try:
            record = source[int(i)]
        except RecordError:
            values.append(None)
            continue
        if name not in record:
            raise UsageError(f"record {record['id']} has no {name!r}: there is {', '.join(sorted(record))}")
        values.append(record[name])
    return values


def digest(source: Source) -> str:
    """A digest of the ids, words and numbers of all records, to notice data that has changed. Pictures and sounds, which
    cost most to read, are left out. Raises UsageError where no record can be read."""
    found = hashlib.sha256()
    for name, value in sorted(readable(source).items()):
        if not isinstance(value, bytes | np.ndarray):
            with contextlib.suppress(UsageError):  # what only some records have
                found.update(f"{name} {column(source, name)!r}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()
