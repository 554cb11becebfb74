"""Dark experience replay: remembered examples are trained on again, and what the model said of them when it first met them
is held to (Buzzega 2020, DER++, equation 6).

Reads strength (β), distillation (α = strength · distillation), memory and balanced. Otherwise than there, both terms are of
the same draw from the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.continual.memory import SLOT, STORED, bytes_by_task, with_memory
from unimodal.continual.outputs import check_outputs
from unimodal.continual.strategy import Extended, Plan, Run, StateMakers
from unimodal.continual.strategy import Strategy as Base
from unimodal.errors import UsageError
from unimodal.state import Kept, TaskState
from unimodal.training.sequence import InSequence

NAME = "remembered_logits"  # where it lies: model.state[task][NAME]


class RememberedLogits(TaskState):
    """Logits [memory, C] of what is remembered of a task, float32, each as the model gave them in the step that met the
    example; NaN where none did, or where that step was skipped. pushed rows: [B, 1 + C], the slot (-1: none) and the logits."""

    def __init__(self, size: int, classes: int):
        self.rows = Kept(jnp.full((size, classes), jnp.nan, jnp.float32), axes=("batch", "hidden"))

    def advance(self, model: Any, rows: jax.Array | None, step: jax.Array, steps: int) -> None:
        if rows is None:
            return
        held = self.rows.get_value()
        slots = rows[:, 0].astype(jnp.int32)
        # A slot outside the memory is dropped, which those of rows that are not kept are moved to.
        where = jnp.where(slots < 0, len(held), slots)
        self.rows.set_value(held.at[where].set(rows[:, 1:], mode="drop"))


class Strategy(Base):
    """Experience replay with the mean squared distance of logits from those that are kept."""

    def check(self) -> None:
        check_outputs(self.config.strategy, self.tasks)
        if self.config.memory_share:
            raise UsageError(
                "continual.strategy=der takes memory and no memory_share: its logits are as many from the start"
            )

    def states(self) -> StateMakers:
        return {task.name: partial(self.logits_of, task) for task in self.tasks[:-1]}

    def logits_of(self, task: Any, model: Any) -> Mapping[str, TaskState]:
        """The memory's logits of a task, whose number of classes the model tells."""
        return {NAME: RememberedLogits(self.config.memory, classes_of(task, model))}

    def put_to_work(self, plan: Plan, run: Run) -> Plan:
        remembering = with_memory(self.config, plan, run, slots=True)
        tasks = [Extended(task, "distance", partial(self.term, task)) for task in plan.tasks]
        return replace(remembering, tasks=tasks)

    def term(self, task: Any, model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Keep the logits of a batch that is new; of a remembered one, give their distance from those that were kept."""
        if SLOT not in batch and STORED not in batch:
            return jnp.float32(0)
        state, logits = model.state[task.name][NAME], task.judged(model, batch).astype(jnp.float32)
        if SLOT in batch:
            state.push(jnp.concatenate([batch[SLOT][:, None].astype(jnp.float32), logits], axis=1))
            return jnp.float32(0)
        return self.config.distillation * squared_distance(logits, state.rows.get_value()[batch[STORED]])

    def memory_bytes(self, model: Any, schedule: InSequence) -> Mapping[str, int]:
        examples = bytes_by_task(self.config, self.tasks, model, schedule)
        return {
            task.name: examples[task.name] + 4 * self.config.memory * classes_of(task, model)
            for task in self.tasks[:-1]
        }


def squared_distance(logits: jax.Array, kept: jax.Array) -> jax.Array:
    """The mean squared distance of logits [B, C] from those that were kept, over what is known of these; 0 of nothing."""
    known = ~jnp.isnan(kept)
    return jnp.square(jnp.where(known, logits - kept, 0)).sum() / jnp.maximum(known.sum(dtype=jnp.float32), 1)


def classes_of(task: Any, model: Any) -> int:
    """How many classes a task judges."""
    spec = task.inputs(model).spec
    row = {name: jax.ShapeDtypeStruct((1, *array.shape), array.dtype) for name, array in spec.items()}
    return jax.eval_shape(task.judged, model, row).shape[1]
