"""Rounding of updates: each is added in float32, kept within bounds and rounded to what is stored."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from unimodal.training.parameters import Parameter, described


def full(x: Any) -> jax.Array:
    """x in float32, unless it is as precise already."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def apply_updates(params: Any, updates: Any) -> Any:
    """The parameters after their updates. The sum is made in float32, and never leaves a parameter's bounds."""

    def applied(p: Parameter, update: jax.Array) -> Any:
        return p.like(bounded(p, full(p.value) + full(update), update).astype(p.value.dtype))

    changes = [update.value for update in described(updates)]
    structure = jax.tree.structure(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return structure.unflatten(applied(p, change) for p, change in zip(described(params), changes, strict=True))


def bounded(p: Parameter, value: jax.Array, change: jax.Array) -> jax.Array:
    """`value` within the bounds of a parameter, where it changed: what was loaded beyond them stays until it is trained."""
    if p.bounds is None:
        return value
    return jnp.where(change == 0, value, jnp.clip(value, *p.bounds))


def rounded_by_chance(x: jax.Array, dtype: DTypeLike, key: jax.Array) -> jax.Array:
    """x as one of the two neighbours of `dtype` that it lies between, so that the mean over many draws is x."""
    near = x.astype(dtype)
    towards = jnp.where(full(near) < x, jnp.inf, -jnp.inf).astype(dtype)
    other = jnp.nextafter(near, towards)
    gap = jnp.abs(full(other) - full(near))
    distance = jnp.abs(x - full(near))
    return jnp.where(jax.random.uniform(key, x.shape) * gap < distance, other, near)
