"""AdamW with warm-up and cosine decay, from optax, and what joint training adds to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from unimodal.errors import UsageError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov 2019): peak learning_rate after `warmup` steps, cosine decay to `final` times it; global-norm
    `clip` (0: none); weight_decay on matrices only; `accumulate` micro-batches per step."""

    learning_rate: float = 1e-3
    warmup: int = 100
    final: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise UsageError(f"optimizer.accumulate must be at least 1, but is {self.accumulate}")
        if not 0 < self.learning_rate < math.inf:  # nor NaN
            raise UsageError(f"optimizer.learning_rate must be positive and finite, but is {self.learning_rate}")
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise UsageError(f"optimizer.{name} must be finite and at least 0, but is {value}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"optimizer.{name} must be at least 0 and below 1, but is {getattr(self, name)}")

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate at each of `steps` steps."""
        warmup = min(self.warmup, steps)
        return optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, warmup, max(steps, warmup + 1), self.final * self.learning_rate
        )


def make_optimizer(config: OptimizerConfig, steps: int, *, lazy: bool = False) -> optax.GradientTransformation:
    """The whole chain. `lazy`: parameters that a step's tasks do not use (gradient exactly zero) are left alone in it."""
    adam = lazy_adam if lazy else optax.scale_by_adam
    chain = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    chain += [
        adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
        optax.scale_by_learning_rate(config.schedule(steps)),
    ]
    whole = optax.chain(*chain)
    return permissive(skip_untouched(whole) if lazy else whole)


def is_matrix(parameters: Any) -> Any:
    """Which parameters weight decay is for: those with two logical axes or more (a stacked bias has but one)."""

    def decide(leaf: Any) -> bool:
        return len(leaf.get_metadata().get("axes", (None, None))) >= 2

    return jax.tree.map(decide, parameters, is_leaf=lambda x: isinstance(x, nnx.Variable))


def lazy_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam (Kingma 2015) whose moments do not decay for parameters with no gradient at all.

    When tasks alternate, a head would otherwise go on moving by stale momentum while other tasks have their turn.
    """
    inner = optax.scale_by_adam(b1, b2, epsilon)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        touched, before = _touched(updates), state
        updates, state = inner.update(updates, state, params)
        new: Any = state
        return updates, new._replace(mu=_choose(touched, new.mu, before.mu), nu=_choose(touched, new.nu, before.nu))

    return optax.GradientTransformation(inner.init, update)


def skip_untouched(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, with a zero update (no weight decay either) for parameters with no gradient at all."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        touched = _touched(updates)
        updates, state = inner.update(updates, state, params)
        return _choose(touched, updates, jax.tree.map(jnp.zeros_like, updates)), state

    return optax.GradientTransformation(inner.init, update)


def permissive(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, traced under JAX's standard promotion rules: optax relies on them, whatever its caller is held to."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _touched(gradients: Any) -> Any:
    return jax.tree.map(lambda g: jnp.any(g != 0), gradients)


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    return jax.tree.map(jnp.where, condition, yes, no)
