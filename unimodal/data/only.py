"""Some records of a source: those that have certain values in a column, such as a few of its classes."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from unimodal.data.dataset import Source
from unimodal.data.dividing import Picked
from unimodal.data.values import class_names, column
from unimodal.errors import UsageError


@dataclass(frozen=True)
class Column:
    """What a column says, each value as text."""

    texts: Sequence[str]  # every value once
    codes: np.ndarray  # int32 [N]: each record's place in `texts`, −1 where it has none


_COLUMNS: dict[Hashable, Column] = {}


def only(source: Source, asked: str, where: str, same: Hashable) -> Picked:
    """The records that `asked` names, as COLUMN:VALUE,VALUE: numbers, or words, which may be names of classes.

    Numbers of classes stay what they are there. Raises UsageError for another form, and for a value that no record has.

    Args:
        where: the address, for messages.
        same: tells the source from others. A column is read once for all that are asked of it: tasks that share out the
            classes of a source open it many times.
    """
    name, colon, listed = asked.partition(":")
    wanted = [value.strip() for value in listed.split(",")]
    if not colon or not name or not all(wanted):
        raise UsageError(f"{where}: only={asked} should be COLUMN:VALUE,VALUE, such as label:0,1")
    if (same, name) not in _COLUMNS:
        _COLUMNS[same, name] = _read(source, name)
    found, names = _COLUMNS[same, name], class_names(source, name)
    spelt = {text: code for code, text in enumerate(found.texts)}
    # A number may be asked for by its class's name, unless a value is spelt so itself.
    numbers = {text: code for text, code in spelt.items() if names and text.isdecimal() and int(text) < len(names)}
    spelt = {names[int(text)]: code for text, code in numbers.items()} | spelt
    for value in wanted:
        if value not in spelt:
            near = difflib.get_close_matches(value, list(spelt), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{where}: no record has {name} {value!r}, which only={asked} asks for{hint}")
    return Picked(source, np.flatnonzero(np.isin(found.codes, [spelt[value] for value in wanted])))


def _read(source: Source, name: str) -> Column:
    codes: dict[str, int] = {}
    found = [-1 if value is None else codes.setdefault(_text(value), len(codes)) for value in column(source, name)]
    return Column(list(codes), np.array(found, np.int32))


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
