"""What tasks answer, and gradients of single examples' answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from unimodal.data.batches import BatchIterator
from unimodal.errors import UsageError
from unimodal.sharding import from_local_rows
from unimodal.training.step import Program, TrainState


def check_outputs(strategy: str, tasks: Sequence[Any], *, same_inputs: bool = False) -> None:
    """Raises UsageError where a task compares no classes; with `same_inputs` also where tasks read different modalities."""
    for task in tasks:
        if not hasattr(task, "judged"):
            raise UsageError(
                f"continual.strategy={strategy} needs tasks that tell classes apart, which tasks.{task.name} does not: "
                "take ewc, l2, si, replay or agem"
            )
    readers = {getattr(task, "tokenizer", None) for task in tasks}
    if same_inputs and len(readers) > 1:
        raise UsageError(
            f"continual.strategy={strategy} asks earlier tasks about the examples of later ones: all must read one "
            f"tokenizer, but they read {', '.join(map(str, sorted(readers, key=str)))}"
        )


def answers_of(task: Any, model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """What a task answers to a batch, [B,C]: its logits, over the classes that its own records have."""
    logits, own = task.judged(model, batch), getattr(task, "own_classes", None)
    return logits if own is None else logits[:, jnp.asarray(own())]


def fold_gradients(
    program: Program,
    state: TrainState,
    batches: BatchIterator,
    count: int,
    function: Callable[[Any, Mapping[str, jax.Array]], jax.Array],
    carry: Any,
    add: Callable[[Any, Any], Any],
) -> Any:
    """Go through the first `count` examples one by one: carry ← add(carry, gradient of function(model, row)).

    A row is a batch of one. Gradients are shaped as the parameters. The carry stays where the compiler puts it.
    """
    replicated = NamedSharding(program.mesh, PartitionSpec())

    @jax.jit
    def run(state: TrainState, batch: Mapping[str, jax.Array], carry: Any) -> Any:
        batch = jax.lax.with_sharding_constraint(batch, jax.tree.map(lambda _: replicated, dict(batch)))

        def value(parameters: Any, row: Any) -> jax.Array:
            anew = jax.tree.map(lambda x: x, (parameters, state.variables))
            return function(nnx.merge(program.structure(), *anew, state.kept), row)

        def one(carry: Any, row: Any) -> Any:
            gradient = jax.grad(value)(state.parameters, jax.tree.map(lambda x: x[None], row))
            return add(carry, gradient), None

        return jax.lax.scan(one, carry, batch)[0]

    while count > 0:
        rows = {name: found for name, found in next(batches).items() if name != "id"}
        batch = from_local_rows(rows, program.mesh)
        size = len(next(iter(batch.values())))
        with jax.set_mesh(program.mesh):
            carry = run(state, batch if size <= count else {n: x[:count] for n, x in batch.items()}, carry)
        count -= size
    return carry
