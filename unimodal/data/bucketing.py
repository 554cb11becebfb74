"""Batches of examples of like length, cut to what the longest of them needs: the alternative to packing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from unimodal.data.stacking import stack

POOL = (
    64  # batches whose examples are sorted together: batches are of like length, and still differ from epoch to epoch
)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """lengths: of each record of a source, int64 [N]. edges: the lengths that batches are cut to, ascending, the last one
    that of a whole example. cut: gives a batch's arrays at a length."""

    lengths: np.ndarray = dataclasses.field(repr=False, compare=False)
    edges: tuple[int, ...]
    cut: Callable[[Mapping[str, np.ndarray], int], dict[str, np.ndarray]]

    def edge(self, longest: int) -> int:
        """The shortest edge that holds so much."""
        return next((edge for edge in self.edges if edge >= longest), self.edges[-1])


class BucketedBatches(grain.MapDataset):
    """Element s is `rows` of batch s. The POOL · batch examples of a stretch of the stream are sorted by length, cut into
    batches, and the batches drawn in a random order. So every epoch still has every record, and batch s is a pure function of s.

    places: the stream's record numbers. Every process cuts a batch alike, by its longest example in any process.
    """

    def __init__(
        self,
        examples: grain.MapDataset,
        places: grain.MapDataset,
        buckets: Buckets,
        *,
        batch_size: int,
        rows: Sequence[int],
        seed: int,
    ):
        super().__init__(examples)
        self._places, self._buckets, self._size, self._rows = places, buckets, batch_size, rows
        self._seed = seed
        self._pool = functools.lru_cache(maxsize=4)(self._sorted)

    def __reduce__(self) -> tuple[Any, ...]:
        options: dict[str, Any] = dict(batch_size=self._size, rows=self._rows, seed=self._seed)
        return functools.partial(BucketedBatches, **options), (self._parents[0], self._places, self._buckets)

    def __len__(self) -> int:
        return len(self._parents[0]) // self._size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        order, longest = self._pool(index // POOL)
        chosen = order[index % POOL]
        batch = stack([self._parents[0][int(chosen[row])] for row in self._rows])
        return self._buckets.cut(batch, self._buckets.edge(int(longest[index % POOL])))

    def _sorted(self, pool: int) -> tuple[np.ndarray, np.ndarray]:
        """The stream's positions in each batch of a pool, [POOL,batch], and the longest length in each."""
        first, count = pool * POOL * self._size, POOL * self._size
        records: Any = [self._places[first + i] for i in range(count)]
        lengths = self._buckets.lengths[np.array(records)]
        order = np.argsort(lengths, kind="stable").reshape(POOL, self._size)
        shuffled = np.random.default_rng([self._seed, pool]).permutation(POOL)
        return first + order[shuffled], lengths[order[shuffled]].max(axis=1)
