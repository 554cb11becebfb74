"""Dense attention whose backward pass keeps no weights: it computes them again from their log-sum.

Forward it is `dense.attend`. Backward, each [T,S] array is written once, in the dtype of the computation and not in
float32 (Dao 2022, algorithm 4, with one tile). Memory beyond q, k, v and the result is T a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.remat import KERNEL, named

LOWEST = float(jnp.finfo(jnp.float32).min)


def lean(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: jax.Array | None,
    *,
    scale: float,
    soft_cap: float | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Compute softmax attention [B,T,H,K] under an explicit mask (bool [1 or B,T,S] or None). The options are those of
    `dense.attend`. It has no forward-mode derivative."""
    return _attend(scale, soft_cap, q_BTHK, k_BSGK, v_BSGK, mask, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    scale: float, soft_cap: float | None, q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, bias: Any
) -> jax.Array:
    return _forward(scale, soft_cap, q, k, v, mask, bias)[0]


def _forward(
    scale: float, soft_cap: float | None, q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, bias: Any
) -> tuple[jax.Array, Any]:
    logits = _masked(_biased(_capped(scale, soft_cap, q, k), bias), mask)
    highest = jax.lax.stop_gradient(logits.max(axis=-1))
    weights = jnp.exp(logits - highest[..., None])
    if mask is not None:
        weights = jnp.where(mask[:, None, None], weights, 0.0)
    total = weights.sum(axis=-1)
    total = total if mask is None else jnp.where(total > 0, total, 1.0)  # a query that sees nothing gets zeros
    weights = weights / total[..., None]
    out = jnp.einsum("bgrts,bsgk->btgrk", weights.astype(v.dtype), v).reshape(q.shape)
    out, log_sum = named(out, KERNEL), named(highest + jnp.log(total), KERNEL)
    return out, (q, k, v, mask, bias, out, log_sum)


def _backward(scale: float, soft_cap: float | None, kept: Any, above: jax.Array) -> tuple[Any, ...]:
    q, k, v, mask, bias, out, log_sum = kept
    capped = _capped(scale, soft_cap, q, k)
    weights = jnp.exp(_masked(_biased(capped, bias), mask) - log_sum[..., None])
    if mask is not None:
        weights = jnp.where(mask[:, None, None], weights, 0.0)
    weights = weights.astype(v.dtype)
    B, T, H, K = q.shape
    G = k.shape[2]
    grouped = (B, T, G, H // G, K)
    above_BTGRK, q_BTGRK = above.reshape(grouped), q.reshape(grouped)
    delta = (above.astype(jnp.float32) * out.astype(jnp.float32)).reshape(grouped).sum(axis=-1).transpose(0, 2, 3, 1)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    dv = product("bgrts,btgrk->bsgk", weights, above_BTGRK)
    of_weights = product("btgrk,bsgk->bgrts", above_BTGRK, v)
    of_logits = weights.astype(jnp.float32) * (of_weights - delta[..., None])
    d_bias = None if bias is None else of_logits.sum(axis=0).reshape(bias.shape).astype(bias.dtype)
    if soft_cap is not None:
        of_logits = of_logits * (1 - jnp.square(capped / soft_cap))
    of_logits = of_logits.astype(q.dtype)
    dq = (product("bgrts,bsgk->btgrk", of_logits, k) * scale).reshape(q.shape)
    dk = product("bgrts,btgrk->bsgk", of_logits, q_BTGRK) * scale
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, d_bias


_attend.defvjp(_forward, _backward)


def _capped(scale: float, soft_cap: float | None, q: jax.Array, k: jax.Array) -> jax.Array:
    """Compute logits [B,G,R,T,S] in float32, before bias and mask."""
    B, T, H, K = q.shape
    G = k.shape[2]
    q_BTGRK = (q * scale).reshape(B, T, G, H // G, K)
    logits = jnp.einsum("btgrk,bsgk->bgrts", q_BTGRK, k, preferred_element_type=jnp.float32)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _biased(logits: jax.Array, bias: Any) -> jax.Array:
    return logits if bias is None else logits + bias.astype(jnp.float32).reshape(1, *logits.shape[1:])


def _masked(logits: jax.Array, mask: Any) -> jax.Array:
    return logits if mask is None else jnp.where(mask[:, None, None], logits, LOWEST)
