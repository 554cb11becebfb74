"""`open_source(uri, split)`: records from wherever they are, all behind the same two methods.

| uri | what |
|---|---|
| `embedded:emoji`, `embedded:speech`, `embedded:book` | the small real sets that come with the library |
| `array_record:DIR` | msgpack maps written by `write_array_record`: DIR/SPLIT.array_record, whole or in shards |
| `tfds:NAME[:CONFIG][@DATA_DIR][?rate=HZ]` | a prepared TensorFlow Datasets set in ArrayRecord form; TensorFlow is not needed |
| `folder:DIR` | image, sound or text files, flat or in one subfolder per class, with captions or columns beside them |
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from unimodal.data.folder import open_folder
from unimodal.data.pipeline import Source
from unimodal.data.records import open_array_record, write_array_record
from unimodal.data.tfds import open_tfds
from unimodal.errors import UsageError

__all__ = ["EMOJI_GROUPS", "class_names", "column", "first", "open_source", "write_array_record"]

EMBEDDED = Path(__file__).parent / "embedded"
EMBEDDED_NAMES = ("emoji", "speech", "book")

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

SCHEMES = ("embedded", "array_record", "tfds", "folder")


def open_source(uri: str, split: str) -> Source:
    """The records of one split, by index. Every record is a dict with a stable string under "id".

    Reading is lazy: opening costs a directory listing or a file header. See the module's table for the forms of `uri`.

    Raises UsageError, in one line, for an unknown scheme, name or split, for missing or empty data, and for a
    missing optional package.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f"; did you mean {near[0]}:?" if near else ""
        raise UsageError(f"unknown data source {uri!r}: expected one of {', '.join(s + ':…' for s in SCHEMES)}{hint}")
    if not rest:
        raise UsageError(f"data source {uri!r} names nothing after the colon")
    if scheme == "embedded":
        if rest not in EMBEDDED_NAMES:
            raise UsageError(f"no embedded data {rest!r}: there is {', '.join(EMBEDDED_NAMES)}")
        source = open_array_record(EMBEDDED / rest, split)
        return dataclasses.replace(source, classes=EMOJI_GROUPS) if rest == "emoji" else source
    if scheme == "array_record":
        return open_array_record(Path(rest).expanduser(), split)
    if scheme == "folder":
        return open_folder(Path(rest).expanduser(), split)
    return open_tfds(rest, split)


@dataclasses.dataclass(frozen=True)
class _First:
    source: Source
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[range(self.count)[index]]


def first(source: Source, count: int) -> Source:
    """The first `count` records, for learning from few. Raises UsageError if there are not so many, or none."""
    if not 1 <= count <= len(source):
        raise UsageError(f"the first {count} records were asked for, of {len(source)}")
    return _First(source, count)


def class_names(source: Source, column: str = "label") -> tuple[str, ...]:
    """The names that the numbers under `column` stand for, in order: those of class folders over all splits, of
    DIR/classes.txt beside ArrayRecord files, of a TFDS ClassLabel. () where the source does not say."""
    found: Any = source
    while not hasattr(found, "class_names"):
        if not hasattr(found, "source"):
            return ()
        found = found.source  # of `first` and `cached`
    return found.class_names(column)


def column(source: Source, name: str) -> list[Any]:
    """The values of all records under `name`. Of folders no picture or sound is read for it; else every record is.

    Raises UsageError for a record without, naming it and what it has.
    """
    if isinstance(source, _First):
        return column(source.source, name)[: source.count]
    reader = getattr(source, "column", None)
    if reader is not None:
        return reader(name)
    values = []
    for i in range(len(source)):
        record = source[i]
        if name not in record:
            raise UsageError(f"record {record['id']} has no {name!r}: there is {', '.join(sorted(record))}")
        values.append(record[name])
    return values
