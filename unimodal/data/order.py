"""The order of training: which record comes at which position, a pure function of (seed, position).

Nothing is kept of what came before, so a run goes on at any position at once. Joined sources may have a share each.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from unimodal.data.shares import Changing, parts_of, shares
from unimodal.errors import UsageError

_BLOCK = 64  # examples whose places are worked out together
_ROUNDS = 4  # of index_shuffle's cipher, as many as grain's own shuffle has


def order_seed(seed: int, task: str) -> int:
    """Derive the seed of a task's order, so that two tasks on one source see different examples at a step."""
    return int(np.random.SeedSequence([checked_seed(seed), zlib.crc32(task.encode())]).generate_state(1)[0])


def seeds_of(seed: int) -> tuple[int, int]:
    """The seeds of an order and of what examples draw."""
    # Hash the seed first: epoch e is shuffled with seed + e, so consecutive seeds would share epochs.
    order, draws = (int(word) for word in np.random.SeedSequence(checked_seed(seed)).generate_state(2))
    return order, draws


def checked_seed(seed: int) -> int:
    """The seed. Raises UsageError for a negative one."""
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, found {seed}")
    return int(seed)


def endless(source: Any, seed: int, batch: int = 1) -> grain.MapDataset:
    """All records again and again, every epoch in an order of its own.

    With weights every part shuffles and repeats by itself, and at every moment each has had its share of the examples, to
    within one (`shares`). batch: examples of a step, for weights that change with it.
    """
    parts = parts_of(source)
    if not parts:
        return _Shuffled(source, seed)
    words, start, streams = np.random.SeedSequence(seed).generate_state(len(parts)), 0, []
    for (count, _), word in zip(parts, words, strict=True):
        streams.append(_Shuffled(_Stretch(source, start, count), int(word)))
        start += count
    weights = [weight for _, weight in parts]
    found = shares(weights, batch)
    if isinstance(found, Changing):
        return _Interleaved(streams, found)
    return grain.MapDataset.mix(streams, found.weights)


def endless_places(source: Any, seed: int, batch: int = 1) -> grain.MapDataset:
    """The numbers of the records that `endless` gives."""
    return endless(_Places(len(source), parts_of(source)), seed, batch)


class _Shuffled(grain.MapDataset):
    """The order of `grain.MapDataset.source(source).shuffle(seed).repeat()`, without that chain's statistics of every element,
    which take 20 µs."""

    def __init__(self, source: Any, seed: int):
        super().__init__()
        self._source, self._seed, self._count = source, seed, len(source)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(index, self._count)
        return self._source[index_shuffle(place, self._count - 1, (self._seed + epoch) % 2**32, _ROUNDS)]


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


@dataclasses.dataclass(frozen=True)
class _Places:
    """The numbers of records, in place of the records."""

    count: int
    parts: tuple[tuple[int, Any], ...]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return range(self.count)[index]
