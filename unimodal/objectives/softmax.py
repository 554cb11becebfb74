"""Softmax cross-entropy, which the other objectives use: dense, or chunked so that the logits never exist all at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from unimodal.objectives.reduction import Metrics, as_weights, example_mean, example_sum


class PositionLoss(NamedTuple):
    """Cross-entropy at each position, as float32 arrays of one shape."""

    objective: jax.Array  # what is minimised, smoothing and z-loss included
    nats: jax.Array  # plain -log p(target)
    correct: jax.Array  # 1 or 0


LOG_Z = "log_z"  # what chunks keep for their backward pass


@jax.custom_jvp
def log_sum_exp(logits: jax.Array) -> jax.Array:
    """Compute log Σ exp over the last axis: `[..., V]` → `[...]`.

    The gradient, the softmax, takes one pass over the logits, which are the largest array of a language model's step.
    """
    largest, rest = _largest_and_rest(logits)
    return largest + rest


@log_sum_exp.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Keep them apart: rounding their sum would round the softmax of large logits too.
    largest, rest = (checkpoint_name(part, LOG_Z) for part in _largest_and_rest(primals[0]))
    softmax = jnp.exp(primals[0] - largest[..., None] - rest[..., None])
    return largest + rest, (softmax * tangents[0]).sum(axis=-1)


def _largest_and_rest(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    largest = logits.max(axis=-1)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    return largest, jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1))


def position_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> PositionLoss:
    """Compute cross-entropy at each position, in nats.

    Args:
        logits: `[..., V]`, any float dtype.
        targets: `[...]` integer classes, or `[..., V]` float distributions (soft labels).
        label_smoothing: share of the target spread evenly over all V classes (Szegedy et al. 2016, section 7).
        z_loss: weight of log²Z, which keeps the logits from drifting (Chowdhery et al. 2022, section 5).

    A position is correct when the target's logit (for soft labels: the likeliest class's) is the *only* largest one, so
    a model whose outputs are all equal scores 0, not 1.
    """
    logits = logits.astype(jnp.float32)
    log_z = log_sum_exp(logits)
    soft = jnp.issubdtype(targets.dtype, jnp.floating)
    likeliest = jnp.argmax(targets, axis=-1) if soft else targets
    # Compare and sum instead of gathering: this stays local when V is sharded, and its gradient is no scatter.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == likeliest[..., None]
    target_logit = jnp.where(is_target, logits, 0.0).sum(axis=-1)
    if soft:
        targets = targets.astype(jnp.float32)
        mass = targets.sum(axis=-1)
        nats = mass * log_z - (targets * logits).sum(axis=-1)
    else:
        mass = jnp.ones_like(log_z)
        nats = log_z - target_logit
    objective = nats
    if label_smoothing:
        spread = log_z - logits.mean(axis=-1)
        objective = (1.0 - label_smoothing) * nats + label_smoothing * spread
    if z_loss:
        objective = objective + z_loss * jnp.square(log_z)
    # Do not use argmax, a slow two-operand reduction on CPU. log_z needs the largest anyway, and the pass that sums the
    # exponentials also counts, in float32, how many logits are as large.
    largest = jax.lax.stop_gradient(logits).max(axis=-1)
    alone = (logits == largest[..., None]).sum(axis=-1, dtype=jnp.float32) == 1
    correct = alone & (target_logit == largest) & jnp.isfinite(log_z)
    return PositionLoss(objective, nats, correct.astype(jnp.float32))


def sum_positions(positions: PositionLoss, weights: jax.Array, count_name: str = "tokens") -> tuple[jax.Array, Metrics]:
    """Reduce a `PositionLoss` of `[B, ...]` to a loss `[B]`, the mean over counted positions, and sums over the batch."""
    sums = {name: example_sum(value, weights).sum() for name, value in positions._asdict().items()}
    return example_mean(positions.objective, weights), {**sums, count_name: weights.sum()}


def silence_uncounted(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Set logits and soft targets to 0 at zero weight: a NaN there would reach the gradient as 0 · NaN."""
    counted = (weights > 0)[..., None]
    soft = jnp.issubdtype(targets.dtype, jnp.floating)
    return jnp.where(counted, logits, 0.0), jnp.where(counted, targets, 0.0) if soft else targets


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """Compute weighted cross-entropy per example.

    Args:
        logits: `[B, ..., V]`, any float dtype.
        targets: `[B, ...]` integers, any value where the weight is 0; or `[B, ..., V]` float distributions.
        weights: `[B, ...]` float, int or bool; 0 leaves a position out. None counts all.

    Returns:
        loss `[B]` float32 in nats per counted position, and sums `objective`, `nats`, `correct`, `tokens`.
    """
    weights = as_weights(weights, logits.shape[:-1])
    logits, targets = silence_uncounted(logits, targets, weights)
    positions = position_cross_entropy(logits, targets, label_smoothing=label_smoothing, z_loss=z_loss)
    return sum_positions(positions, weights)


