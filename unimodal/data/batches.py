"""Batches for training, in an endless order, and for evaluation, once.

The order is a pure function of (seed, task, step). Step s of a run is the global batch of the examples at positions
s*B … s*B + B - 1 of one endless stream, whatever the number of processes: process p of P reads rows
p*B/P … (p+1)*B/P - 1 of it and nothing else. An example's random generator depends on (seed, position) only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from unimodal.data.dataset import EVALUATION_SEED, Examples
from unimodal.data.order import order_seed
from unimodal.data.spec import STAND_IN
from unimodal.data.stacking import Batch, checked_rows, stack
from unimodal.data.workers import WorkerBatches
from unimodal.errors import UsageError


class BatchIterator(Protocol):
    """Endless batches with a position that can be saved. The state is JSON-serialisable."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


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
    batches = dataset.batches(seed, batch_size, checked_rows(batch_size, rows))
    if workers:
        return WorkerBatches(batches, workers)
    threads = max(1, threads) if prefetch else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(batches.to_iter_dataset(options))


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
            not e.pop(STAND_IN, False) and place < len(self.order) for place, e in zip(places, examples, strict=True)
        ]
        batch, weight = stack(examples), np.array(used, dtype=np.float32)
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
    rows = checked_rows(batch_size, rows)
    examples = dataset.ordered()
    order = np.arange(len(examples))
    if limit is not None and limit < len(examples):
        order = np.sort(np.random.default_rng(EVALUATION_SEED).permutation(order)[:limit])
    return EvalBatches(examples, order, batch_size, rows)
