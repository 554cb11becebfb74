"""A config's strategy put to work: the losses that train, their batches, and what happens when a task has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import jax

from unimodal.continual.anchor import NAME, OWNER, Anchor, consolidated
from unimodal.continual.config import ContinualConfig
from unimodal.continual.memory import Remembering, check_memory
from unimodal.data.batches import BatchIterator
from unimodal.data.dataset import Examples
from unimodal.data.order import order_seed
from unimodal.objectives.terms import Loss, TaskMetrics, terms
from unimodal.sharding import batch_parts, local_rows
from unimodal.task import Task
from unimodal.training.sequence import InSequence
from unimodal.training.step import Program, TrainState


@dataclass(frozen=True)
class Guarded:
    """A task whose loss has one more term: strength times the penalty for leaving what earlier tasks need."""

    task: Any
    strength: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(
        self, model: Any, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        loss, metrics = self.task.loss(model, batch, key=key, step=step)
        penalty = model.state[OWNER][NAME].penalty(model)
        return (*terms(loss), self.strength * penalty), {**metrics, "penalty": penalty}


@dataclass(frozen=True)
class Plan:
    """What the loop is given: the schedule, the tasks and their batches."""

    schedule: InSequence
    tasks: Sequence[Any]
    batches: Mapping[str, BatchIterator]


def states(config: ContinualConfig) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
    """What a strategy keeps between steps, for `model.assemble`."""
    return {OWNER: lambda model: {NAME: Anchor(model)}} if config.anchors else {}


def planned(
    config: ContinualConfig,
    schedule: InSequence,
    program: Program,
    tasks: Sequence[Task],
    fresh: Callable[[Task], BatchIterator],
    dataset: Callable[[Task], Examples] | None,
) -> Plan:
    """Put a strategy to work. fresh: gives a task's batches from their beginning. dataset: its training data (None: made up).

    Raises UsageError for a memory that is larger than a task's data.
    """
    batches = {task.name: fresh(task) for task in tasks}
    if config.anchors:
        by_name = {task.name: task for task in tasks}

        def between(name: str, state: TrainState) -> TrainState:
            return consolidated(program, by_name[name], state, {name: fresh(by_name[name])}, config)

        guarded = [Guarded(task, config.strength) for task in tasks]
        return Plan(replace(schedule, between=between), guarded, batches)
    if config.strategy == "replay" and config.strength and dataset is not None:
        schedule = replace(schedule, replay=config.strength)
        ends = dict(zip(schedule.names, accumulate(schedule.steps), strict=True))
        counts = dict(zip(schedule.names, schedule.steps, strict=True))
        for task in tasks:
            examples = dataset(task)
            check_memory(config.memory, len(examples), task.name)
            seed = order_seed(program.seed, task.name)
            stream: Any = examples.stream(seed)
            batches[task.name] = Remembering(
                batches[task.name],
                stream.__getitem__,
                steps=counts[task.name],
                batch_size=task.batch_size,
                memory=config.memory,
                sizes=_sizes(schedule, program, task.batch_size, ends[task.name]),
                rows=lambda size: local_rows(program.mesh, size, program.accumulate),
                seed=seed,
            )
    return Plan(schedule, tasks, batches)


def _sizes(schedule: InSequence, program: Program, batch: int, end: int) -> Callable[[int], int]:
    """How many remembered examples of a task its n-th batch after `end` has: all earlier tasks have a batch together."""
    parts = batch_parts(program.mesh) * program.accumulate
    return lambda number: max(parts, batch // (len(schedule.who(end + number)) - 1) // parts * parts)
