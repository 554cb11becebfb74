"""Affinity of tasks, or how they pull at the weights they share: cosines between the gradients of their losses (Yu 2020, §2; Fifty 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.sharding import path_name
from unimodal.task import Task
from unimodal.training.step import Program, TrainState

SHARED = "backbones."  # the parameters that tasks may share


def affinity(
    program: Program,
    tasks: Mapping[str, Task],
    state: TrainState,
    batches: Callable[[str], Iterable[Mapping[str, jax.Array]]],
    count: int,
) -> dict[str, Any]:
    """Compare the gradients of every two tasks by the backbones' parameters, at the weights of `state`.

    batches: name → batches of the task, of which 2·`count` are read. The gradient of each half is kept until the end, so
    this takes the memory of twice as many copies of the backbones as there are tasks.

    Returns `tasks`; `cosine` [N,N]: of the mean gradients of two tasks, over the parameters that both use, and on the
    diagonal between the two halves of a task's own batches, beyond which no other task can be expected to agree with it;
    `norm` [N], the length of each mean gradient; `batches`. None stands where two tasks share nothing.
    """
    halves: list[dict[str, jax.Array]] = []
    with jax.set_mesh(program.mesh):
        for name, task in tasks.items():
            gradient = program.gradient(name, task.loss)
            waiting = iter(batches(name))
            for half in range(2):
                total: Any = None
                for number in range(count):
                    key = jax.random.fold_in(jax.random.key(program.seed), 2 * number + half)
                    found = _backbones(gradient(state, next(waiting), key))
                    total = found if total is None else jax.tree.map(jnp.add, total, found)
                halves.append(jax.tree.map(partial(_scaled, by=1 / count), total))
        products = {name: np.asarray(_products(*(half[name] for half in halves))) for name in halves[0]}
    return {"tasks": list(tasks), **_compared(products), "batches": 2 * count}


def _backbones(gradients: Any) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(gradients)
    return {name: leaf.astype(jnp.float32) for path, leaf in leaves if (name := path_name(path)).startswith(SHARED)}


def _scaled(x: jax.Array, by: float) -> jax.Array:
    return x * by


@jax.jit
def _products(*gradients: jax.Array) -> jax.Array:
    """Inner products of every two of the gradients of one parameter: [2N,2N]."""
    return jnp.stack([jnp.stack([jnp.vdot(a, b) for b in gradients]) for a in gradients])


def _compared(products: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Inner products [2N,2N] of halves, by parameter → cosines and norms. Halves 2i and 2i+1 belong to task i."""
    each = np.stack(list(products.values())).astype(np.float64)
    count = each.shape[1] // 2
    pairs = each.reshape(len(each), count, 2, count, 2)
    whole = pairs.mean(axis=(2, 4))  # of mean gradients
    used = np.diagonal(whole, axis1=1, axis2=2) != 0  # NaN is used, and shows
    cosine: list[list[float | None]] = [[None] * count for _ in range(count)]
    for i in range(count):
        for j in range(count):
            both = used[:, i] & used[:, j]
            if i == j:
                found = pairs[:, i, :, i, :][both].sum(axis=0)
                top, bottom = found[0, 1], np.sqrt(found[0, 0] * found[1, 1])
            else:
                top = whole[both, i, j].sum()
                bottom = np.sqrt(whole[both, i, i].sum() * whole[both, j, j].sum())
            cosine[i][j] = None if bottom == 0 else float(top / bottom)
    return {"cosine": cosine, "norm": [float(np.sqrt(whole[:, i, i].sum())) for i in range(count)]}
