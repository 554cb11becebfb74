"""Marked stretches of longer recordings as records of their own: phrases to transcribe, phones to tell apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from unimodal.data.pipeline import Source, cached
from unimodal.errors import UsageError

Mark = tuple[int, int, str]
"""Start and end in milliseconds, and what is heard between them."""


@dataclasses.dataclass(frozen=True)
class _Segments:
    recordings: Source
    places: tuple[tuple[int, Mark], ...]
    rate: int
    window: int | None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        where, (start, end, text) = self.places[index]
        recording = self.recordings[where]
        first, last = (time * self.rate // 1000 for time in (start, end))
        if self.window is not None:
            first = (first + last - self.window) // 2
            last = first + self.window
        samples = recording["audio"]
        kept = samples[max(0, first) : max(0, last)]
        if self.window is not None and len(kept) < self.window:
            kept = np.pad(kept, (max(0, -first), self.window - len(kept) - max(0, -first)))
        return {"id": f"{recording['id']}/{start}", "audio": kept, "text": text}


def marks(source: Source, field: str) -> list[list[Mark]]:
    """The marks that each record has under `field`. Raises UsageError for a record without."""
    found = []
    for i in range(len(source)):
        record = source[i]
        if not isinstance(record.get(field), list):
            raise UsageError(f"{record['id']}: no marks under {field!r}; the record has {', '.join(sorted(record))}")
        found.append([(int(start), int(end), str(text)) for start, end, text in record[field]])
    return found


def segments(
    source: Source,
    decode: Callable[[dict[str, Any]], dict[str, Any]],
    field: str,
    rate: int,
    *,
    window: int | None = None,
) -> Source:
    """The marked stretches of all recordings, in order, as records of id, audio and text.

    decode: record → id and audio `[samples]` at `rate` Hz; done once for each recording. window: that many samples
    around the middle of each stretch (silence beyond the ends) instead of the stretch itself. Reads every record's
    marks at once. Raises UsageError as `marks` does, and if nothing is marked.
    """
    places = tuple((i, mark) for i, found in enumerate(marks(source, field)) for mark in found)
    if not places:
        raise UsageError(f"no record has a mark under {field!r}")
    return _Segments(cached(source, decode), places, rate, window)
