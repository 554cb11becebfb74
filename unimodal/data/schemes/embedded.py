"""`embedded:emoji`, `embedded:speech`, `embedded:book`: the small real sets that come with the library."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from unimodal.data.address import Address
from unimodal.data.dataset import Source
from unimodal.data.records import open_array_record
from unimodal.errors import UsageError

FORM = "embedded:emoji|speech|book"
OPTIONS: dict[str, str] = {}
FOLDER = Path(__file__).parent.parent / "embedded"
NAMES = ("emoji", "speech", "book")
EMOJI_GROUPS = (
    "smileys & emotion",
    "people & body",
    "animals & nature",
    "food & drink",
    "travel & places",
    "activities",
    "objects",
    "symbols",
    "flags",
)
"""Group names of `embedded:emoji`; a record's `label` is the place of its `group` here."""


def splits(address: Address) -> tuple[str, ...]:
    """All have the same."""
    return ("train", "validation")


def open_split(address: Address, split: str | None) -> Source:
    """The records. Raises UsageError for another name or split."""
    if address.path not in NAMES:
        raise UsageError(f"no embedded data {address.path!r}: there is {', '.join(NAMES)}")
    source = open_array_record(FOLDER / address.path, split or "train")
    return dataclasses.replace(source, classes=EMOJI_GROUPS) if address.path == "emoji" else source
