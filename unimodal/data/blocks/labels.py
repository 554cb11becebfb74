"""Classes, as a task's config describes them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unimodal.data.blocks.inputs import Part, find_column
from unimodal.data.pipeline import ArraySpec, Source
from unimodal.data.segments import marks
from unimodal.data.sources import open_source
from unimodal.errors import UsageError

OBVIOUS = ("label", "class", "group", "category", "target")
NAMES = ("group", "class", "category", "class_name", "label_name")


@dataclasses.dataclass(frozen=True)
class Labels:
    """One class per record, as a name or a number.

    Names come from the data: from class folders, from names in the column, or from a column of names beside the
    numbers. What the config gives must agree with them. A class that occurs in one split only is refused.
    """

    column: str = ""  # "": the first of label, class, group, category, target
    classes: tuple[str, ...] = ()  # names in the order of their numbers; (): those of the data
    count: int = 0  # how many classes there are, where building the model should not wait for the data; 0: see the data

    def size(self, source: str, segments: str = "") -> int:
        """The number of classes. Reads the data only where the config gives neither names nor count."""
        return len(self.classes) or self.count or len(self.names(source, segments))

    def names(self, source: str, segments: str = "") -> tuple[str, ...]:
        """The classes' names by number, checked against the training data.

        Raises UsageError where the config names too few or other classes than the data has.
        """
        found = _found(source, "train", self.column, segments)
        if self.classes:
            missing = [name for name in found.names if name not in self.classes] if found.named else []
            if missing:
                raise UsageError(
                    f"labels.classes lacks {_some(missing)} of {source}; the classes there are {_some(found.names)}"
                )
            if not found.named and len(found.names) > len(self.classes):
                raise UsageError(
                    f"{source} has labels up to {len(found.names) - 1}, but labels.classes has {len(self.classes)} names"
                )
            return self.classes
        if self.count and len(found.names) > self.count:
            raise UsageError(f"labels.count is {self.count}, but {source} has {len(found.names)} classes")
        return found.names + tuple(str(i) for i in range(len(found.names), self.count))

    def part(self, source: str, name: str = "label") -> Part:
        """int32 under `name`. Classes that only one split has are an error, found before the first step."""
        return Part(
            {name: ArraySpec((), np.int32, 0, self.size(source))},
            lambda record: self.number(source, record),
            lambda value, rng, training: {name: np.int32(value)},
            lambda: self.check(source),
        )

    def number(self, source: str, record: Mapping[str, Any]) -> int:
        """The number of a record's class. Raises UsageError for one that is not among the classes."""
        return self.number_of(source, _name_of(record, self.column), record["id"])

    def number_of(self, source: str, name: str | int, where: str, segments: str = "") -> int:
        """The number of a class that the data calls `name`."""
        names = self.names(source, segments)
        if isinstance(name, int):
            if not 0 <= name < len(names):
                raise UsageError(f"{where}: label {name} is not among {len(names)} classes, 0 … {len(names) - 1}")
            return name
        if name not in names:
            raise UsageError(f"{where}: class {name!r} is not among the {len(names)} classes {_some(names)}")
        return names.index(name)

    def numbers(self, source: str, split: str, segments: str = "") -> np.ndarray:
        """The number of every record's class, int32 `[N]`. Raises UsageError for a class that training lacks."""
        return np.array(
            [
                self.number_of(source, name, f"{source} {split}, record {i}", segments)
                for i, name in enumerate(_found(source, split, self.column, segments).values)
            ],
            np.int32,
        )

    def check(self, source: str, segments: str = "") -> None:
        """Compare the splits: a class that only one of them has would be scored as if all were well."""
        names = self.names(source, segments)
        train, valid = (np.unique(self.numbers(source, split, segments)) for split in ("train", "validation"))
        if len(unseen := np.setdiff1d(valid, train)):
            raise UsageError(
                f"{source}: class {names[unseen[0]]!r} has examples in validation, but none to train on; "
                "add some, or take it out of validation"
            )
        if len(train) < 2:
            raise UsageError(
                f"{source}: all examples are of class {names[train[0]]!r}; classification needs two or more"
            )


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a split's column holds: each record's class, all names in order, and whether they are names or numbers."""

    values: tuple[str | int, ...]
    names: tuple[str, ...]
    named: bool


@functools.cache
def _found(uri: str, split: str, column: str, segments: str) -> _Found:
    source = open_source(uri, split)
    if segments:
        values: tuple[str | int, ...] = tuple(text for found in marks(source, segments) for _, _, text in found)
        return _Found(values, tuple(natural_order({str(value) for value in values})), True)
    values, names = _classes(source, column)
    known = tuple(getattr(source, "classes", ()) or ())
    if known:
        return _Found(tuple(known[v] if isinstance(v, int) else v for v in values), known, True)
    if all(isinstance(value, int) for value in values):
        most = max(v for v in values if isinstance(v, int)) + 1
        if names:
            return _Found(values, tuple(names.get(i, str(i)) for i in range(most)), True)
        return _Found(values, tuple(str(i) for i in range(most)), False)
    return _Found(values, tuple(natural_order({str(value) for value in values})), True)


def _classes(source: Source, column: str) -> tuple[tuple[str | int, ...], dict[int, str]]:
    """Each record's class, and the names of the numbers, from a column beside them, where there is one."""
    values, names = [], {}
    labels = getattr(source, "labels", None)  # a source may know them without opening every file
    if labels is not None and not column:
        return tuple(labels), {}
    for i in range(len(source)):
        record = source[i]
        value = _name_of(record, column)
        values.append(value)
        if isinstance(value, int):
            beside = next((record[n] for n in NAMES if isinstance(record.get(n), str)), None)
            if beside is not None:
                names.setdefault(value, beside)
    return tuple(values), names if len(set(names.values())) == len(names) else {}


def _name_of(record: Mapping[str, Any], column: str) -> str | int:
    field = find_column(record, column, OBVIOUS, "a class")
    value = record[field]
    if isinstance(value, np.integer | bool | np.bool_):
        return int(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str | int):
        raise UsageError(f"record {record['id']!r}: column {field!r} holds no class, but {value!r}")
    if isinstance(value, int) and value < 0:
        raise UsageError(
            f"record {record['id']!r}: label {value} is below 0, which means no label; leave the record out"
        )
    return value


def natural_order(names: Iterable[str]) -> list[str]:
    """Names in sorted order; where all are whole numbers, by size, so that "2" comes before "10"."""
    names = list(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
