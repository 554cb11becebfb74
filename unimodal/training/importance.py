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
    """Sum over tasks of the mean square of one example's gradient, float32 and shaped as the parameters (Kirkpatrick 2017,
    equation 3, with the data's own labels).

    It is told by gradients of batches, whose examples are independent: see `of_one_example`. The data of `count` batches of
    each task is taken from `batches`.
    """
    zeros = lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32, device=p.sharding), state.parameters)  # noqa: E731
    total = zeros()
    for task in tasks:
        gradient, sums, squares = program.gradient(task.name, task.loss), zeros(), zeros()
        for number in range(count):
            batch = {name: rows for name, rows in next(batches[task.name]).items() if name != "id"}
            key = jax.random.fold_in(jax.random.key(program.seed + 1), number)
            with jax.set_mesh(program.mesh):
                found = gradient(state, from_local_rows(batch, program.mesh), key)
                sums, squares = _gathered(sums, squares, found)
        with jax.set_mesh(program.mesh):
            total = _added(total, sums, squares, task.batch_size, count)
    return total


def of_one_example(sums: jax.Array, squares: jax.Array, size: int, count: int) -> jax.Array:
    """The mean square of one example's gradient, of the sums of g and of g² over `count` batches of `size` examples each.

    With the mean μ and the variance s² of a batch's gradient, one example's has the variance size·s², and the square of μ
    is too large by s²/count. Unbiased; never below 0. Of one batch alone no variance is known, and it is size·g².
    """
    if count == 1:
        return size * squares
    mean = sums / count
    variance = jnp.maximum(squares / count - jnp.square(mean), 0) * (count / (count - 1))
    return (size - 1 / count) * variance + jnp.square(mean)


@partial(jax.jit, donate_argnums=(0, 1))
def _gathered(sums: Any, squares: Any, gradients: Any) -> tuple[Any, Any]:
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
    return jax.tree.map(jnp.add, sums, wide), jax.tree.map(lambda s, g: s + jnp.square(g), squares, wide)


@partial(jax.jit, donate_argnums=0, static_argnums=(3, 4))
def _added(total: Any, sums: Any, squares: Any, size: int, count: int) -> Any:
    return jax.tree.map(lambda t, s, q: t + of_one_example(s, q, size, count), total, sums, squares)
