"""Steps whose numbers are not finite, and those whose loss or gradient leaps far above what it was lately: the former are
left out always, the latter where `skip_spikes` says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

WINDOW = 128  # steps that count in the mean, about
LEAST = 32  # steps of a task before one of them can be a spike
_FLOOR = 0.01  # of the mean: the least that counts as a standard deviation


class Spikes(NamedTuple):
    """How the loss and the norm of the gradient were lately, for one task. Both are columns of `mean` and `variance`."""

    count: jax.Array  # steps of the task whose numbers were finite
    mean: jax.Array  # [2] float32
    variance: jax.Array  # [2] float32


def begin_spikes(tasks: Sequence[str]) -> dict[str, Spikes]:
    """Nothing seen yet."""
    return {
        name: Spikes(jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.float32), jnp.zeros(2, jnp.float32)) for name in tasks
    }


def judge_spikes(
    spikes: Mapping[str, Spikes], losses: Mapping[str, jax.Array], norm: jax.Array, limit: float
) -> tuple[dict[str, Spikes], dict[str, jax.Array]]:
    """What is known after a step with these `losses`, and for each of its tasks whether the step is a spike.

    A spike lies more than `limit` standard deviations above the running mean. It counts in the mean as if it lay there, so that
    a level that stays higher is no spike for long.
    """
    after, found = dict(spikes), {}
    for name, loss in losses.items():
        before, now = spikes[name], jnp.stack([loss, norm]).astype(jnp.float32)
        deviation = jnp.maximum(jnp.sqrt(before.variance), _FLOOR * jnp.abs(before.mean))
        most = jnp.where(before.count >= LEAST, before.mean + limit * deviation, jnp.inf)
        finite = jnp.isfinite(now).all()
        found[name] = finite & (now > most).any()
        near = jnp.minimum(now, most)
        share = 1 / jnp.minimum(before.count + 1, WINDOW).astype(jnp.float32)
        change = near - before.mean
        next_one = Spikes(
            before.count + 1,
            before.mean + share * change,
            (1 - share) * (before.variance + share * jnp.square(change)),
        )
        after[name] = jax.tree.map(lambda new, old, finite=finite: jnp.where(finite, new, old), next_one, before)
    return after, found


def judge_numbers(losses: Mapping[str, jax.Array], gradients: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The gradient's norm, and for each task 0 or what is wrong: see `Program.parameter_names`."""
    squares = jnp.stack([jnp.square(g.astype(jnp.float32)).sum() for g in jax.tree.leaves(gradients)])
    norm = jnp.sqrt(squares.sum())
    finite = {name: jnp.isfinite(loss) for name, loss in losses.items()}
    # A loss that is not finite spoils the gradient of all: then that is the fault, and of that task alone.
    first = jnp.argmin(jnp.append(jnp.isfinite(squares), False)).astype(jnp.int32)
    gradient = jnp.where(jnp.isfinite(norm) | ~jnp.stack(list(finite.values())).all(), 0, 2 + first)
    return norm, {name: jnp.where(fine, gradient, 1) for name, fine in finite.items()}
