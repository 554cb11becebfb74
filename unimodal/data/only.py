"""Some records of a source: those that have certain values in a column, such as a few of its classes."""

from __future__ import annotations

import difflib

import numpy as np

from unimodal.data.dataset import Source
from unimodal.data.dividing import Picked
from unimodal.data.values import class_names, column
from unimodal.errors import UsageError


def only(source: Source, asked: str, where: str) -> Picked:
    """The records that `asked` names, as COLUMN:VALUE,VALUE: numbers, or words, which may be names of classes.

    Reads the whole column once. Numbers of classes stay what they are there. Raises UsageError for another form, and for a
    value that no record has.
    """
    name, colon, listed = asked.partition(":")
    wanted = [value.strip() for value in listed.split(",")]
    if not colon or not name or not all(wanted):
        raise UsageError(f"{where}: only={asked} should be COLUMN:VALUE,VALUE, such as label:0,1")
    values, names = column(source, name), class_names(source, name)
    texts = [
        None if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for value in values
    ]
    spelt = {text: text for text in texts if text is not None}
    # A number may be asked for by its class's name, unless a value is spelt so itself.
    spelt = {names[int(text)]: text for text in spelt if names and text.isdecimal() and int(text) < len(names)} | spelt
    for value in wanted:
        if value not in spelt:
            near = difflib.get_close_matches(value, [str(known) for known in spelt], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{where}: no record has {name} {value!r}, which only={asked} asks for{hint}")
    taken = {spelt[value] for value in wanted}
    return Picked(source, np.array([place for place, text in enumerate(texts) if text in taken], np.int64))
