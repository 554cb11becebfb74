"""Parts of an example, and how they become a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unimodal.data.cache import cached
from unimodal.data.dataset import Dataset, Source
from unimodal.data.skipped import Where
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec
from unimodal.errors import UsageError


def brought(default: Any) -> Any:
    """A field that belongs to the weights. Where a config leaves it unset (None), it is as the weights of `init_from` were
    trained with, and else the default."""
    return dataclasses.field(default=default, metadata={"brought": True})


@dataclasses.dataclass(frozen=True)
class Part:
    """One array of an example, or a few that belong together."""

    spec: Mapping[str, ArraySpec]  # arrays by name
    read: Callable[[Mapping[str, Any]], Any]  # record → value; runs once per record where memory allows
    # (value, rng, training) → arrays by name; runs every time the record is met
    make: Callable[[Any, np.random.Generator, bool], Mapping[str, Any]]
    check: Callable[[], None] | None = None  # raises UsageError for what would go wrong; runs once, before training


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arrays of one example, and the examples of a split ("train", "validation")."""

    spec: Mapping[str, ArraySpec]  # arrays by name
    dataset: Callable[[str], Dataset]  # split → its examples


def columns(source: str, *parts: Part, open_split: Callable[[str], Source] | None = None) -> Inputs:
    """Examples that hold the arrays of all parts, one for each record of `source`.

    A record that cannot be used is left out, and listed (`data.skipped`). The parts draw on the record's random generator in
    the order in which they are given. `open_split` replaces `open_source(source, split)`.
    """
    # Worker processes get these functions, and nothing of the checks, which may know a task.
    reads, makes = [part.read for part in parts], [part.make for part in parts]

    def read(record: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": record["id"], "parts": tuple(read_part(record) for read_part in reads)}

    def dataset(split: str) -> Dataset:
        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            made: dict[str, Any] = {}
            for make, value in zip(makes, record["parts"], strict=True):
                made.update(make(value, rng, split == "train"))
            return made

        for part in parts:
            if part.check is not None and split == "train":
                part.check()
        opened = open_source(source, split) if open_split is None else open_split(split)
        return Dataset(cached(opened, read, where=Where(source, split)), example)

    return Inputs({name: spec for part in parts for name, spec in part.spec.items()}, dataset)


def noise(count: int, name: str = "noise") -> Part:
    """float32 `[count]` in [0, 1) under `name`, drawn anew whenever a record is met: to choose by on the device. Evaluations
    draw the same every time."""

    def make(_value: None, rng: np.random.Generator, _training: bool) -> dict[str, np.ndarray]:
        return {name: rng.random(count, np.float32)}

    return Part({name: ArraySpec((count,), np.float32)}, lambda _record: None, make)


def find_column(record: Mapping[str, Any], column: str, obvious: Sequence[str], what: str) -> str:
    """The column to read: `column` where it is given, else the first of the obvious names that the record has.

    Raises UsageError, listing the record's columns, where neither is there.
    """
    there = ", ".join(sorted(name for name in record if name != "id"))
    if column:
        if column not in record:
            raise UsageError(f"record {record['id']!r} has no column {column!r} for {what}; it has {there}")
        return column
    for name in obvious:
        if name in record:
            return name
    raise UsageError(
        f"record {record['id']!r} has no column for {what}: none of {', '.join(obvious)}; it has {there}; "
        f"name the right one in the field `column`"
    )
