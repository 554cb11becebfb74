"""An optimizer of optax's for each parameter by itself, and what joint training and fine-tuning add to it.

Every parameter has a state of its own, steps counted included. So a parameter that is used first at step 5,000 begins as at
step 1, and methods that look at a whole matrix (LARS, LAMB, Adafactor, Muon) see one layer of a stacked parameter at a
time, as they do where layers are unrolled. The learning rate follows the steps of the run.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx

from unimodal.training.optimizers import OPTIMIZERS, OptimizerConfig, Rate
from unimodal.training.parameters import Parameter, described, rate_factors, thawing
from unimodal.training.rounding import apply_updates, bounded, full, rounded_by_chance
from unimodal.training.schedule_free import average

__all__ = ["OptimizerConfig", "OptimizerState", "apply_updates", "averaged", "make_optimizer", "without_frozen"]


class OptimizerState(NamedTuple):
    """Everything an optimizer keeps between steps."""

    inner: dict[str, Any]  # optax's state by parameter, float32; nothing of those that are frozen for good
    master: dict[str, Any]  # float32 values of half-precision parameters, where the config asks for them
    step: jax.Array  # how many steps there were, whatever they touched


def make_optimizer(config: OptimizerConfig, steps: int, *, lazy: bool = False) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps. Its updates are float32 and go to `apply_updates`.

    `lazy`: a parameter that a step's tasks do not use (gradient exactly zero) is left alone in it, and so is its state.
    When tasks alternate, a head would otherwise go on moving by stale momentum while other tasks have their turn.
    """
    schedule = config.schedule(steps)

    def init(params: Any) -> OptimizerState:
        parameters = described(params)
        rate_factors(parameters, config.learning_rate_factors, config.layer_decay)  # raises for what matches nothing
        thaw = thawing([p.name for p in parameters], config.freeze)
        trained = [p for p in parameters if thaw[p.name] < math.inf]
        inner = {p.name: _like(p, _init(config, p)) for p in trained}
        master = {p.name: p.like(full(p.value)) for p in trained if config.master_weights and p.half and not p.written}
        return OptimizerState(inner, master, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: OptimizerState, params: Any = None) -> tuple[Any, OptimizerState]:
        parameters, rate = described(params), schedule(state.step)
        factors = rate_factors(parameters, config.learning_rate_factors, config.layer_decay)
        thaw = thawing([p.name for p in parameters], config.freeze)
        # What is frozen for good has no part in clipping either.
        gradients = {g.name: full(g.value) for g in described(updates) if thaw[g.name] < math.inf}
        clipped = _clipped(gradients, config.clip)
        inner, master, changes = {}, {}, {}
        for p in parameters:
            if p.name not in gradients:
                continue
            if p.written:  # schedule-free training would draw it back to where it began
                inner[p.name] = state.inner[p.name]
                continue
            before, value = _values(state.inner[p.name]), full(_values(state.master.get(p.name, p.leaf)))
            change, after = _update(config, p, clipped[p.name], before, value, jnp.asarray(rate * factors[p.name]))
            still = jnp.zeros_like(change)
            if thaw[p.name]:
                frozen = state.step < thaw[p.name]
                change, after = _where(frozen, (still, _gathered(before, after)), (change, after))
            if lazy:
                touched = jnp.any(gradients[p.name] != 0)
                change, after = _where(touched, (change, after), (still, before))
            inner[p.name], new = _like(p, after), bounded(p, value + change, change)
            if p.name in state.master:
                master[p.name], change = p.like(new), new - full(p.value)
            elif config.stochastic_rounding and p.half:
                change = full(rounded_by_chance(new, p.value.dtype, _chance(p, state.step))) - value
            changes[p.name] = change
        result = [p.like(changes.get(p.name, jnp.zeros(p.value.shape, jnp.float32))) for p in parameters]
        return _tree(params).unflatten(result), OptimizerState(inner, master, state.step + 1)

    return optax.GradientTransformation(init, _permissive(update))


