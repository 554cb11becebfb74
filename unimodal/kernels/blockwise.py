"""Attention tile by tile in plain XLA: memory linear in T, and no work for tiles that nobody sees.

The softmax is kept as a running maximum and sum (Milakov 2018; Rabe 2021), and the backward pass computes the weights
anew from their log-sum (Dao 2022, algorithm 4). Which tiles are seen is known while tracing, so a window costs
T·window. Where T is split over devices, keys and values travel round a ring and each device meets all of them
(Liu 2023): every device holds T/devices of everything, whatever the pattern, and any number of heads will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.visibility import Pattern

LOWEST = -1e30  # below any logit, and finite: differences of it make no NaN


@dataclass(frozen=True)
class Plan:
    """What is static of one call. size, count: of the tiles of one device; devices: of the ring along `axis`; steps: how
    many of them a device has to hear from."""

    pattern: Pattern
    scale: float
    size: int
    count: int
    devices: int = 1
    axis: str | None = None

    @property
    def steps(self) -> int:
        """All, unless looking back through a window: then only as many neighbours as it reaches."""
        p = self.pattern
        if not (p.narrow and p.causal and not p.global_tokens):
            return self.devices
        assert p.window is not None
        return min(self.devices, 1 + -(-(p.window - 1) // (self.size * self.count)))

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The seen tiles (i, j) of each pair of devices, [queries' device, keys' device, most, 2], and how many they are."""
        n, c = self.devices, self.count
        seen = self.pattern.tiles(self.size, n * c).reshape(n, c, n, c).transpose(0, 2, 1, 3)
        counts = seen.sum(axis=(2, 3)).astype(np.int32)
        lists = np.zeros((n, n, max(int(counts.max()), 1), 2), np.int32)
        for d, s in np.ndindex(n, n):
            found = np.argwhere(seen[d, s])
            lists[d, s, : len(found)] = found
        return lists, counts


