"""Examples of earlier tasks, to be trained on again.

A reservoir (Vitter 1985) ends with a uniform choice of what has streamed by. The stream is a function of (seed, task, step),
so the choice is made by place and read when it is needed: nothing of it has to be saved, and a run that resumes has the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from unimodal.continual.config import ContinualConfig
from unimodal.continual.strategy import Plan, Run
from unimodal.data.batches import Batch, BatchIterator
from unimodal.data.dataset import Examples
from unimodal.data.order import order_seed
from unimodal.data.spec import ArraySpec
from unimodal.errors import UsageError
from unimodal.sharding import batch_parts, local_rows
from unimodal.training.sequence import InSequence
from unimodal.training.step import Program

CANDIDATES = 10  # a balanced choice is made of so many times as many examples, themselves chosen uniformly
SLOT, STORED = "memory_slot", "memory_stored"  # arrays of a batch: where its rows go to in the memory, or come from


@dataclass(frozen=True)
class Memory:
    """What is remembered of one task's stream."""

    read: Callable[[int], Mapping[str, Any]]  # the example at a place of the stream
    seen: int  # examples that stream by while the task trains
    size: int  # of the memory
    seed: int  # of the choice
    balanced: bool = False  # as many of each class as there are

    def places(self) -> np.ndarray:
        """The places of the stream that are remembered, in order. A balanced choice reads examples for it."""
        if not self.balanced:
            return chosen(self.seen, self.size, self.seed)
        candidates = chosen(self.seen, CANDIDATES * self.size, self.seed)
        labels = np.array([int(self.read(int(place))["label"]) for place in candidates])
        return candidates[evenly_of_classes(labels, self.size, self.seed)]


class Remembering:
    """The batches of a task while it trains; after its steps, batches of `share` of what is remembered of them.

    With `slots` every batch says of its rows which slot of the memory they go to (-1: none) or come from.
    """

    def __init__(
        self,
        own: BatchIterator,
        memory: Memory,
        *,
        steps: int,
        batch_size: int,
        sizes: Callable[[int], int],
        rows: Callable[[int], Sequence[int]],
        slots: bool = False,
    ):
        self._own, self._memory, self._steps, self._batch = own, memory, steps, batch_size
        self._sizes, self._rows, self._slots = sizes, rows, slots
        self._count = 0
        self._places: np.ndarray | None = None
        self._kept: list[dict[str, Any]] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._count += 1
        if self._count <= self._steps:
            batch = next(self._own)
            return {**batch, SLOT: self._slots_of(self._count - 1)} if self._slots else batch
        number = self._count - self._steps - 1
        size = self._sizes(number)
        kept = self.kept()
        drawn = np.random.default_rng((self._memory.seed, number)).integers(len(kept), size=size)
        mine = [int(drawn[row]) for row in self._rows(size)]
        batch = {name: np.stack([kept[slot][name] for slot in mine]) for name in kept[0]}
        return {**batch, STORED: np.array(mine, np.int32)} if self._slots else batch

    def kept(self) -> list[dict[str, Any]]:
        """What is remembered, read when it is first asked for."""
        if self._kept is None:
            read = self._memory.read
            self._kept = [{n: np.asarray(value) for n, value in read(int(p)).items()} for p in self._where()]
        return self._kept

    def _where(self) -> np.ndarray:
        if self._places is None:
            self._places = self._memory.places()
        return self._places

    def _slots_of(self, step: int) -> np.ndarray:
        """The slot of each row that this process reads of batch number `step`, int32, -1 for those that are not kept."""
        slots = {int(place): slot for slot, place in enumerate(self._where())}
        return np.array([slots.get(step * self._batch + row, -1) for row in self._rows(self._batch)], np.int32)

    def get_state(self) -> dict[str, Any]:
        return {"own": self._own.get_state(), "count": self._count}

    def set_state(self, state: dict[str, Any]) -> None:
        self._own.set_state(state["own"])
        self._count = state["count"]


def chosen(seen: int, memory: int, seed: int) -> np.ndarray:
    """The places, in order, of a uniform choice of `memory` of `seen` examples; all of them where there are fewer."""
    return np.sort(np.random.default_rng(seed).choice(seen, size=min(memory, seen), replace=False))


