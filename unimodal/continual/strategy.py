"""A strategy against forgetting: what it keeps, what it does to gradients, losses and batches, and what happens between tasks.

`strategies/` has one module for each, with a class `Strategy`. What it leaves out of the methods below it does not do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from flax import nnx

from unimodal.continual.config import ContinualConfig
from unimodal.data.batches import BatchIterator
from unimodal.data.dataset import Examples
from unimodal.errors import UsageError
from unimodal.objectives.terms import Loss, TaskMetrics, terms
from unimodal.state import Kept
from unimodal.task import Task
from unimodal.training.guidance import Guidance
from unimodal.training.sequence import InSequence
from unimodal.training.step import Program, TrainState

OWNER = "continual"  # what a strategy keeps lies in model.state[OWNER], unless it belongs to one task
StateMakers = Mapping[str, Callable[[Any], Mapping[str, Any]]]  # owner → model → states by name


@dataclass(frozen=True)
class Plan:
    """What the loop is given: the schedule, the tasks and their batches."""

    schedule: InSequence
    tasks: Sequence[Any]  # in the order of the config
    batches: Mapping[str, BatchIterator]  # by task


@dataclass(frozen=True)
class Run:
    """What a strategy may use of a run."""

    program: Program
    fresh: Callable[[Task], BatchIterator]  # a task's batches from their beginning
    dataset: Callable[[Task], Examples] | None  # its training data; None: made up


@dataclass(frozen=True)
class Strategy:
    """Does nothing against forgetting: every strategy has this form."""

    config: ContinualConfig
    tasks: Sequence[Task] = field(repr=False)  # in the order in which they are learned

    def check(self) -> None:
        """Raises UsageError for tasks that the strategy cannot work with."""

    def states(self) -> StateMakers:
        """What is kept between steps, for `model.assemble`."""
        return {}

    def guidance(self) -> Guidance:
        """What every compiled step does with gradients."""
        return Guidance()

    def put_to_work(self, plan: Plan, run: Run) -> Plan:
        """The plan of plain fine-tuning with what is done to losses, batches and the schedule. Raises UsageError for data
        that do not suit."""
        return plan

    def memory_bytes(self, model: Any, schedule: InSequence) -> Mapping[str, int]:
        """Bytes of the examples that are kept of each task, by its name. `model` may be abstract."""
        return {}


def strategy_of(config: ContinualConfig, tasks: Sequence[Task], schedule: InSequence) -> Strategy:
    """The strategy that a config names. Raises UsageError for tasks that it cannot work with, or of its own state's name."""
    module = importlib.import_module(f"unimodal.continual.strategies.{config.strategy}")
    by_name = {task.name: task for task in tasks}
    made = module.Strategy(config, tuple(by_name[name] for name in schedule.names))
    made.check()
    if OWNER in by_name and OWNER in made.states():
        raise UsageError(
            f"tasks.{OWNER} has the name under which continual.strategy={config.strategy} keeps its state; give it another"
        )
    return made


@dataclass(frozen=True)
class Extended:
    """A task whose loss has one more term, logged under `name`."""

    task: Any
    name_of_term: str
    term: Callable[[Any, Mapping[str, jax.Array]], jax.Array]  # (model, batch) → a scalar, a mean over the batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(
        self, model: Any, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        loss, metrics = self.task.loss(model, batch, key=key, step=step)
        more = self.term(model, batch)
        return (*terms(loss), more), {**metrics, self.name_of_term: more}


def between(plan: Plan, change: Callable[[str, TrainState], TrainState]) -> Plan:
    """The plan with something that happens to the state when a task has ended."""
    return replace(plan, schedule=replace(plan.schedule, between=change))


def rewritten(program: Program, state: TrainState, change: Callable[..., None], *arrays: Any) -> TrainState:
    """The state after change(model, *arrays), which may set what the model keeps. It is compiled, and shardings stay."""

    def kept_after(state: TrainState, arrays: Any) -> Any:
        anew = jax.tree.map(lambda x: x, (state.parameters, state.variables, state.kept))
        model = nnx.merge(program.structure(), *anew)
        change(model, *arrays)
        return nnx.split(model, nnx.Param, Kept, ..., graph=False)[2]

    where = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state().kept)
    with jax.set_mesh(program.mesh):
        kept = jax.jit(kept_after, out_shardings=where)(state, arrays)
    return replace(state, kept=kept)
