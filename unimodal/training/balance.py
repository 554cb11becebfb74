"""Balance between the losses of tasks that train in one step.

| balance | what a step follows |
|---|---|
| fixed | the sum of the losses by the tasks' weights |
| uncertainty | the same, each loss divided by a variance that is learned (Kendall 2018, eq. 10) |
| equal | the sum of the gradients, each as long as their mean, times the tasks' weights |
| pcgrad | the sum by the weights, without what gradients take from one another (Yu 2020, algorithm 1) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

BALANCES = ("fixed", "uncertainty", "equal", "pcgrad")
APART = ("equal", "pcgrad")  # these need the gradient of each task by itself
HEAD = "balance"  # the name of `Uncertainty` among a task's heads


class Uncertainty(nnx.Module):
    """The logarithm s of a task's variance, learned from 0: its loss L counts as exp(-s)·L + s/2."""

    def __init__(self) -> None:
        self.log_variance = nnx.Param(jnp.zeros((), jnp.float32), axes=(), kind="vector")


def with_uncertainty(make: Callable[..., Mapping[str, nnx.Module]]) -> Callable[..., Mapping[str, nnx.Module]]:
    """Extend a function that makes a task's heads so that it makes an `Uncertainty` with them."""
    return lambda model, rngs: {**make(model, rngs), HEAD: Uncertainty()}


def balanced(heads: Mapping[str, nnx.Module], value: jax.Array, slope: jax.Array, parts: int = 1) -> Any:
    """A task's loss as it counts, by its heads, and the metrics that say so.

    value: the loss, or what one of `parts` parts of the batch adds to it. slope: a scalar with its gradient, which is the
    value itself for a whole batch (see `terms.part_of`).
    """
    if HEAD not in heads:
        return slope, {}
    head: Any = heads[HEAD]
    s = head.log_variance.get_value()
    # The gradient by s takes the loss itself, and that of the loss takes s as it is.
    counted = jnp.exp(-jax.lax.stop_gradient(s)) * slope
    learned = jnp.exp(-s) * jax.lax.stop_gradient(value) + 0.5 * s / parts
    return counted + learned, {"weight": jnp.exp(-s)}


def without_conflict(gradients: Sequence[Any], key: jax.Array) -> Any:
    """Add up gradients of tasks, each without what it would take from another.

    In random order, g_i loses its component along every g_j that it has a negative inner product with. All of this happens
    in the span of the gradients, so inner products are enough to find how often each g_k counts in the end. They are taken
    over the parameters that several tasks use; of others the gradient stays as it is.
    """
    products, shared = _products(gradients)
    count = len(gradients)
    times = jnp.zeros((count,), jnp.float32)
    for i in range(count):
        order = jax.random.permutation(jax.random.fold_in(key, i), count)
        mine = jnp.eye(count, dtype=jnp.float32)[i]
        for j in order:
            along = mine @ products[:, j]
            length = products[j, j]
            mine = mine.at[j].add(jnp.where((along < 0) & (j != i), -along / jnp.maximum(length, 1e-30), 0.0))
        times += mine
    return _added(gradients, times, shared)


def of_equal_length(gradients: Sequence[Any], weights: Sequence[float]) -> Any:
    """Add up gradients of tasks, each brought to the mean of their lengths and then weighed.

    Lengths are over the parameters that several tasks use; of others the gradient stays as it is, and a task that shares
    nothing has no part in the mean. So no task pulls harder at what they share for having a steeper loss (the aim of Chen
    2018, without learning the weights).
    """
    products, shared = _products(gradients)
    given = jnp.asarray(weights, jnp.float32)
    lengths = jnp.sqrt(jnp.diagonal(products)) / given
    mean = lengths.sum() / jnp.maximum((lengths > 0).sum(dtype=jnp.float32), 1)
    # A gradient that is zero there, as behind a head that begins at zero, or too short to be measured, stays as it is.
    return _added(gradients, jnp.where(lengths > 0, mean / jnp.maximum(lengths, 1e-30), 1.0), shared)


def _products(gradients: Sequence[Any]) -> tuple[jax.Array, list[jax.Array]]:
    """Inner products of every two gradients [N,N] over the parameters that several tasks use, and which those are."""
    shared, products = [], jnp.zeros((len(gradients), len(gradients)), jnp.float32)
    for each in zip(*(jax.tree.leaves(g) for g in gradients), strict=True):
        shared.append(jnp.stack([jnp.any(g != 0) for g in each]).sum() > 1)
        full = [g.astype(jnp.float32) for g in each]
        found = jnp.stack([jnp.stack([jnp.vdot(a, b) for b in full]) for a in full])
        products += jnp.where(shared[-1], found, 0.0)
    return products, shared


def _added(gradients: Sequence[Any], times: jax.Array, shared: Sequence[jax.Array]) -> Any:
    """The sum of the gradients, the k-th `times[k]` times where a parameter is shared, and once elsewhere. Added up in float32:
    a factor may be larger than a half-precision number can be."""
    leaves = zip(*(jax.tree.leaves(g) for g in gradients), strict=True)

    def total(each: Sequence[jax.Array], several: jax.Array) -> jax.Array:
        counted = (jnp.where(several, times[k], 1.0) * g.astype(jnp.float32) for k, g in enumerate(each))
        return sum(counted, jnp.float32(0)).astype(each[0].dtype)

    added = [total(each, several) for each, several in zip(leaves, shared, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(gradients[0]), added)
