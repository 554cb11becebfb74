"""Attention tile by tile in plain XLA: memory linear in T, and no work for tiles that nobody sees.

The softmax is a running maximum and sum (Milakov 2018; Rabe 2021). The backward pass computes the weights again from their
log-sum (Dao 2022, algorithm 4). The tiles that a pattern shows are known while tracing, so a window costs T·window. Tiles
that only segments hide are skipped while running. Where T is split over devices, keys and values are passed round a ring,
and each device gets all of them in turn (Liu 2023). Every device holds T/devices of everything, for any pattern and any
number of heads.

In a causal ring with tokens in order, the last device sees all keys and the first only its own, and all wait for the
slowest. In a zigzag each device holds a stretch from the front and its counterpart from the back, so all have the same work
at every step (the placement of Llama 3's context parallelism, Dubey 2024, §3.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.remat import KERNEL, named
from unimodal.visibility import Pattern

LOWEST = -1e30  # below any logit, and finite: differences of it make no NaN


@dataclass(frozen=True)
class Tiles:
    """The static part of one call."""

    pattern: Pattern  # of the whole row
    scale: float  # of the logits
    size: int  # of a tile, in tokens
    count: int  # tiles of one device
    devices: int = 1  # in the ring
    axis: str | None = None  # of the mesh, along which the ring runs
    zigzag: bool = False  # each device holds a stretch from the front and one from the back of the row
    anywhere: bool = False  # global tokens may stand anywhere, not only at the start of the row
    soft_cap: float | None = None  # as in `dense.attend`

    @property
    def steps(self) -> int:
        """Count the steps of the ring: one per device, or fewer where a window reaches only near neighbours."""
        p = self.pattern
        if self.zigzag or not (p.narrow and p.causal and not p.global_tokens):
            return self.devices
        assert p.window is not None
        return min(self.devices, 1 + -(-(p.window - 1) // (self.size * self.count)))

    def places(self) -> np.ndarray:
        """Number each device's tiles by their place in the row, int32 [devices,count]."""
        if not self.zigzag:
            return np.arange(self.devices * self.count, dtype=np.int32).reshape(self.devices, self.count)
        half = self.count // 2
        tiles = np.asarray(stretches(self.devices), np.int32)[:, :, None] * half + np.arange(half, dtype=np.int32)
        return tiles.reshape(self.devices, self.count)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """List the seen tiles (i, j) of each pair of devices, [queries' device, keys' device, most, 2], with their number."""
        n, c, places = self.devices, self.count, self.places()
        seen = self.pattern.tiles(self.size, n * c, anywhere=self.anywhere)[places.reshape(-1)][:, places.reshape(-1)]
        seen = seen.reshape(n, c, n, c).transpose(0, 2, 1, 3)
        counts = seen.sum(axis=(2, 3)).astype(np.int32)
        lists = np.zeros((n, n, max(int(counts.max()), 1), 2), np.int32)
        for d, s in np.ndindex(n, n):
            found = np.argwhere(seen[d, s])
            lists[d, s, : len(found)] = found
        return lists, counts

    def work(self) -> np.ndarray:
        """Count the tiles that each device visits at each step of the ring, int [steps,devices]."""
        counts, here = self.pairs()[1], np.arange(self.devices)
        return np.stack([counts[here, (here - step) % self.devices] for step in range(self.steps)])


