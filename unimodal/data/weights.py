"""Records in the order of training, where every source may have a share of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import grain
import numpy as np

from unimodal.errors import UsageError


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Records `start` … `start + count - 1` of a source."""

    source: Any  # of all records
    start: int  # place of the first
    count: int  # of records

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.source[self.start + range(self.count)[index]]


def parts_of(source: Any) -> tuple[tuple[int, float], ...]:
    """Records and weight of each part of a source, one part after another; () where every record counts the same."""
    return tuple(getattr(source, "parts", ()))


def refuse_weights(source: Any, what: str) -> None:
    """Raises UsageError for a source with weights, where `what` cannot keep them."""
    if parts_of(source):
        raise UsageError(f"the weights of joined sources cannot be kept in {what}: leave out ?weight=")


def endless(source: Any, seed: int) -> grain.MapDataset:
    """All records again and again, every epoch in an order of its own.

    With weights every part shuffles and repeats by itself, and after n records part i has given n · w_i / Σ w, to within
    one for each part.
    """
    parts = parts_of(source)
    if not parts:
        return grain.MapDataset.source(source).shuffle(seed=seed).repeat()
    words, start, streams = np.random.SeedSequence(seed).generate_state(len(parts)), 0, []
    for (count, _), word in zip(parts, words, strict=True):
        streams.append(grain.MapDataset.source(_Stretch(source, start, count)).shuffle(seed=int(word)).repeat())
        start += count
    return grain.MapDataset.mix(streams, [weight for _, weight in parts])
