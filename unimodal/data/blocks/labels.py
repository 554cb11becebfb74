"""Classes, as a task's config describes them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unimodal.data.blocks.inputs import Part, find_column
from unimodal.data.marked import marks
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec
from unimodal.data.values import class_names, readable
from unimodal.data.values import column as read_column
from unimodal.errors import UsageError

logger = logging.getLogger(__name__)

OBVIOUS = ("label", "class", "group", "category", "target")


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
        return self._numbered(source, segments).names

    @functools.cached_property
    def _known(self) -> dict[tuple[str, str], _Numbered]:
        # Every example asks: what is found by going through all records must be found once. It goes to workers, too.
        return {}

    def _numbered(self, source: str, segments: str = "") -> _Numbered:
        if (source, segments) not in self._known:
            found = _found(source, "train", self.column, segments)
            names = self._checked_names(source, found)
            numbers = {name: number for number, name in reversed([*enumerate(names)])}
            self._known[source, segments] = _Numbered(names, numbers, found.own, found.named)
        return self._known[source, segments]

    def _checked_names(self, source: str, found: _Found) -> tuple[str, ...]:
        if self.classes:
            there = {str(value) for value in found.values if value is not None}  # of the classes, some may be left out
            lacking = there - set(self.classes)
            missing = [name for name in found.names if name in lacking] if found.named else []
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

    def present(self, source: str) -> tuple[int, ...]:
        """The numbers of the classes that training has examples of."""
        return tuple(int(number) for number in np.unique(self.known(source, "train")))

    def given_names(self, source: str) -> tuple[str, ...]:
        """The classes' names by number, without the data where the config gives them."""
        return self.classes or self.names(source)

    def learned(self, source: str, segments: str = "") -> dict[str, Any]:
        """The fields that the data filled in, with which a model can be used where the data is not."""
        return {"classes": list(self.names(source, segments))}

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
        field = find_column(record, self.column, OBVIOUS, "a class")
        where, own = f"record {record['id']!r}", self._numbered(source).own
        value = _class(record[field], field, where)
        # Numbers may stand for names, and the config may have the names in an order of its own.
        return self.number_of(source, _own_name(value, own, where), record["id"])

    def number_of(self, source: str, name: str | int, where: str, segments: str = "") -> int:
        """The number of a class that the data calls `name`."""
        known = self._numbered(source, segments)
        names, numbers = known.names, known.numbers
        if known.words:  # a number among words is a word, and not the place of another one
            name = str(name)
        if isinstance(name, int):
            if not 0 <= name < len(names):
                raise UsageError(f"{where}: label {name} is not among {len(names)} classes, 0 … {len(names) - 1}")
            return name
        if name not in numbers:
            raise UsageError(f"{where}: class {name!r} is not among the {len(names)} classes {_some(names)}")
        return numbers[name]

    def numbers(self, source: str, split: str, segments: str = "") -> np.ndarray:
        """The number of every record's class, int32 `[N]`, -1 for records that cannot be read. Raises UsageError for a
        class that training lacks."""
        return np.array(
            [
                -1 if name is None else self.number_of(source, name, f"{source} {split}, record {i}", segments)
                for i, name in enumerate(_found(source, split, self.column, segments).values)
            ],
            np.int32,
        )

    def known(self, source: str, split: str, segments: str = "") -> np.ndarray:
        """`numbers` of the records that can be read."""
        numbers = self.numbers(source, split, segments)
        return numbers[numbers >= 0]

    def check(self, source: str, segments: str = "") -> None:
        """Compare the splits: a class that only one of them has would be scored as if all were well."""
        names = self.names(source, segments)
        train, valid = (np.unique(self.known(source, split, segments)) for split in ("train", "validation"))
        if len(unseen := np.setdiff1d(valid, train)):
            raise UsageError(
                f"{source}: class {names[unseen[0]]!r} has examples in validation, but none to train on; "
                "add some, or take it out of validation"
            )
        if len(train) < 2:
            raise UsageError(
                f"{source}: all examples are of class {names[train[0]]!r}; classification needs two or more"
            )
        if len(valid) == 1:
            logger.warning(
                "%s: all of validation is of class %r: always answering it would be right", source, names[valid[0]]
            )
        elif len(absent := np.setdiff1d(train, valid)):
            missing = _some([names[number] for number in absent])
            logger.warning(
                "%s: validation has no example of %s: what is learned of that is not scored", source, missing
            )


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """The classes of a source."""

    names: tuple[str, ...]  # by number
    numbers: Mapping[str, int]  # by name
    own: tuple[str, ...]  # the names that numbers in the column stand for; (): they stand for nothing
    words: bool  # the column holds names, or numbers that stand for some


@dataclasses.dataclass(frozen=True)
class _Found:
    """The contents of a split's column."""

    values: tuple[str | int | None, ...]  # None: the record cannot be read
    names: tuple[str, ...]  # of all classes, in order
    named: bool  # the column holds names, not numbers
    own: tuple[str, ...] = ()  # the names that its numbers stand for, where the source says


@functools.cache
def _found(uri: str, split: str, column: str, segments: str) -> _Found:
    source = open_source(uri, split)
    if segments:
        values: tuple[str | int | None, ...] = tuple(text for found in marks(source, segments) for _, _, text in found)
        return _Found(values, tuple(natural_order({str(value) for value in values})), True)
    field = find_column(readable(source), column, OBVIOUS, "a class")
    read = enumerate(read_column(source, field))
    values = tuple(None if value is None else _class(value, field, f"record {i} of {split}") for i, value in read)
    there = [value for value in values if value is not None]
    if not there:
        raise UsageError(f"{uri} {split}: no record can be read")
    if known := class_names(source, field):
        named = (None if v is None else _own_name(v, known, f"record {i} of {split}") for i, v in enumerate(values))
        return _Found(tuple(named), known, True, known)
    if all(isinstance(value, int) for value in there):
        most = max(v for v in there if isinstance(v, int)) + 1
        return _Found(values, tuple(str(i) for i in range(most)), False)
    words = tuple(None if value is None else str(value) for value in values)
    return _Found(words, tuple(natural_order({str(value) for value in there})), True)


def _own_name(value: str | int, names: tuple[str, ...], where: str) -> str | int:
    """The name that a number stands for, where the source names its classes. Raises UsageError for one that has none."""
    if not names or isinstance(value, str):
        return value
    if value >= len(names):
        raise UsageError(f"{where}: label {value} is not among the {len(names)} classes that the source names")
    return names[value]


def _class(value: Any, field: str, where: str) -> str | int:
    if isinstance(value, np.integer | bool | np.bool_):
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str | int):
        raise UsageError(f"{where}: column {field!r} holds no class, but {value!r}")
    if isinstance(value, int) and value < 0:
        raise UsageError(f"{where}: label {value} is below 0, which means no label; leave the record out")
    return value


def natural_order(names: Iterable[str]) -> list[str]:
    """Names in sorted order; where all are whole numbers, by size, so that "2" comes before "10"."""
    names = list(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
