"""Turns records into batches: examples, their order, and the iterator that checkpoints keep.

The order is a pure function of (seed, task, step). Step s of a run is the global batch of the examples at positions
s*B … s*B + B - 1 of one endless stream, whatever the number of processes: process p of P reads rows
p*B/P … (p+1)*B/P - 1 of it and nothing else. An example's random generator depends on (seed, position) only.
"""

from __future__ import annotations

import dataclasses
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from unimodal.data.bucketing import BucketedBatches, Buckets
from unimodal.data.weights import endless, parts_of
from unimodal.data.workers import WorkerBatches
from unimodal.errors import UsageError

STAND_IN = "_stand_in"
"""Marks a record that takes the place of one that cannot be used; its examples count nothing in an evaluation."""

Record = Mapping[str, Any]
Example = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]
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

    def ordered(self) -> grain.MapDataset: ...


class BatchIterator(Protocol):
    """Endless batches with a position that can be saved. The state is JSON-serialisable."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of one example, and the range of made-up data: `low <= value < high`; a bool is either."""

    shape: tuple[int, ...]  # without the batch dimension
    dtype: Any  # numpy's
    low: float = 0  # least value of made-up data
    high: float = 1  # bound of made-up data


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
        order, draws = _words(seed)
        return endless(_non_empty(self.source), order, batch).random_map(self._named, seed=draws)

    def batches(self, seed: int, batch_size: int, rows: Sequence[int]) -> grain.MapDataset:
        """`rows` of each batch of the stream, stacked; of like length where the dataset has buckets."""
        stream = self.stream(seed, batch_size)
        if self.buckets is None:
            return _GlobalBatches(stream, batch_size, rows)
        order, draws = _words(seed)
        places = endless(_Places(len(self), parts_of(self.source)), order, batch_size)
        options: dict[str, Any] = dict(batch_size=batch_size, rows=rows, seed=draws, stack=_stack)
        return BucketedBatches(stream, places, self.buckets, **options)

    def _named(self, record: Any, rng: np.random.Generator) -> dict[str, Any]:
        return {"id": str(record["id"]), **self.transform(record, rng)}

    def ordered(self) -> grain.MapDataset:
        """One pass in the source's order with a generator fixed per index."""
        return grain.MapDataset.source(_non_empty(self.source)).random_map(self._marked, seed=EVALUATION_SEED)

    def _marked(self, record: Any, rng: np.random.Generator) -> dict[str, Any]:
        made = self.transform(record, rng)
        return {**made, STAND_IN: True} if isinstance(record, Mapping) and record.get(STAND_IN) else made


@dataclasses.dataclass(frozen=True)
class _Places:
    """The numbers of records, in place of the records."""

    count: int
    parts: tuple[tuple[int, Any], ...]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return range(self.count)[index]


class _GlobalBatches(grain.MapDataset):
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
        return _stack([self._parent[first + row] for row in self._rows])


def train_batches(
    dataset: Examples,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    prefetch: bool = True,
    threads: int = 2,
    workers: int = 0,
) -> BatchIterator:
    """Make endless training batches, shuffled again each epoch.

    `next` gives `rows` of the next batch (None: all) as arrays `[len(rows), …]`. Each of several processes reads the rows
    that its devices hold. The iterator is grain's, or one over `workers` processes. `get_state()` is a small JSON-serialisable dict that
    counts batches taken, not batches read ahead, and is the same for both. After `set_state` the batches continue bit for
    bit. With `prefetch`, `threads` threads prepare whole batches ahead of time, which does not change the result.

    Raises UsageError for rows that the batch does not have, an empty dataset or a negative seed.
    """
    rows = _checked_rows(batch_size, rows)
    if isinstance(dataset, Dataset):
        batches = dataset.batches(seed, batch_size, rows)
    else:
        batches = _GlobalBatches(dataset.stream(seed, batch_size), batch_size, rows)
    if workers:
        return WorkerBatches(batches, workers)
    threads = max(1, threads) if prefetch else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(batches.to_iter_dataset(options))


def _words(seed: int) -> tuple[int, int]:
    """The seeds of an order and of what examples draw."""
    # Hash the seed first: grain shuffles epoch e with seed + e, so consecutive seeds would share epochs.
    order, draws = (int(word) for word in np.random.SeedSequence(_checked_seed(seed)).generate_state(2))
    return order, draws


def order_seed(seed: int, task: str) -> int:
    """Derive the seed of a task's order, so that two tasks on one source see different examples at a step."""
    return int(np.random.SeedSequence([_checked_seed(seed), zlib.crc32(task.encode())]).generate_state(1)[0])


