"""The state of a run and the compiled step that advances it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimodal.sharding import initialise, shardings
from unimodal.training.optimizer import apply_updates, averaged

LossFunction = Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]
Batches = Mapping[str, Mapping[str, jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step changes: parameters (trained by gradients), variables (anything else), optimizer moments."""

    step: jax.Array
    parameters: nnx.State
    variables: nnx.State
    optimizer: Any


@dataclass(frozen=True)
class Program:
    """What is fixed during a run: the model's structure, how it is made, and the optimizer.

    start: gives the first parameters from the initialised ones (published weights, say); None: they are as initialised.
    """

    make_model: Callable[[jax.Array], nnx.Module]
    optimizer: optax.GradientTransformation
    mesh: Mesh
    seed: int
    accumulate: int = 1
    start: Callable[[nnx.State], nnx.State] | None = None

    def abstract_model(self) -> Any:
        """The model with shapes for arrays."""
        return jax.eval_shape(self.make_model, jax.random.key(self.seed))

    def init(self) -> TrainState:
        """The state before the first step, every array born in its shard."""
        state = initialise(self._make_state, self.mesh, jax.random.key(self.seed))
        if self.start is None:
            return state
        parameters = self.start(state.parameters)  # of which the optimizer may keep copies
        return replace(state, parameters=parameters, optimizer=initialise(self.optimizer.init, self.mesh, parameters))

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state, for restoring into."""
        abstract = jax.eval_shape(self._make_state, jax.random.key(self.seed))
        place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
        return jax.tree.map(place, abstract, shardings(abstract, self.mesh))

    def model(self, state: TrainState) -> Any:
        """The model with the state's weights in it."""
        return nnx.merge(self.structure(), averaged(state.optimizer, state.parameters), state.variables)

    def first_model(self) -> Any:
        """The model before the first step. Of the optimizer's state nothing is made."""
        parameters, variables = initialise(self._make_weights, self.mesh, jax.random.key(self.seed))
        return nnx.merge(self.structure(), parameters if self.start is None else self.start(parameters), variables)

    def structure(self) -> Any:
        return nnx.split(self.abstract_model(), nnx.Param, ..., graph=False)[0]

    def _make_weights(self, key: jax.Array) -> tuple[Any, Any]:
        model = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), self.make_model(key))  # no weak types
        _, parameters, variables = nnx.split(model, nnx.Param, ..., graph=False)
        return parameters, variables

    def _make_state(self, key: jax.Array) -> TrainState:
        parameters, variables = self._make_weights(key)
        return TrainState(jnp.zeros((), jnp.int32), parameters, variables, self.optimizer.init(parameters))

    def step(self, losses: Mapping[str, tuple[LossFunction, float]]) -> Callable[[TrainState, Batches], Any]:
        """Compile one step on the weighted sum of `losses` (name → loss function and weight).

        step(state, batches) → (state, {name: metrics}). The state's buffers are donated. With `accumulate` = A each
        batch is [A, B/A, …] and gradients are averaged over A micro-batches.
        """
        structure, seed = self.structure(), self.seed

        def total(parameters: Any, variables: Any, batches: Any, key: jax.Array, step: jax.Array) -> Any:
            # Variables may only be changed in the trace that made them, and jax.grad made the parameters' anew only.
            model = nnx.merge(structure, parameters, jax.tree.map(lambda x: x, variables))
            metrics, loss = {}, jnp.zeros((), jnp.float32)
            for name, (function, weight) in losses.items():
                task_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
                value, extra = function(model, batches[name], key=task_key, step=step)
                loss = loss + weight * value
                metrics[name] = {"loss": value, **extra}
            _, _, variables = nnx.split(model, nnx.Param, ..., graph=False)
            return loss, (metrics, variables)

        gradient = jax.grad(total, has_aux=True)

        def run(state: TrainState, batches: Any) -> tuple[TrainState, Any]:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            if self.accumulate == 1:
                gradients, (metrics, variables) = gradient(state.parameters, state.variables, batches, key, state.step)
            else:
                gradients, metrics, variables = self._accumulated(gradient, state, batches, key)
            updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.parameters)
            parameters = apply_updates(state.parameters, updates)
            norm = optax.tree.norm(optax.tree.cast(gradients, jnp.float32))  # squares of half precision overflow
            metrics = {name: {**task, "gradient_norm": norm} for name, task in metrics.items()}
            return TrainState(state.step + 1, parameters, variables, optimizer), metrics

        state_shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        replicated = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(run, donate_argnums=0, out_shardings=(state_shardings, replicated))

    def _accumulated(self, gradient: Callable[..., Any], state: TrainState, batches: Any, key: jax.Array) -> Any:
        """Gradients and metrics averaged over micro-batches, which see the variables one after another."""

        def micro(carry: Any, inputs: Any) -> Any:
            total, variables = carry
            batch, index = inputs
            micro_key = jax.random.fold_in(key, index)
            gradients, (metrics, variables) = gradient(state.parameters, variables, batch, micro_key, state.step)
            return (jax.tree.map(jnp.add, total, gradients), variables), metrics

        zero = jax.tree.map(jnp.zeros_like, state.parameters)
        indices = jnp.arange(self.accumulate, dtype=jnp.uint32)
        (total, variables), metrics = jax.lax.scan(micro, (zero, state.variables), (batches, indices))
        gradients = jax.tree.map(lambda g: g / self.accumulate, total)
        return gradients, jax.tree.map(lambda m: m.mean(axis=0), metrics), variables