def chunked_cross_entropy(
    hidden_BTD: jax.Array,
    table_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array | None = None,
    *,
    chunk: int = 256,
    bias_V: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """Compute `cross_entropy(hidden @ table + bias, targets, weights)` with only `[B, chunk, V]` logits at a time.

    Chunks run along T, so a batch that is sharded over devices stays where it is. Of n chunks, chunk i takes positions i,
    i+n, i+2n, … so every device holds an equal part of each chunk where T is sharded too. The backward pass computes the
    logits again, but not their log-sum-exp. The product has the hidden's dtype and is summed in float32. The table's
    gradient is summed over chunks in float32, whatever the table's dtype.

    Args:
        hidden_BTD: hidden states, any float dtype.
        table_DV: output table (the transpose of a tied embedding), any float dtype; or `[R,Q,D,V]`, equal copies for R
            parts of the batch and Q parts of T, which must divide. If each copy is on the devices of its part, the
            table's gradient crosses devices once, and not once for every chunk.
        chunk: most positions of T per step; T is padded to a whole number of equal steps.

    Raises:
        ValueError: `chunk` is less than 1.
    """
    weights_BT = as_weights(weights_BT, hidden_BTD.shape[:2])
    hidden = jnp.where((weights_BT > 0)[..., None], hidden_BTD, 0.0)

    def judged(logits: jax.Array, targets: jax.Array) -> PositionLoss:
        return position_cross_entropy(logits, targets, label_smoothing=label_smoothing, z_loss=z_loss)

    return sum_positions(in_chunks(judged, hidden, table_DV, targets_BT, chunk=chunk, bias_V=bias_V), weights_BT)


def in_chunks(
    read: Callable[..., Any],
    hidden_BTD: jax.Array,
    table_DV: jax.Array,
    *arrays_BT: jax.Array,
    chunk: int,
    bias_V: jax.Array | None = None,
) -> Any:
    """Run `read(logits, *arrays)` over all positions with `[B, chunk, V]` logits at a time: a pytree of `[B,T,...]`.

    `read` takes float32 logits `[B,t,V]` and the same positions of the arrays, `[B,t]`. It must treat each position by
    itself. See `chunked_cross_entropy` for the other arguments.

    Raises:
        ValueError: `chunk` is less than 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    B, T, _ = hidden_BTD.shape
    table = (table_DV if table_DV.ndim == 4 else table_DV[None, None]).astype(jnp.float32)
    R, Q = table.shape[:2]
    steps = -(-T // chunk)
    chunk = -(-T // (steps * Q)) * Q

    def split(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, 0), (0, steps * chunk - T)) + ((0, 0),) * (array.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, chunk, steps, *array.shape[2:]), 2, 0)

    def step(carry: None, piece: tuple[jax.Array, ...]) -> tuple[None, Any]:
        hidden, *arrays = piece
        # From float32 down to the hidden's dtype *inside* the step: its transpose sums the table's gradient in float32.
        kernel = table.astype(hidden.dtype)
        parts = hidden.reshape(R, B // R, Q, chunk // Q, -1)
        # One product of [bt,d] and [d,v] for each copy: as an einsum, XLA's CPU transposes the logits three times.
        product = partial(jnp.matmul, preferred_element_type=jnp.float32)
        logits = jax.vmap(jax.vmap(product, (1, 0), 1))(parts, kernel).reshape(B, chunk, -1)
        if bias_V is not None:
            logits = logits + bias_V.astype(jnp.float32)[None, None, :]
        return carry, read(logits, *arrays)

    def joined(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 2).reshape(B, chunk * steps, *x.shape[3:])[:, :T]

    pieces = tuple(split(array) for array in (hidden_BTD, *arrays_BT))
    policy = jax.checkpoint_policies.save_only_these_names(LOG_Z)
    _, stacked = jax.lax.scan(jax.checkpoint(step, policy=policy, prevent_cse=False), None, pieces)
    return jax.tree.map(joined, stacked)
