"""How much each parameter matters to tasks: the diagonal of the empirical Fisher information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.data.batches import BatchIterator
from unimodal.sharding import from_local_rows
from unimodal.task import Task
from unimodal.training.step import Program, TrainState


def squared_gradients(
    program: Program, tasks: Sequence[Task], state: TrainState, batches: Mapping[str, BatchIterator], count: int
) -> Any:
    """Sum over tasks of B·E[g²], float32 and shaped as the parameters, g the gradient of the loss of a batch of B examples.

    Where gradients of examples are independent and their mean is small, as at the end of training, B·E[g²] is the mean
    square of one example's gradient (Kirkpatrick 2017, equation 3, with the data's own labels). The data of `count`
    batches of each task is taken from `batches`.
    """
    total = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32, device=p.sharding), state.parameters)
    for task in tasks:
        gradient = program.gradient(task.name, task.loss)
        for number in range(count):
            batch = {name: rows for name, rows in next(batches[task.name]).items() if name != "id"}
            key = jax.random.fold_in(jax.random.key(program.seed + 1), number)
            with jax.set_mesh(program.mesh):
                found = gradient(state, from_local_rows(batch, program.mesh), key)
                total = _added(total, found, jnp.float32(task.batch_size / count))
    return total


@partial(jax.jit, donate_argnums=0)
def _added(total: Any, gradients: Any, share: jax.Array) -> Any:
    return jax.tree.map(lambda t, g: t + share * jnp.square(g.astype(jnp.float32)), total, gradients)