def blockwise(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segment: jax.Array | None,
    pattern: Pattern,
    *,
    scale: float,
    tile: int = 512,
    axis: str | None = None,
    devices: int = 1,
) -> jax.Array:
    """[B,T,H,K], as `dense.attend` under the pattern's mask; T must be a multiple of what `tiling` says.

    With `axis` inside `jax.shard_map`: T is what one of `devices` along that mesh axis holds, neighbours in order, and
    `pattern` is still of the whole row. Float32 sums whatever the dtype. A query that sees nothing gets zeros.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    size, count = tiling(T * devices, devices, tile)
    assert size * count == T, "pad to a whole number of tiles first"
    plan = Plan(pattern, scale, size, count, devices, axis)
    q = q_BTHK.reshape(B, count, size, G, H // G, K).transpose(1, 0, 3, 4, 2, 5)  # [tiles,B,G,R,size,K]
    k, v = (a.reshape(B, count, size, G, K).transpose(1, 0, 3, 2, 4) for a in (k_BSGK, v_BSGK))  # [tiles,B,G,size,K]
    tiles = None if segment is None else segment.reshape(B, count, size).transpose(1, 0, 2)
    out: Any = _attend(plan, q, k, v, tiles)
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(B, T, H, K)


def tiling(length: int, devices: int, tile: int = 512) -> tuple[int, int]:
    """Size of a tile and tiles per device for rows of `length`, which are to be padded to devices · count · size."""
    local = -(-length // devices)
    count = -(-local // tile)
    return -(-local // count), count


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None) -> jax.Array:
    return _forward(plan, q, k, v, segment)[0]


def _forward(plan: Plan, q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None) -> tuple[jax.Array, Any]:
    highest = jnp.full(q.shape[:-1], LOWEST, jnp.float32)
    total, sums = jnp.zeros(q.shape[:-1], jnp.float32), jnp.zeros(q.shape, jnp.float32)

    def visit(i: jax.Array, j: jax.Array, source: Any, visitor: Any, carry: Any) -> Any:
        k, v, key_segment = visitor
        highest, total, sums = carry
        logits, mask = _logits(plan, i, j, source, q, k, segment, key_segment)
        before = _take(highest, i)
        now = jnp.maximum(before, jnp.where(mask, logits, LOWEST).max(axis=-1))
        weights = jnp.where(mask, jnp.exp(logits - now[..., None]), 0.0)
        fade = jnp.exp(before - now)
        added = jnp.einsum(
            "bgrts,bgsk->bgrtk", weights.astype(v.dtype), _take(v, j), preferred_element_type=jnp.float32
        )
        return (
            _put(highest, i, now),
            _put(total, i, _take(total, i) * fade + weights.sum(axis=-1)),
            _put(sums, i, _take(sums, i) * fade[..., None] + added),
        )

    _, (highest, total, sums) = _round(plan, visit, (k, v, segment), (highest, total, sums))
    some = total > 0
    out = (sums / jnp.where(some, total, 1.0)[..., None]).astype(q.dtype)
    log_sum = jnp.where(some, highest + jnp.log(jnp.where(some, total, 1.0)), 0.0)
    return out, (q, k, v, segment, out, log_sum)


def _backward(plan: Plan, kept: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    q, k, v, segment, out, log_sum = kept
    delta = (cotangent.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    zeros = lambda a: jnp.zeros(a.shape, jnp.float32)  # noqa: E731

    def visit(i: jax.Array, j: jax.Array, source: Any, visitor: Any, dq: jax.Array) -> Any:
        k, v, key_segment, dk, dv = visitor
        key, value, query, above = _take(k, j), _take(v, j), _take(q, i), _take(cotangent, i)
        logits, mask = _logits(plan, i, j, source, q, k, segment, key_segment)
        weights = jnp.where(mask, jnp.exp(logits - _take(log_sum, i)[..., None]), 0.0)
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        dv = _add(dv, j, product("bgrts,bgrtk->bgsk", weights.astype(v.dtype), above))
        of_weights = product("bgrtk,bgsk->bgrts", above, value)
        of_logits = (weights * (of_weights - _take(delta, i)[..., None]) * plan.scale).astype(q.dtype)
        dq = _add(dq, i, product("bgrts,bgsk->bgrtk", of_logits, key))
        dk = _add(dk, j, product("bgrts,bgrtk->bgsk", of_logits, query))
        return (k, v, key_segment, dk, dv), dq

    visitor, dq = _round(plan, visit, (k, v, segment, zeros(k), zeros(v)), zeros(q), visitor_changes=True)
    dk, dv = _send(plan, visitor[3:], 1 - plan.steps)  # home again
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _round(plan: Plan, visit: Any, visitor: Any, carry: Any, *, visitor_changes: bool = False) -> tuple[Any, Any]:
    """Visit all seen tiles of what this device holds, then of what its neighbours send round."""
    lists, counts = (jnp.asarray(a) for a in plan.pairs())
    known = int(plan.pairs()[1][0, 0])
    here = 0 if plan.axis is None else jax.lax.axis_index(plan.axis)

    def meet(step: Any, visitor: Any, carry: Any) -> tuple[Any, Any]:
        source = (here - step) % plan.devices
        pairs = lists[here, source]

        def one(n: jax.Array, both: Any) -> Any:
            visitor, carry = both
            found = visit(pairs[n, 0], pairs[n, 1], source, visitor, carry)
            return found if visitor_changes else (visitor, found)

        # One device's count is a constant, which whoever counts the program's work can read.
        count = counts[here, source] if plan.devices > 1 else known
        return jax.lax.fori_loop(0, count, one, (visitor, carry))

    def step(n: jax.Array, both: Any) -> Any:
        visitor, carry = meet(n, *both)
        return _send(plan, visitor, 1), carry

    visitor, carry = (
        jax.lax.fori_loop(0, plan.steps - 1, step, (visitor, carry)) if plan.steps > 1 else (visitor, carry)
    )
    return meet(plan.steps - 1, visitor, carry)  # the last ones need not travel on


def _send(plan: Plan, arrays: Any, places: int) -> Any:
    """Pass arrays `places` devices on along the ring."""
    if places % plan.devices == 0:
        return arrays
    assert plan.axis is not None
    order = [(d, (d + places) % plan.devices) for d in range(plan.devices)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, plan.axis, order), arrays)


def _logits(
    plan: Plan, i: Any, j: Any, source: Any, q: Any, k: Any, segment: Any, key_segment: Any
) -> tuple[jax.Array, jax.Array]:
    """Of one tile: logits [B,G,R,size,size] float32 and the mask that goes with them, broadcastable."""
    here = 0 if plan.axis is None else jax.lax.axis_index(plan.axis)
    # Padding to whole tiles sees nothing and, being beyond every limit, is seen by nobody.
    whole = plan.devices * plan.count * plan.size
    limits = jnp.asarray(np.pad(plan.pattern.limit, (0, whole - plan.pattern.length)))
    local = jnp.arange(plan.size, dtype=jnp.int32)
    query = (here * plan.count + i) * plan.size + local
    key = (source * plan.count + j) * plan.size + local
    mask = plan.pattern.sees(query[:, None], key[None, :], limits[query][:, None])[None, None, None]
    if segment is not None:
        ours, theirs = _take(segment, i)[:, :, None], _take(key_segment, j)[:, None, :]
        mask = mask & ((ours == theirs) & (theirs != 0))[:, None, None]
    logits = jnp.einsum("bgrtk,bgsk->bgrts", _take(q, i), _take(k, j), preferred_element_type=jnp.float32)
    return logits * plan.scale, mask


def _take(array: jax.Array, tile: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, tile, 0, keepdims=False)


def _put(array: jax.Array, tile: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(array, value, tile, 0)


def _add(array: jax.Array, tile: jax.Array, value: jax.Array) -> jax.Array:
    return _put(array, tile, _take(array, tile) + value)
