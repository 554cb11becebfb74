"""Examples: records of a source, and the transform that makes an example of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from unimodal.data.bucketing import BucketedBatches, Buckets
from unimodal.data.order import endless, endless_places, seeds_of
from unimodal.data.spec import STAND_IN
from unimodal.data.stacking import Batch, CutBatches, GlobalBatches
from unimodal.errors import UsageError

Transform = Callable[[Any, np.random.Generator], dict[str, Any]]

EVALUATION_SEED = 0  # evaluation draws are part of the metric's definition, so they do not follow the run's seed


class Source(Protocol):
    """Records by index (grain's RandomAccessDataSource): each a dict with a stable string under "id"."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Examples(Protocol):
    """Examples to make batches of: a `Dataset`, or several mixed."""

    def __len__(self) -> int: ...

    def stream(self, seed: int, batch: int = 1) -> grain.MapDataset: ...

    def batches(self, seed: int, batch_size: int, rows: Sequence[int]) -> grain.MapDataset: ...

    def ordered(self) -> grain.MapDataset: ...


@dataclasses.dataclass(frozen=True)
class Made:
    """A source of examples that are made already. `as_is` is the transform of its records."""

    arrays: Batch = dataclasses.field(repr=False)  # [N, …] by name, and "id" [N]

    def __len__(self) -> int:
        return len(self.arrays["id"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[index] for name, array in self.arrays.items()}


def as_is(record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The transform of records that are examples."""
    return {name: value for name, value in record.items() if name != "id"}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source of records and the transform `(record, rng) -> dict of arrays` that makes an example of one.

    The transform must be pure but for `rng`, and must give the same keys, shapes and dtypes for every record.
    """

    source: Source  # of records
    transform: Transform  # (record, rng) → arrays by name
    buckets: Buckets | None = None  # training batches of like length, cut to it

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example `index` as evaluation sees it."""
        example: Any = self.ordered()[index]
        return example

    def map(self, function: Transform) -> Dataset:
        """The same records with `function(example, rng)` applied after the transform, drawing on the same rng."""
        first = self.transform
        return dataclasses.replace(self, transform=lambda record, rng: function(first(record, rng), rng))

    def stream(self, seed: int, batch: int = 1) -> grain.MapDataset:
        """The endless stream of examples for training: every epoch all records, in an order of its own. batch: examples of a
        step, for joined sources whose weights change with it.

        Each example carries the `id` of its record, a string, beside its arrays.
        """
        order, draws = seeds_of(seed)
        return endless(_non_empty(self.source), order, batch).random_map(self._named, seed=draws)

    def batches(self, seed: int, batch_size: int, rows: Sequence[int]) -> grain.MapDataset:
        """`rows` of each batch of the stream, stacked; of like length where the dataset has buckets."""
        order, draws = seeds_of(seed)
        places = endless_places(_non_empty(self.source), order, batch_size)
        if isinstance(self.source, Made) and self.transform is as_is:
            return CutBatches(places, batch_size, rows, self.source.arrays)
        stream = self.stream(seed, batch_size)
        if self.buckets is None:
            return GlobalBatches(stream, batch_size, rows)
        return BucketedBatches(stream, places, self.buckets, batch_size=batch_size, rows=rows, seed=draws)

    def _named(self, record: Any, rng: np.random.Generator) -> dict[str, Any]:
        return {"id": str(record["id"]), **self.transform(record, rng)}

    def ordered(self) -> grain.MapDataset:
        """One pass in the source's order with a generator fixed per index."""
        return grain.MapDataset.source(_non_empty(self.source)).random_map(self._marked, seed=EVALUATION_SEED)

    def _marked(self, record: Any, rng: np.random.Generator) -> dict[str, Any]:
        made = self.transform(record, rng)
        return {**made, STAND_IN: True} if isinstance(record, Mapping) and record.get(STAND_IN) else made


def _non_empty(source: Source) -> Source:
    if len(source) == 0:
        raise UsageError("the dataset is empty: it needs at least one record")
    return source