def stretches(devices: int) -> list[tuple[int, int]]:
    """Choose two of 2·devices equal stretches of a row for each device: one from the front, its counterpart from the back.

    The even one comes first. In the row's own order it is the first stretch of some device.
    """
    return [(d, 2 * devices - 1 - d) if d % 2 == 0 else (2 * devices - 1 - d, d) for d in range(devices)]


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
    always: jax.Array | None = None,
    zigzag: bool = False,
    soft_cap: float | None = None,
) -> jax.Array:
    """Compute `dense.attend` under the pattern's mask, [B,T,H,K]. T must be a multiple of the size from `tiling`.

    axis: inside `jax.shard_map`, T is the part of one of `devices` along this mesh axis, in order or, if `zigzag`, as in
    `stretches`. `pattern` is of the whole row in any case. always: bool [B,T], the global tokens where they are not the
    first of the row. Sums are float32 for any dtype. A query that sees nothing gets zeros.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    size, count = tiling(T * devices, devices, tile, zigzag=zigzag)
    assert size * count == T, "pad to a whole number of tiles first"
    tiles = Tiles(pattern, scale, size, count, devices, axis, zigzag, always is not None, soft_cap)
    q = q_BTHK.reshape(B, count, size, G, H // G, K).transpose(1, 0, 3, 4, 2, 5)  # [tiles,B,G,R,size,K]
    k, v = (a.reshape(B, count, size, G, K).transpose(1, 0, 3, 2, 4) for a in (k_BSGK, v_BSGK))  # [tiles,B,G,size,K]
    marks = jax.tree.map(lambda a: a.reshape(B, count, size).transpose(1, 0, 2), (segment, always))  # [tiles,B,size]
    out: Any = _attend(tiles, q, k, v, marks)
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(B, T, H, K)


def tiling(length: int, devices: int, tile: int = 512, *, zigzag: bool = False) -> tuple[int, int]:
    """Give the size of a tile and the tiles per device. Rows of `length` must be padded to devices · count · size."""
    if zigzag:
        size, half = tiling(length, 2 * devices, tile)
        return size, 2 * half
    local = -(-length // devices)
    count = -(-local // tile)
    return -(-local // count), count


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiles: Tiles, q: jax.Array, k: jax.Array, v: jax.Array, marks: Any) -> jax.Array:
    return _forward(tiles, q, k, v, marks)[0]


def _forward(tiles: Tiles, q: jax.Array, k: jax.Array, v: jax.Array, marks: Any) -> tuple[jax.Array, Any]:
    highest = jnp.full(q.shape[:-1], LOWEST, jnp.float32)
    total, sums = jnp.zeros(q.shape[:-1], jnp.float32), jnp.zeros(q.shape, jnp.float32)

    def visit(i: jax.Array, j: jax.Array, source: Any, visitor: Any, carry: Any) -> Any:
        k, v, key_marks = visitor
        mask = _mask(tiles, i, j, source, marks, key_marks)
        before = tuple(_take(array, i) for array in carry)

        def seen() -> Any:
            highest, total, sums = before
            logits = _logits(tiles, _take(q, i), _take(k, j))
            now = jnp.maximum(highest, jnp.where(mask, logits, LOWEST).max(axis=-1))
            weights = jnp.where(mask, jnp.exp(logits - now[..., None]), 0.0)
            fade = jnp.exp(highest - now)
            value = _take(v, j)
            added = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), value, preferred_element_type=jnp.float32)
            return now, total * fade + weights.sum(axis=-1), sums * fade[..., None] + added

        return tuple(
            _put(array, i, tile) for array, tile in zip(carry, _if_any(mask, marks, seen, before), strict=True)
        )

    _, (highest, total, sums) = _round(tiles, visit, (k, v, marks), (highest, total, sums))
    some = total > 0
    out = (sums / jnp.where(some, total, 1.0)[..., None]).astype(q.dtype)
    log_sum = jnp.where(some, highest + jnp.log(jnp.where(some, total, 1.0)), 0.0)
    out, log_sum = named(out, KERNEL), named(log_sum, KERNEL)
    return out, (q, k, v, marks, out, log_sum)


def _backward(tiles: Tiles, kept: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    q, k, v, marks, out, log_sum = kept
    delta = (cotangent.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    zeros = lambda a: jnp.zeros(a.shape, jnp.float32)  # noqa: E731

    def visit(i: jax.Array, j: jax.Array, source: Any, visitor: Any, dq: jax.Array) -> Any:
        k, v, key_marks, dk, dv = visitor
        mask = _mask(tiles, i, j, source, marks, key_marks)
        before = _take(dq, i), _take(dk, j), _take(dv, j)

        def seen() -> Any:
            key, value, query, above = _take(k, j), _take(v, j), _take(q, i), _take(cotangent, i)
            logits = _logits(tiles, query, key)
            weights = jnp.where(mask, jnp.exp(logits - _take(log_sum, i)[..., None]), 0.0)
            product = partial(jnp.einsum, preferred_element_type=jnp.float32)
            of_weights = product("bgrtk,bgsk->bgrts", above, value)
            slope = tiles.scale if tiles.soft_cap is None else tiles.scale * (1 - jnp.square(logits / tiles.soft_cap))
            of_logits = (weights * (of_weights - _take(delta, i)[..., None]) * slope).astype(q.dtype)
            return (
                before[0] + product("bgrts,bgsk->bgrtk", of_logits, key),
                before[1] + product("bgrts,bgrtk->bgsk", of_logits, query),
                before[2] + product("bgrts,bgrtk->bgsk", weights.astype(v.dtype), above),
            )

        of_query, of_key, of_value = _if_any(mask, marks, seen, before)
        return (k, v, key_marks, _put(dk, j, of_key), _put(dv, j, of_value)), _put(dq, i, of_query)

    visitor, dq = _round(tiles, visit, (k, v, marks, zeros(k), zeros(v)), zeros(q), visitor_changes=True)
    dk, dv = _send(tiles, visitor[3:], 1 - tiles.steps)  # home again
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _round(tiles: Tiles, visit: Any, visitor: Any, carry: Any, *, visitor_changes: bool = False) -> tuple[Any, Any]:
    """Visit all seen tiles of this device's own keys, then of the keys that arrive along the ring."""
    lists, counts = (jnp.asarray(a) for a in tiles.pairs())
    known, mean = int(tiles.pairs()[1][0, 0]), max(1, round(float(tiles.work().mean())))
    here = 0 if tiles.axis is None else jax.lax.axis_index(tiles.axis)

    def meet(step: Any, visitor: Any, carry: Any) -> tuple[Any, Any]:
        source = (here - step) % tiles.devices
        pairs = lists[here, source]

        def one(n: jax.Array, both: Any) -> Any:
            visitor, carry = both
            found = visit(pairs[n, 0], pairs[n, 1], source, visitor, carry)
            return found if visitor_changes else (visitor, found)

        # One device's count is a constant, which whoever counts the program's work can read. Of several, each has its
        # own at each step: their mean is in the scope's name, for `launch.py plan`.
        count = counts[here, source] if tiles.devices > 1 else known
        with jax.named_scope(f"turns_{mean}"):
            return jax.lax.fori_loop(0, count, one, (visitor, carry))

    def step(n: jax.Array, both: Any) -> Any:
        visitor, carry = meet(n, *both)
        return _send(tiles, visitor, 1), carry

    visitor, carry = (
        jax.lax.fori_loop(0, tiles.steps - 1, step, (visitor, carry)) if tiles.steps > 1 else (visitor, carry)
    )
    return meet(tiles.steps - 1, visitor, carry)  # the last ones need not travel on