def without_frozen(state: Any, params: Any) -> Any:
    """The parameters, of which those that are frozen for good have no gradient.

    Nothing would follow it. So it has no part in the norm that is logged and judged, nor in how the gradients of tasks are
    balanced, and the compiler leaves out what would compute it.
    """
    if not isinstance(state, OptimizerState):
        return params
    leaves = [p.leaf if p.name in state.inner else p.like(jax.lax.stop_gradient(p.value)) for p in described(params)]
    return _tree(params).unflatten(leaves)


def averaged(state: Any, params: Any) -> Any:
    """The parameters to evaluate and to publish: the average that schedule-free training keeps, else `params` themselves."""
    inner = state.inner.values() if isinstance(state, OptimizerState) else ()
    if not any(isinstance(one, optax.contrib.ScheduleFreeState) for one in inner):
        return params

    def one(p: Parameter) -> Any:
        if p.name not in state.inner or p.written:
            return p.leaf
        kept = _values(state.inner[p.name])
        return p.like(average(p, p.value, kept.b1, kept.z))

    return _permissive(lambda: _tree(params).unflatten([one(p) for p in described(params)]))()


def _clipped(gradients: dict[str, jax.Array], limit: float) -> dict[str, jax.Array]:
    """Gradients scaled down to a global norm of `limit`, unless that is 0.

    By one factor for all: a compiler multiplies by it where gradients are read, but, as optax has it, would write every
    gradient, divided by the norm, to memory first.
    """
    if not limit:
        return gradients
    norm = optax.tree.norm(list(gradients.values()))
    factor = jnp.where(norm < limit, jnp.ones_like(norm), limit / norm)
    return {name: gradient * factor.astype(gradient.dtype) for name, gradient in gradients.items()}


def _init(config: OptimizerConfig, p: Parameter) -> Any:
    return _each_layer(OPTIMIZERS[config.name](config, p, 0.0).init, p)(full(p.value))


def _update(
    config: OptimizerConfig, p: Parameter, gradient: jax.Array, state: Any, value: jax.Array, rate: jax.Array
) -> tuple[jax.Array, Any]:
    """The change of a parameter and its new state."""

    def one(gradient: jax.Array, state: Any, value: jax.Array, rate: Rate) -> Any:
        return OPTIMIZERS[config.name](config, p, rate).update(gradient, state, value)

    rates = jnp.broadcast_to(rate, p.value.shape[:1]) if p.stacked else rate
    return _each_layer(one, p)(gradient, state, value, rates)


def _each_layer(function: Callable[..., Any], p: Parameter) -> Callable[..., Any]:
    return jax.vmap(function) if p.stacked else function


def _gathered(before: Any, after: Any) -> Any:
    """The state of a parameter that is frozen but will thaw: its moments go on.

    Adam's first steps, on moments that it has just begun, would be a jolt to weights that were trained before.
    """
    if isinstance(after, optax.contrib.ScheduleFreeState):  # but its averages are of weights that did not move
        return before._replace(base_optimizer_state=after.base_optimizer_state)
    return after


def _permissive(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced under JAX's standard promotion rules: optax relies on them, whatever its caller is held to."""

    def traced(*arguments: Any, **options: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*arguments, **options)

    return traced


def _chance(p: Parameter, step: jax.Array) -> jax.Array:
    """The key of one parameter's rounding in one step."""
    return jax.random.fold_in(jax.random.key(zlib.crc32(p.name.encode())), step)


def _where(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _like(p: Parameter, state: Any) -> Any:
    """A state whose arrays of the parameter's shape lie where the parameter does."""
    return jax.tree.map(p.like, state)


def _values(state: Any) -> Any:
    return jax.tree.map(lambda x: x.get_value() if _is_variable(x) else x, state, is_leaf=_is_variable)


def _tree(params: Any) -> Any:
    """The tree of parameters, with variables for leaves."""
    return jax.tree.structure(params, is_leaf=_is_variable)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
