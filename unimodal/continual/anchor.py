"""Holds weights near where earlier tasks left them, each as strongly as it mattered to those."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.continual.strategy import OWNER, Extended, Plan, StateMakers, Strategy, between, rewritten
from unimodal.sharding import path_name
from unimodal.state import Kept, TaskState
from unimodal.training.step import TrainState

NAME = "anchor"  # where it lies: model.state[OWNER][NAME]


class Anchor(TaskState):
    """θ* and Ω of every parameter, float32 in the parameter's shards. Ω is 0 until a task has ended, and until then θ* is
    where training began."""

    def __init__(self, model: Any):
        found = parameters_of(model)
        self.weights: Any = nnx.Dict({n: like(p, wide(p)) for n, p in found.items()})
        self.importance: Any = nnx.Dict({n: like(p, jnp.zeros_like(wide(p))) for n, p in found.items()})

    def begin(self, model: Any) -> None:
        for name, p in parameters_of(model).items():
            self.weights[name].set_value(jnp.array(wide(p), copy=True))

    def penalty(self, model: Any) -> jax.Array:
        """½ Σ Ω (θ − θ*)², a scalar."""
        terms = [
            (self.importance[name].get_value() * jnp.square(wide(p) - self.weights[name].get_value())).sum()
            for name, p in parameters_of(model).items()
        ]
        return 0.5 * jnp.stack(terms).sum()

    def consolidate(
        self, model: Any, found: Mapping[str, jax.Array], rule: Callable[[jax.Array, jax.Array], jax.Array]
    ) -> None:
        """A task has ended with these weights: Ω ← rule(Ω, found), θ* ← θ."""
        for name, p in parameters_of(model).items():
            after = rule(self.importance[name].get_value(), found[name])
            self.importance[name].set_value(after.astype(jnp.float32))
            self.weights[name].set_value(wide(p))


class Anchored(Strategy):
    """The form of strategies with a penalty: strength times the anchor's is added to every loss."""

    def states(self) -> StateMakers:
        return {OWNER: lambda model: {NAME: Anchor(model)}}

    def rule(self, before: jax.Array, found: jax.Array) -> jax.Array:
        """Ω after a task, of Ω before it and what the task itself says of a parameter."""
        return self.config.decay * before + found

    def guarded(self, plan: Plan) -> Plan:
        """The plan with the penalty in every loss."""
        term = lambda model, batch: self.config.strength * model.state[OWNER][NAME].penalty(model)  # noqa: E731
        return replace(plan, tasks=[Extended(task, "penalty", term) for task in plan.tasks])

    def consolidating(self, plan: Plan, run: Any, importance: Callable[[Any, TrainState], Mapping[str, Any]]) -> Plan:
        """The plan with the penalty, and with the anchor moved when a task has ended.

        importance: (task, state) → what the task says of each parameter, by name.
        """
        by_name = {task.name: task for task in self.tasks}

        def move(name: str, state: TrainState) -> TrainState:
            change = lambda model, found: model.state[OWNER][NAME].consolidate(model, found, self.rule)  # noqa: E731
            return rewritten(run.program, state, change, importance(by_name[name], state))

        return between(self.guarded(plan), move)


def parameters_of(model: Any) -> dict[str, nnx.Param]:
    """Every parameter by name."""
    leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    return {path_name(path): leaf for path, leaf in leaves if isinstance(leaf, nnx.Param)}


def wide(parameter: nnx.Param) -> jax.Array:
    """A parameter in float32."""
    return parameter.get_value().astype(jnp.float32)


def like(parameter: nnx.Param, value: jax.Array) -> Kept:
    """Something kept of a parameter, in its shards."""
    return Kept(value, **parameter.get_metadata())
