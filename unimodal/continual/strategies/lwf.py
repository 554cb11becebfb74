"""Learning without forgetting: on new examples the model goes on saying what the model before the task said (Li & Hoiem 2016).

Reads strength (λₒ) and temperature. Otherwise than there, new heads are not trained alone first. Where tasks share a head, an
earlier task's answer is over the classes of that task alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.continual.anchor import parameters_of
from unimodal.continual.outputs import answers_of, check_outputs
from unimodal.continual.strategy import OWNER, Extended, Plan, Run, StateMakers, between, rewritten
from unimodal.continual.strategy import Strategy as Base
from unimodal.state import Momentum
from unimodal.training.step import TrainState

NAME = "teacher"


class Strategy(Base):
    """A copy of all weights is kept, taken when a task has ended, and is the teacher of the tasks that follow."""

    def check(self) -> None:
        check_outputs(self.config.strategy, self.tasks, same_inputs=True)

    def states(self) -> StateMakers:
        def make(model: Any) -> Mapping[str, Any]:
            parts = sorted({name.split(".")[0] for name in parameters_of(model)})
            return {NAME: Momentum(model, parts)}  # of nobody's steps, so that it stays as it was taken

        return {OWNER: make}

    def put_to_work(self, plan: Plan, run: Run) -> Plan:
        names = plan.schedule.names
        earlier = {name: self.tasks[:i] for i, name in enumerate(names)}
        tasks = [self.taught(task, earlier[task.name]) if earlier[task.name] else task for task in plan.tasks]

        def take(_name: str, state: TrainState) -> TrainState:
            return rewritten(run.program, state, lambda model: model.state[OWNER][NAME].begin(model))

        return between(replace(plan, tasks=tasks), take)

    def taught(self, task: Any, earlier: Sequence[Any]) -> Extended:
        """The task with the distance of every earlier task's answers from the teacher's."""

        def term(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            teacher = model.state[OWNER][NAME].of(model)
            each = [
                distilled(answers_of(old, model, batch), answers_of(old, teacher, batch), self.config.temperature)
                for old in earlier
            ]
            return self.config.strength * jnp.stack(each).sum()

        return Extended(task, "distillation", term)


def distilled(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """−Σ p log q over classes, averaged over rows, p and q the softmax of logits [B,C] divided by the temperature (equations
    2 and 3: probabilities to the power of 1/T, normalised)."""
    wanted = jax.nn.softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature)
    return -(wanted * jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)).sum(-1).mean()