def evenly_of_classes(labels: np.ndarray, memory: int, seed: int) -> np.ndarray:
    """The places, in order, of `memory` of the labels [N], as many of each class as there are, drawn at random.

    A class that has too few gives all of them, and the others share the rest, as in a class-balancing reservoir
    (Chrysakis & Moens 2020).
    """
    shuffled = np.random.default_rng((seed, 1)).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # how many of its class come before it
    for name in np.unique(labels):
        mine = shuffled[labels[shuffled] == name]
        turn[mine] = np.arange(len(mine))
    order = shuffled[np.argsort(turn[shuffled], kind="stable")]
    return np.sort(order[:memory])


def size_of(examples: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of what is remembered."""
    return sum(np.asarray(value).nbytes for example in examples for value in example.values())


def bytes_of(spec: Mapping[str, ArraySpec], count: int) -> int:
    """Bytes of `count` examples, without their ids."""
    return count * sum(prod(array.shape) * np.dtype(array.dtype).itemsize for array in spec.values())


def bytes_by_task(config: ContinualConfig, tasks: Sequence[Any], model: Any, schedule: InSequence) -> dict[str, int]:
    """Bytes of the examples of each task that are remembered. Of the last one none are."""
    counts = dict(zip(schedule.names, schedule.steps, strict=True))
    found = {}
    for task in tasks[:-1]:
        inputs = task.inputs(model)
        size = memory_of(config, inputs.dataset("train")) if config.memory_share else config.memory
        found[task.name] = bytes_of(inputs.spec, min(size, counts[task.name] * task.batch_size))
    return found


def memory_of(config: ContinualConfig, examples: Examples) -> int:
    """How many examples are kept of a task with these to train on."""
    return max(1, int(config.memory_share * len(examples))) if config.memory_share else config.memory


def check_memory(memory: int, examples: int, task: str) -> None:
    """Raises UsageError for a memory that would hold more than there is."""
    if memory > examples:
        raise UsageError(
            f"continual.memory={memory} is more than the {examples} training examples of tasks.{task}; give at most that"
        )


def with_memory(config: ContinualConfig, plan: Plan, run: Run, *, slots: bool = False) -> Plan:
    """The plan with what is remembered of earlier tasks trained on beside each, as many examples in all as a batch has.

    Made-up data are not remembered. Raises UsageError for a memory that is larger than a task's data, or without the labels
    that a balanced one needs.
    """
    if run.dataset is None or not config.strength:
        return plan
    schedule = replace(plan.schedule, replay=config.strength)
    ends = dict(zip(schedule.names, accumulate(schedule.steps), strict=True))
    counts = dict(zip(schedule.names, schedule.steps, strict=True))
    batches = dict(plan.batches)
    for task in plan.tasks:
        examples, batch = run.dataset(task), task.batch_size
        size = memory_of(config, examples)
        check_memory(size, len(examples), task.name)
        # A place of the stream is step · batch + row only where batches are cut from it in its order.
        if getattr(examples, "buckets", None) is not None:
            raise UsageError(
                f"continual.strategy={config.strategy} remembers examples by their place, which tasks.{task.name}.buckets "
                "changes; leave buckets empty"
            )
        seed = order_seed(run.program.seed, task.name)
        stream: Any = examples.stream(seed, batch)
        if config.balanced and "label" not in stream[0]:
            raise UsageError(f"continual.balanced needs examples with one class each, which tasks.{task.name} has not")
        batches[task.name] = Remembering(
            batches[task.name],
            Memory(stream.__getitem__, counts[task.name] * batch, size, seed, config.balanced),
            steps=counts[task.name],
            batch_size=batch,
            sizes=_sizes(schedule, run.program, batch, ends[task.name]),
            rows=lambda size: local_rows(run.program.mesh, size, run.program.accumulate),
            slots=slots and task.name != schedule.names[-1],
        )
    return replace(plan, schedule=schedule, batches=batches)


def _sizes(schedule: InSequence, program: Program, batch: int, end: int) -> Callable[[int], int]:
    """How many remembered examples of a task its n-th batch after `end` has: all earlier tasks have a batch together."""
    parts = batch_parts(program.mesh) * program.accumulate
    return lambda number: max(parts, batch // (len(schedule.who(end + number)) - 1) // parts * parts)
