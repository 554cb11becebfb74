"""Examples of earlier tasks, to be trained on again.

A reservoir (Vitter 1985) ends with a uniform choice of what has streamed by. The stream is a function of (seed, task, step),
so the choice is made by place and read when it is needed: nothing of it has to be saved, and a run that resumes has the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from unimodal.data.batches import Batch, BatchIterator
from unimodal.errors import UsageError


class Remembering:
    """The batches of a task while it trains; after its steps, batches of `share` of what is remembered of them.

    read: gives the example at a place of the task's stream. rows: which of a batch's rows this process holds, by its size.
    """

    def __init__(
        self,
        own: BatchIterator,
        read: Callable[[int], dict[str, Any]],
        *,
        steps: int,
        batch_size: int,
        memory: int,
        sizes: Callable[[int], int],
        rows: Callable[[int], Sequence[int]],
        seed: int,
    ):
        self._own, self._read, self._steps, self._batch = own, read, steps, batch_size
        self._memory, self._sizes, self._rows, self._seed = memory, sizes, rows, seed
        self._count = 0
        self._kept: list[dict[str, Any]] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._count += 1
        if self._count <= self._steps:
            return next(self._own)
        number = self._count - self._steps - 1
        size = self._sizes(number)
        kept = self.kept()
        drawn = np.random.default_rng((self._seed, number)).integers(len(kept), size=size)
        examples = [kept[int(drawn[row])] for row in self._rows(size)]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    def kept(self) -> list[dict[str, Any]]:
        """What is remembered, read when it is first asked for."""
        if self._kept is None:
            places = chosen(self._steps * self._batch, self._memory, self._seed)
            self._kept = [{name: np.asarray(value) for name, value in self._read(int(p)).items()} for p in places]
        return self._kept

    def get_state(self) -> dict[str, Any]:
        return {"own": self._own.get_state(), "count": self._count}

    def set_state(self, state: dict[str, Any]) -> None:
        self._own.set_state(state["own"])
        self._count = state["count"]


def chosen(seen: int, memory: int, seed: int) -> np.ndarray:
    """The places, in order, of a uniform choice of `memory` of `seen` examples; all of them where there are fewer."""
    return np.sort(np.random.default_rng(seed).choice(seen, size=min(memory, seen), replace=False))


def size_of(examples: Sequence[dict[str, Any]]) -> int:
    """Bytes of what is remembered."""
    return sum(np.asarray(value).nbytes for example in examples for value in example.values())


def check_memory(memory: int, examples: int, task: str) -> None:
    """Raises UsageError for a memory that would hold more than there is."""
    if memory > examples:
        raise UsageError(
            f"continual.memory={memory} is more than the {examples} training examples of tasks.{task}; give at most that"
        )
