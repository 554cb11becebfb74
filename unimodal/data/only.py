"""Some records of a source: those that have certain values in a column, such as a few of its classes."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import numpy as np

from unimodal.data.dataset import Source
from unimodal.data.values import class_names, column, id_at
from unimodal.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Only:
    """The records at some places of a source, in its order. Numbers of classes stay what they are there."""

    source: Source  # of all records
    places: np.ndarray  # [N], of those that are taken

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.places[index])]

    def id_at(self, index: int) -> str:
        """The record's id, as far as the source knows it without reading."""
        return id_at(self.source, int(self.places[index]))

    def column(self, name: str) -> list[Any]:
        """The values of these records under `name`."""
        values = column(self.source, name)
        return [values[int(place)] for place in self.places]


def only(source: Source, asked: str, where: str) -> Only:
    """The records that `asked` names, as COLUMN:VALUE,VALUE: numbers, or words, which may be names of classes.

    Reads the whole column once. Raises UsageError for another form, and for a value that no record has.
    """
    name, colon, listed = asked.partition(":")
    wanted = [value.strip() for value in listed.split(",")]
    if not colon or not name or not all(wanted):
        raise UsageError(f"{where}: only={asked} should be COLUMN:VALUE,VALUE, such as label:0,1")
    values, names = column(source, name), class_names(source, name)
    texts = [None if value is None else value.decode() if isinstance(value, bytes) else str(value) for value in values]
    spelt = {text: text for text in texts if text is not None}
    # A number may be asked for by its class's name, unless a value is spelt so itself.
    spelt = {names[int(text)]: text for text in spelt if names and text.isdecimal() and int(text) < len(names)} | spelt
    for value in wanted:
        if value not in spelt:
            near = difflib.get_close_matches(value, [str(known) for known in spelt], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{where}: no record has {name} {value!r}, which only={asked} asks for{hint}")
    taken = {spelt[value] for value in wanted}
    return Only(source, np.array([place for place, text in enumerate(texts) if text in taken], np.int64))
