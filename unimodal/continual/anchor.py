"""Holds weights near where earlier tasks left them, each as strongly as it mattered to those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.continual.config import ContinualConfig
from unimodal.data.batches import BatchIterator
from unimodal.sharding import path_name
from unimodal.state import Kept, TaskState
from unimodal.task import Task
from unimodal.training.checkpoint import named
from unimodal.training.importance import squared_gradients
from unimodal.training.step import Program, TrainState

OWNER, NAME = "continual", "anchor"  # where it lies: model.state[OWNER][NAME]


class Anchor(TaskState):
    """θ* and Ω of every parameter, float32 in the parameter's shards. Ω is 0 until a task has ended."""

    def __init__(self, model: Any):
        found = parameters_of(model)
        self.weights: Any = nnx.Dict({n: Kept(_wide(p), **p.get_metadata()) for n, p in found.items()})
        self.importance: Any = nnx.Dict(
            {n: Kept(jnp.zeros_like(_wide(p)), **p.get_metadata()) for n, p in found.items()}
        )

    def penalty(self, model: Any) -> jax.Array:
        """½ Σ Ω (θ − θ*)², a scalar."""
        terms = [
            (self.importance[name].get_value() * jnp.square(_wide(p) - self.weights[name].get_value())).sum()
            for name, p in parameters_of(model).items()
        ]
        return 0.5 * jnp.stack(terms).sum()

    def consolidate(self, model: Any, squares: Mapping[str, jax.Array], config: ContinualConfig) -> None:
        """A task has ended with these weights and squared gradients. ewc: Ω ← decay·Ω + squares. l2: Ω is 1 where a task has
        had a gradient so far."""
        for name, p in parameters_of(model).items():
            before, new = self.importance[name].get_value(), squares[name]
            after = (
                config.decay * before + new
                if config.strategy == "ewc"
                else jnp.maximum(before, (new > 0).astype(jnp.float32))
            )
            self.importance[name].set_value(after.astype(jnp.float32))
            self.weights[name].set_value(_wide(p))


def parameters_of(model: Any) -> dict[str, nnx.Param]:
    """Every parameter by name."""
    leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    return {path_name(path): leaf for path, leaf in leaves if isinstance(leaf, nnx.Param)}


def consolidated(
    program: Program,
    task: Task,
    state: TrainState,
    batches: Mapping[str, BatchIterator],
    config: ContinualConfig,
) -> TrainState:
    """The state with its anchor where the weights are now. `batches` are of the task's training data."""
    squares = squared_gradients(program, [task], state, batches, config.batches)

    def kept_after(state: TrainState, squares: Any) -> Any:
        anew = jax.tree.map(lambda x: x, (state.parameters, state.variables, state.kept))
        model = nnx.merge(program.structure(), *anew)
        model.state[OWNER][NAME].consolidate(model, named(squares), config)
        return nnx.split(model, nnx.Param, Kept, ..., graph=False)[2]

    where = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state().kept)
    with jax.set_mesh(program.mesh):
        kept = jax.jit(kept_after, out_shardings=where)(state, squares)
    return TrainState(state.step, state.parameters, state.variables, state.optimizer, kept, state.ema)


def _wide(parameter: nnx.Param) -> jax.Array:
    return parameter.get_value().astype(jnp.float32)
