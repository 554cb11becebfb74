"""Attention with all logits at once, in plain XLA: any mask, any platform, and the weights on request."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attend(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: jax.Array | None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax attention under an explicit mask (bool [1 or B,T,S] or None).

    scale: factor on the products; None: 1/√K.
    soft_cap: c, which turns logits z into c·tanh(z/c); None: no cap.
    bias: [H,T,S], added to the logits.

    Returns the result [B,T,H,K] and the weights [B,H,T,S] (dropped by the compiler when unused). The softmax is float32.
    A query that sees nothing (padding) gets zeros, with zero gradient, not NaN. (Vaswani 2017, eq. 1; grouped
    queries: Ainslie 2023.)
    """
    B, T, H, K = q_BTHK.shape
    G, S = k_BSGK.shape[2], k_BSGK.shape[1]
    factor = K**-0.5 if scale is None else scale
    # Put heads before time: both products are then plain batched matmuls, which are fast on every backend.
    q = (q_BTHK * factor).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k = k_BSGK.transpose(0, 2, 1, 3)
    v = v_BSGK.transpose(0, 2, 1, 3)
    logits = jnp.einsum("bgrtk,bgsk->bgrts", q, k, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32).reshape(1, G, H // G, *bias.shape[1:])
    if mask is not None:
        mask = mask[:, None, None]
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if mask is not None:
        # Not only for padded queries: it also makes the gradient of what must not matter exactly zero.
        weights = jnp.where(mask, weights, 0.0)
    result = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v)
    return result.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K), weights.reshape(B, H, T, S)
