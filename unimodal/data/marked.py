"""Marked stretches of longer recordings as records of their own: phrases to transcribe, phones to tell apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from unimodal.data.cache import cached
from unimodal.data.dataset import Source
from unimodal.data.shares import refuse_weights
from unimodal.data.values import id_at
from unimodal.errors import UsageError

Mark = tuple[int, int, str]
"""Start and end in milliseconds, and what is heard between them."""


@dataclasses.dataclass(frozen=True)
class _Segments:
    source: Source
    recordings: Source  # the same, decoded
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
        if start * self.rate // 1000 > len(samples):
            raise UsageError(f"{recording['id']}: the mark at {start} ms lies behind its end ({len(samples)} samples)")
        kept = samples[max(0, first) : max(0, last)]
        if self.window is not None and len(kept) < self.window:
            kept = np.pad(kept, (max(0, -first), self.window - len(kept) - max(0, -first)))
        return {"id": f"{recording['id']}/{start}", "audio": kept, "text": text}

    def id_at(self, index: int) -> str:
        """The id of a stretch, whose recording is not read for it."""
        where, (start, *_) = self.places[index]
        return f"{id_at(self.source, where)}/{start}"


def marks(source: Source, field: str) -> list[list[Mark]]:
    """The marks that each record has under `field`. Raises UsageError for a record without, and for a
    mark that is none."""
    found = []
    for i in range(len(source)):
        record = source[i]
        if not isinstance(record.get(field), list):
            raise UsageError(
                f"{record['id']}: no marks under {field!r}; the record has {', '.join(sorted(record))}; segments= (nothing) "
                f"takes recordings as they are"
            )
        found.append([_checked_mark(mark, f"{record['id']}: {field}") for mark in record[field]])
    return found


def _checked_mark(mark: Any, where: str) -> Mark:
    try:
        start, end, text = mark
        checked = int(start), int(end), str(text)
    except (TypeError, ValueError):
        raise UsageError(
            f"{where}: a mark should be [start, end, text], times in milliseconds, but is {mark!r}"
        ) from None
    if not 0 <= checked[0] <= checked[1]:
        raise UsageError(f"{where}: a mark from {checked[0]} to {checked[1]} ms; expected 0 ≤ start ≤ end")
    return checked


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
    refuse_weights(source, "marked stretches")
    places = tuple((i, mark) for i, found in enumerate(marks(source, field)) for mark in found)
    if not places:
        raise UsageError(f"no record has a mark under {field!r}")
    return _Segments(source, cached(source, decode), places, rate, window)