def _send(tiles: Tiles, arrays: Any, places: int) -> Any:
    """Pass arrays `places` devices on along the ring."""
    if places % tiles.devices == 0:
        return arrays
    assert tiles.axis is not None
    order = [(d, (d + places) % tiles.devices) for d in range(tiles.devices)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, tiles.axis, order), arrays)


def _mask(tiles: Tiles, i: Any, j: Any, source: Any, marks: Any, key_marks: Any) -> jax.Array:
    """Compute the mask of one tile, bool [1 or B,1,1,size,size]."""
    here = 0 if tiles.axis is None else jax.lax.axis_index(tiles.axis)
    # Padding to whole tiles sees nothing. It is beyond every limit, so nobody sees it.
    whole = tiles.devices * tiles.count * tiles.size
    limits = jnp.asarray(np.pad(tiles.pattern.limit, (0, whole - tiles.pattern.length)))
    places, local = jnp.asarray(tiles.places()), jnp.arange(tiles.size, dtype=jnp.int32)
    query, key = places[here, i] * tiles.size + local, places[source, j] * tiles.size + local
    (segment, always), (key_segment, key_always) = marks, key_marks
    known = None if always is None else (_take(always, i)[:, :, None], _take(key_always, j)[:, None, :])
    mask = tiles.pattern.sees(query[None, :, None], key[None, None, :], limits[query][None, :, None], known)
    if segment is not None:
        ours, theirs = _take(segment, i)[:, :, None], _take(key_segment, j)[:, None, :]
        mask = mask & (ours == theirs) & (theirs != 0)
    return mask[:, None, None]


def _logits(tiles: Tiles, query: jax.Array, key: jax.Array) -> jax.Array:
    """Compute the logits of one tile, [B,G,R,size,size] float32."""
    logits = jnp.einsum("bgrtk,bgsk->bgrts", query, key, preferred_element_type=jnp.float32) * tiles.scale
    return logits if tiles.soft_cap is None else tiles.soft_cap * jnp.tanh(logits / tiles.soft_cap)


def _if_any(mask: jax.Array, marks: Any, seen: Any, otherwise: Any) -> Any:
    """Return `seen()` of a tile, or `otherwise` if segments, which are unknown while tracing, hide all of it."""
    return seen() if marks[0] is None else jax.lax.cond(mask.any(), seen, lambda: otherwise)


def _take(array: jax.Array, tile: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, tile, 0, keepdims=False)


def _put(array: jax.Array, tile: jax.Array, value: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(array, value, tile, 0)