class TaskBatches:
    """The batches of one task, in an order that depends on the run's seed and the task's name.

    make: gives the batches for a seed. epochs: how often each source has been gone through after so many batches.

    In earlier versions the order depended on the seed alone. The iterator's state of such a run has no "order", and the
    run continues in the old order.
    """

    def __init__(
        self,
        make: Callable[[int], BatchIterator],
        seed: int,
        task: str,
        epochs: Callable[[int], Mapping[str, float]] = lambda batches: {},
    ):
        self._make, self._seed, self._own, self._epochs = make, seed, True, epochs
        self._batches = make(order_seed(seed, task))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def epochs(self) -> Mapping[str, float]:
        """How often each source has been gone through by now, by name; nothing where that is not known."""
        return self._epochs(int(self._batches.get_state().get("next_index", 0)))

    def get_state(self) -> dict[str, Any]:
        state = self._batches.get_state()
        return {**state, "order": "seed and task"} if self._own else state

    def set_state(self, state: dict[str, Any]) -> None:
        if "order" not in state and self._own:
            self._batches, self._own = self._make(self._seed), False
        self._batches.set_state({name: value for name, value in state.items() if name != "order"})


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """A finite sequence of batches, in order, that can be iterated again."""

    examples: grain.MapDataset[Any]  # made as they are asked for
    order: np.ndarray  # [N], the examples' places in the split
    batch_size: int  # of the global batch
    rows: Sequence[int]  # of each batch that this process reads

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        places = [index * self.batch_size + row for row in self.rows]
        chosen = np.array([self.order[min(place, len(self.order) - 1)] for place in places], np.int32)
        found: list[Any] = [self.examples[int(place)] for place in chosen]
        examples: list[dict[str, Any]] = [dict(example) for example in found]
        used = [
            place < len(self.order) and not e.pop(STAND_IN, False) for place, e in zip(places, examples, strict=True)
        ]
        batch, weight = _stack(examples), np.array(used, dtype=np.float32)
        return batch | {"index": chosen, "example_weight": weight}

    def __iter__(self) -> Iterator[Batch]:
        return iter(grain.MapDataset.source(self).to_iter_dataset(grain.ReadOptions(2, 4)))


def eval_batches(
    dataset: Examples,
    *,
    batch_size: int,
    limit: int | None = None,
    rows: Sequence[int] | None = None,
) -> EvalBatches:
    """Make a sequence of equal batches (or `rows` of each) of all examples, once and in order.

    limit: so many examples instead, drawn from the whole split, the same each time. (The first ones of a folder would
    be of one class.) The last batch repeats the last example to be full. In every batch `example_weight` `[rows]` float32
    is 1 for true examples and 0 for repeated ones and stand-ins, and `index` `[rows]` int32 is their place in the split. The
    generator of each example depends on its place alone.

    Raises UsageError as `train_batches` does, and for `limit` < 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1 example or None for all, found {limit}")
    rows = _checked_rows(batch_size, rows)
    examples = dataset.ordered()
    order = np.arange(len(examples))
    if limit is not None and limit < len(examples):
        order = np.sort(np.random.default_rng(EVALUATION_SEED).permutation(order)[:limit])
    return EvalBatches(examples, order, batch_size, rows)


@dataclasses.dataclass(frozen=True)
class _FakeExamples:
    spec: Mapping[str, ArraySpec]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": str(index)}

    def make(self, record: Record, rng: np.random.Generator) -> Example:
        return {name: _fake_array(spec, rng) for name, spec in self.spec.items()}


def fake_batches(
    spec: Mapping[str, ArraySpec], batch_size: int, seed: int, rows: Sequence[int] | None = None
) -> BatchIterator:
    """Make endless random batches of the right shapes and dtypes, within each spec's range.

    Rows and state are those of `train_batches`.
    """
    rows = _checked_rows(batch_size, rows)
    fake = _FakeExamples(dict(spec))
    examples = grain.MapDataset.source(fake).random_map(fake.make, seed=_checked_seed(seed))
    return iter(_GlobalBatches(examples, batch_size, rows).to_iter_dataset(grain.ReadOptions(1, 2)))


def check_example(spec: Mapping[str, ArraySpec], example: Mapping[str, Any], name: str) -> None:
    """Raises UsageError, naming the first array of `example` that is missing, unexpected, or not as `spec` says."""
    for key, wanted in spec.items():
        if key not in example:
            raise UsageError(f"{name}: array {key!r} is missing; the example has {sorted(example)}")
        found = np.asarray(example[key])
        if found.shape != tuple(wanted.shape) or found.dtype != np.dtype(wanted.dtype):
            raise UsageError(
                f"{name}: array {key!r} should be {tuple(wanted.shape)} {np.dtype(wanted.dtype)}, "
                f"found {found.shape} {found.dtype}"
            )
    extra = sorted(set(example) - set(spec) - {STAND_IN})
    if extra:
        raise UsageError(f"{name}: array {extra[0]!r} is not in the spec, which has {sorted(spec)}")


def _fake_array(spec: ArraySpec, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, spec.shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(int(spec.low), int(spec.high), spec.shape, dtype=dtype)
    values = rng.random(spec.shape, dtype=np.float32)
    return (spec.low + (spec.high - spec.low) * values).astype(dtype)


def _checked_rows(batch_size: int, rows: Sequence[int] | None) -> Sequence[int]:
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, found {batch_size}")
    if rows is None:
        return range(batch_size)
    if not rows or not set(rows) <= set(range(batch_size)):
        raise UsageError(f"rows {list(rows)} are not some of the {batch_size} of a batch")
    return rows


def _non_empty(source: Source) -> Source:
    if len(source) == 0:
        raise UsageError("the dataset is empty: it needs at least one record")
    return source


def _checked_seed(seed: int) -> int:
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, found {seed}")
    return int(seed)


def _stack(examples: Sequence[Any]) -> Batch:
    first = examples[0]
    batch: Batch = {}
    for key in first:
        try:
            batch[key] = np.stack([example[key] for example in examples])
        except (ValueError, KeyError) as error:
            found = sorted({str(np.shape(example[key])) if key in example else "missing" for example in examples})
            raise UsageError(f"array {key!r} differs between examples of a batch: {' and '.join(found)}") from error
    return batch
