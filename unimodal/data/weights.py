"""Records in the order of training, where every source may have a share of its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from unimodal.data.shares import Changing, Weight, shares
from unimodal.errors import UsageError

_BLOCK = 64  # examples whose places are worked out together


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


class _Interleaved(grain.MapDataset):
    """Endless streams, in shares that change."""

    def __init__(self, streams: Sequence[grain.MapDataset], changing: Changing):
        super().__init__(streams)
        self._changing = changing
        self._block = functools.lru_cache(maxsize=16)(lambda n: changing.stretch(n * _BLOCK, _BLOCK))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Interleaved, (list(self._parents), self._changing)

    def __len__(self) -> int:
        return len(self._parents[0])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        source, place = self._block(index // _BLOCK)[index % _BLOCK]
        return self._parents[source][place]


def parts_of(source: Any) -> tuple[tuple[int, float | Weight], ...]:
    """Records and weight of each part of a source, one part after another; () where every record counts the same."""
    return tuple(getattr(source, "parts", ()))


def refuse_weights(source: Any, what: str) -> None:
    """Raises UsageError for a source with weights, where `what` cannot keep them."""
    if parts_of(source):
        raise UsageError(f"the weights of joined sources cannot be kept in {what}: leave out ?weight=")


def endless(source: Any, seed: int, batch: int = 1) -> grain.MapDataset:
    """All records again and again, every epoch in an order of its own.

    With weights every part shuffles and repeats by itself, and at every moment each has had its share of the examples, to
    within one (`shares`). batch: examples of a step, for weights that change with it.
    """
    parts = parts_of(source)
    if not parts:
        return grain.MapDataset.source(source).shuffle(seed=seed).repeat()
    words, start, streams = np.random.SeedSequence(seed).generate_state(len(parts)), 0, []
    for (count, _), word in zip(parts, words, strict=True):
        streams.append(grain.MapDataset.source(_Stretch(source, start, count)).shuffle(seed=int(word)).repeat())
        start += count
    weights = [weight for _, weight in parts]
    found = shares(weights, batch)
    if isinstance(found, Changing):
        return _Interleaved(streams, found)
    return grain.MapDataset.mix(streams, found.weights)
