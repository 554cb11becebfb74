"""One process's rows of each global batch, from a stream of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from unimodal.errors import UsageError

Batch = dict[str, np.ndarray]


class GlobalBatches(grain.MapDataset):
    """Element s is `rows` of global batch s, stacked."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(examples)
        self._batch_size = batch_size
        self._rows = rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        first = index * self._batch_size
        return self._joined([self._parent[first + row] for row in self._rows])

    def _joined(self, elements: list[Any]) -> Batch:
        return stack(elements)


class CutBatches(GlobalBatches):
    """The same from a stream of places, where all examples are made already and lie in arrays `[N, …]`."""

    def __init__(self, places: grain.MapDataset, batch_size: int, rows: Sequence[int], arrays: Batch):
        super().__init__(places, batch_size, rows)
        self._arrays = arrays

    def _joined(self, elements: list[int]) -> Batch:
        return {name: array[elements] for name, array in self._arrays.items()}


def stack(examples: Sequence[Any]) -> Batch:
    """The arrays of some examples, each `[len(examples), …]`. Raises UsageError where an array's shape differs."""
    first = examples[0]
    batch: Batch = {}
    for key in first:
        try:
            batch[key] = np.stack([example[key] for example in examples])
        except (ValueError, KeyError) as error:
            found = sorted({str(np.shape(example[key])) if key in example else "missing" for example in examples})
            raise UsageError(f"array {key!r} differs between examples of a batch: {' and '.join(found)}") from error
    return batch


def checked_rows(batch_size: int, rows: Sequence[int] | None) -> Sequence[int]:
    """Rows of a batch, None for all. Raises UsageError for those that it does not have."""
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, found {batch_size}")
    if rows is None:
        return range(batch_size)
    if not rows or not set(rows) <= set(range(batch_size)):
        raise UsageError(f"rows {list(rows)} are not some of the {batch_size} of a batch")
    return rows
