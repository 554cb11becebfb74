"""Arguments of a run beside its program and config: the work, its validation, and where it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unimodal.data.batches import BatchIterator
from unimodal.task import Task
from unimodal.training.meters import Cost
from unimodal.training.sequence import InSequence


@dataclass(frozen=True)
class Work:
    """Tasks, and the batches that they train on."""

    tasks: Sequence[Task]  # in the order of the config
    batches: Mapping[str, BatchIterator]  # by task
    tokens: Mapping[str, int]  # of one example, by task; for the meters
    cost: Cost = Cost()  # of one step; for the meters
    sequence: InSequence | None = None  # who trains when, if one task comes after the other

    def positions(self) -> dict[str, Any]:
        """How far the batches of each task have been read."""
        return {name: iterator.get_state() for name, iterator in self.batches.items()}

    @property
    def by_name(self) -> dict[str, Task]:
        """The tasks by name."""
        return {task.name: task for task in self.tasks}


@dataclass(frozen=True)
class Validation:
    """Scores of a model that are taken now and then during training."""

    scores: Callable[[Any, int], Mapping[str, Mapping[str, float]]] | None = None  # model, step → scores per evaluation
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)  # by evaluation


@dataclass(frozen=True)
class Resumption:
    """Which checkpoint of the workdir a run goes on from, and what it takes of it."""

    step: int | None = None  # None: the latest, or from the beginning where there is none
    # take what fits of a checkpoint of another config, with the data of these tasks begun anew; None: take all of it
    adapt: Collection[str] | None = None
