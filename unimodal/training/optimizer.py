"""AdamW with warm-up and decay, from optax, and what joint training and fine-tuning add to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from unimodal.errors import UsageError
from unimodal.sharding import path_name


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov 2019): peak learning_rate after `warmup` steps, held for `hold` steps, then decay ("cosine" or
    "linear") to `final` times it; global-norm `clip` (0: none); weight_decay on matrices only; `accumulate` micro-batches
    per step. freeze: dotted names of parts of the model that stay as they start, as "tokenizers.audio.convolutions", or
    for so many steps only: "backbones.audio=1000"."""

    learning_rate: float = 1e-3
    warmup: int = 100
    hold: int = 0
    decay: str = "cosine"
    final: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise UsageError(f"optimizer.accumulate must be at least 1, but is {self.accumulate}")
        if not 0 < self.learning_rate < math.inf:  # nor NaN
            raise UsageError(f"optimizer.learning_rate must be positive and finite, but is {self.learning_rate}")
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise UsageError(f"optimizer.{name} must be finite and at least 0, but is {value}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"optimizer.{name} must be at least 0 and below 1, but is {getattr(self, name)}")
        if self.decay not in ("cosine", "linear"):
            raise UsageError(f"optimizer.decay must be cosine or linear, but is {self.decay!r}")
        for entry in self.freeze:
            _frozen_part(entry)

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate at each of `steps` steps."""
        warmup, rate = min(self.warmup, steps), self.learning_rate
        if self.decay == "cosine" and not self.hold:
            return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), self.final * rate)
        left = max(1, steps - warmup - self.hold)
        falling = {
            "linear": optax.linear_schedule(rate, self.final * rate, left),
            "cosine": optax.cosine_decay_schedule(rate, left, self.final),
        }[self.decay]
        rising = optax.linear_schedule(0.0, rate, warmup) if warmup else optax.constant_schedule(rate)
        parts = [rising, optax.constant_schedule(rate), falling]
        return optax.join_schedules(parts, [warmup, warmup + self.hold])


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
    whole = skip_untouched(whole) if lazy else whole
    return permissive(freeze(whole, config.freeze) if config.freeze else whole)


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


def freeze(inner: optax.GradientTransformation, entries: Sequence[str]) -> optax.GradientTransformation:
    """`inner`, without an update for the parameters under `entries` (as in `OptimizerConfig.freeze`).

    What is frozen for good has no part in clipping either, and no moments. What will thaw gathers its moments
    meanwhile: Adam's first steps, on moments it has just begun, would be a jolt to weights that were trained before.
    `init` raises UsageError for a name without parameters.
    """
    parts = dict(_frozen_part(entry) for entry in entries)

    def until(parameters: Any) -> Any:
        """For each parameter the step at which it thaws: 0 never froze, infinity never thaws."""

        def of(path: Any, _leaf: Any) -> float:
            name = path_name(path)
            return max((steps for part, steps in parts.items() if f"{name}.".startswith(f"{part}.")), default=0)

        return jax.tree_util.tree_map_with_path(of, parameters)

    def init(params: Any) -> Any:
        names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        for part in parts:
            if not any(f"{name}.".startswith(f"{part}.") for name in names):
                known = sorted({".".join(name.split(".")[: part.count(".") + 1]) for name in names})
                raise UsageError(f"optimizer.freeze={part!r} is no part of the model; there is {', '.join(known)}")
        return jnp.zeros((), jnp.int32), inner.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        step, state = state
        thaw = until(updates)
        updates = jax.tree.map(lambda u, t: jnp.zeros_like(u) if t == math.inf else u, updates, thaw)
        updates, state = inner.update(updates, state, params)

        def hold(u: jax.Array, t: float) -> jax.Array:
            if t in (0, math.inf):
                return u if t == 0 else jnp.zeros_like(u)
            return jnp.where(step < t, jnp.zeros_like(u), u)

        return jax.tree.map(hold, updates, thaw), (step + 1, state)

    return optax.GradientTransformation(init, update)


def _frozen_part(entry: str) -> tuple[str, float]:
    """An entry of `OptimizerConfig.freeze` → the part's name and the number of steps."""
    part, equals, steps = entry.partition("=")
    if not part or (equals and not (steps.isascii() and steps.isdigit() and int(steps))):
        raise UsageError(
            f"optimizer.freeze={entry!r} must be a part of the model, or PART=STEPS with a positive number"
        )
    return part, int(steps) if equals else math.inf


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
