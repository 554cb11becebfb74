"""Reduction of values at positions to one loss per example, and to sums over the batch.

All objectives follow one rule. The loss `[B]` is the mean over an example's own counted positions, or 0 where it has none.
Metrics are *sums over the batch*: they add up over batches and hosts, and an average is the ratio of two of them:

    loss, sums = causal_lm(logits, ids)
    nats_per_token = ratio(sums["nats"], sums["tokens"])
    token_mean = ratio(sums["objective"], sums["tokens"])  # differentiable: every token of the batch weighs the same
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp

Metrics: TypeAlias = dict[str, jax.Array]
Scalar: TypeAlias = float | jax.Array


def ratio(total: jax.Array, count: jax.Array) -> jax.Array:
    """Divide in float32, with 0 where `count` is 0 and no NaN in value or gradient. Both have the same shape."""
    total, count = total.astype(jnp.float32), count.astype(jnp.float32)
    some = ~(count <= 0)  # a count that is NaN gives NaN
    return jnp.where(some, total / jnp.where(some, count, 1.0), 0.0)


def example_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum with weights over all axes but the first: `[B, ...], [B, ...] → [B]` float32.

    Values at zero weight do not count, even if they are NaN.
    """
    kept = jnp.where(weights > 0, values.astype(jnp.float32), 0.0) * weights
    return kept.reshape(kept.shape[0], -1).sum(axis=1)


def example_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Average with weights over all axes but the first: `[B, ...], [B, ...] → [B]` float32, 0 where all weights are 0."""
    return ratio(example_sum(values, weights), example_sum(jnp.ones_like(weights), weights))


def as_weights(weights: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """Convert weights or a boolean mask to float32. None: all ones.

    Raises:
        ValueError: the weights are not of `shape`.
    """
    if weights is None:
        return jnp.ones(shape, jnp.float32)
    if weights.shape != shape:
        raise ValueError(f"weights have shape {weights.shape}, but the positions they weigh have shape {shape}")
    return weights.astype(jnp.float32)


def as_scalar(value: Scalar) -> jax.Array:
    """Convert a Python number or 0-d array of any float dtype to a float32 scalar."""
    return jnp.asarray(value).astype(jnp.float32)
