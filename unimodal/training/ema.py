"""An exponential moving average of all parameters that are trained, to evaluate and to start other runs from."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.state import towards
from unimodal.training.optimizer import OptimizerState
from unimodal.training.parameters import Parameter, described
from unimodal.training.rounding import full


class Ema(NamedTuple):
    """The average after n steps: Σ dⁿ⁻ᵗ θₜ / Σ dⁿ⁻ᵗ over the parameters after each step t = 1 … n, d the decay.

    So the random weights that training starts from have no part in it (Kingma 2015, §3, corrects moments in this way). Steps
    that were skipped are none.
    """

    count: jax.Array  # n
    values: dict[str, Any]  # by parameter, float32, in the parameter's shards; θ₀ while n is 0


def begin_ema(parameters: Any, optimizer: Any) -> Ema:
    """The average before the first step. Of parameters that are frozen for good nothing is kept."""
    kept = [p for p in described(parameters) if not isinstance(optimizer, OptimizerState) or p.name in optimizer.inner]
    copies = {p.name: p.like(jnp.array(_value(p, optimizer), copy=True)) for p in kept}
    return Ema(jnp.zeros((), jnp.int32), copies)


def advance_ema(ema: Ema, decay: float, parameters: Any, optimizer: Any) -> Ema:
    """The average with the parameters after one more step."""
    count = ema.count + 1
    # 1 − dⁿ without the digits that a subtraction would lose.
    share = (1 - decay) / -jnp.expm1(count.astype(jnp.float32) * math.log(decay))
    share = jnp.where(count == 1, 1.0, share)
    found = {
        p.name: p.like(towards(_array(ema.values[p.name]), _value(p, optimizer), share))
        for p in described(parameters)
        if p.name in ema.values
    }
    return Ema(count, found)


def with_ema(ema: Ema, parameters: Any) -> Any:
    """The parameters with their averages in their place, in their own precision."""
    leaves, structure = jax.tree_util.tree_flatten(parameters, is_leaf=lambda x: isinstance(x, nnx.Variable))
    names = [p.name for p in described(parameters)]
    found = zip(names, leaves, strict=True)
    return structure.unflatten(_swapped(ema.values[name], leaf) if name in ema.values else leaf for name, leaf in found)


def _swapped(average: Any, leaf: Any) -> Any:
    return leaf.replace(_array(average).astype(leaf.get_value().dtype))


def _value(p: Parameter, optimizer: Any) -> jax.Array:
    """The parameter in float32: of half-precision ones the master, where there is one."""
    masters = optimizer.master if isinstance(optimizer, OptimizerState) else {}
    return full(_array(masters.get(p.name, p.leaf)))


def _array(leaf: Any) -> jax.Array:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
