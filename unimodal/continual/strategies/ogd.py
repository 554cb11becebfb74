"""Orthogonal gradient descent: no step changes, to first order, what the model says of earlier examples (Farajtabar 2020).

Reads directions. The variant is OGD-GTL, which keeps the gradient of the logit of the true class. The gradient is projected
before the optimizer sees it: with momentum or Adam, steps are no longer orthogonal, so take sgd.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.continual.anchor import parameters_of
from unimodal.continual.outputs import check_outputs, fold_gradients
from unimodal.continual.strategy import OWNER, Plan, Run, StateMakers, between, rewritten
from unimodal.continual.strategy import Strategy as Base
from unimodal.state import Kept, TaskState
from unimodal.training.checkpoint import named
from unimodal.training.guidance import Guidance
from unimodal.training.step import TrainState

NAME = "directions"
_LEAST = 1e-6  # of its length, that a gradient must have left to be a direction of its own


class Directions(TaskState):
    """`count` orthonormal directions in the space of all parameters, float32; zero until they are filled."""

    def __init__(self, model: Any, count: int):
        rows = {}
        for name, p in parameters_of(model).items():
            axes, shape = p.get_metadata().get("axes", ()), p.get_value().shape
            whole = ("rank", *["layers"] * (len(shape) - len(axes)), *axes)
            rows[name] = Kept(jnp.zeros((count, *shape), jnp.float32), axes=whole)
        self.rows: Any = nnx.Dict(rows)

    def fill(self, rows: Mapping[str, jax.Array]) -> None:
        """Take other directions."""
        for name, found in rows.items():
            self.rows[name].set_value(found)

    def values(self) -> dict[str, jax.Array]:
        """The directions [count, ...] of every parameter."""
        return {name: kept.get_value() for name, kept in self.rows.items()}


class Strategy(Base):
    """When a task has ended, `directions` of its examples give one direction each."""

    def check(self) -> None:
        check_outputs(self.config.strategy, self.tasks)

    def states(self) -> StateMakers:
        return {OWNER: lambda model: {NAME: Directions(model, self.config.directions * (len(self.tasks) - 1))}}

    def guidance(self) -> Guidance:
        def project(model: Any, gradient: Any) -> Any:
            found = orthogonal(named(gradient), model.state[OWNER][NAME].values())
            structure = jax.tree.structure(gradient)
            return structure.unflatten(
                new.astype(old.dtype) for new, old in zip(found.values(), jax.tree.leaves(gradient), strict=True)
            )

        return Guidance(project=project)

    def put_to_work(self, plan: Plan, run: Run) -> Plan:
        def keep(name: str, state: TrainState) -> TrainState:
            place = [task.name for task in self.tasks].index(name)
            rows = self.extended(run, self.tasks[place], place, state)
            return rewritten(run.program, state, lambda model, rows: model.state[OWNER][NAME].fill(rows), rows)

        return between(plan, keep)

    def extended(self, run: Run, task: Any, place: int, state: TrainState) -> Mapping[str, jax.Array]:
        """The directions, with those of a task that has ended, Gram-Schmidt's of what its examples add."""

        def logit(model: Any, row: Mapping[str, jax.Array]) -> jax.Array:
            return task.judged(model, row)[0, row["label"][0]].astype(jnp.float32)

        def add(carry: Any, gradient: Any) -> Any:
            rows, at = carry
            return {
                n: x.at[at].set(new) for (n, x), new in zip(rows.items(), _next(named(gradient), rows), strict=True)
            }, at + 1

        held = run.program.model(state).state[OWNER][NAME].values()
        carry = (held, jnp.int32(place * self.config.directions))
        return fold_gradients(run.program, state, run.fresh(task), self.config.directions, logit, carry, add)[0]


def orthogonal(gradient: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A gradient by parameter, float32, without its part along orthonormal directions [count, ...]."""
    wide = {name: g.astype(jnp.float32) for name, g in gradient.items()}
    along = sum(jnp.tensordot(rows[name], g, g.ndim) for name, g in wide.items())
    return {name: g - jnp.tensordot(along, rows[name], 1) for name, g in wide.items()}


def _next(gradient: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> list[jax.Array]:
    """The direction that a gradient adds, by parameter in their order: of length 1, or 0 where there is none."""
    # Twice, as once leaves rounding errors that are no longer small beside what is left.
    left = orthogonal(orthogonal(gradient, rows), rows)
    before, after = (
        jnp.sqrt(sum(jnp.square(x.astype(jnp.float32)).sum() for x in g.values())) for g in (gradient, left)
    )
    scale = jnp.where(after > _LEAST * before, 1 / jnp.maximum(after, 1e-30), 0.0)
    return [scale * left[name] for name in rows]
