"""Averaged gradient episodic memory: no step may raise the loss on what is remembered (Chaudhry 2019, equation 11).

Reads memory, memory_share and balanced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.continual.strategies import replay
from unimodal.training.guidance import Guidance


class Strategy(replay.Strategy):
    """g ← g − (g·r / r·r) r where g·r < 0, r the gradient on a batch of remembered examples. Otherwise r is not followed."""

    def guidance(self) -> Guidance:
        return Guidance(combine=without_conflict)


def without_conflict(gradients: Sequence[Any]) -> Any:
    """The first gradient without what it has against the sum of the others."""
    g, *others = gradients
    r = jax.tree.map(lambda *each: jnp.stack([x.astype(jnp.float32) for x in each]).sum(0), *others)
    along = _inner(g, r)
    factor = jnp.where(along < 0, along / jnp.maximum(_inner(r, r), 1e-30), 0.0)
    return jax.tree.map(lambda a, b: (a - factor * b).astype(a.dtype), g, r)


def _inner(a: Any, b: Any) -> jax.Array:
    products = jax.tree.map(lambda x, y: (x.astype(jnp.float32) * y.astype(jnp.float32)).sum(), a, b)
    return jnp.stack(jax.tree.leaves(products)).sum()
