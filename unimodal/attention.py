"""Who sees whom, and the kernel that computes it.

The visibility rule is described by a static `Layout` and the `segment` numbers (see `tokens.py`). A kernel is chosen at
trace time: no mask where all see all, a causal kernel where the layout is one causal span, and only at last a dense
boolean mask.
"""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.tokens import Layout

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "xla", "cudnn")


def layout_mask(layout: Layout) -> np.ndarray | None:
    """The visibility that the layout alone decides: bool [T,S], or None where all see all (a constant of the program)."""
    if len(layout) == 1 and not layout[0].causal:
        return None
    span = np.repeat(np.arange(len(layout)), [s.length for s in layout])
    causal = np.repeat([s.causal for s in layout], [s.length for s in layout])
    place = np.arange(len(span))
    shared = span[None, :] == span[:, None]
    return (span[None, :] < span[:, None]) | (shared & (~causal[:, None] | (place[None, :] <= place[:, None])))


def visible(layout: Layout, segment: jax.Array | None) -> jax.Array | None:
    """The whole rule as bool [1 or B,T,S], True where query t sees key s; None where all see all."""
    static = layout_mask(layout)
    mask = None if static is None else jnp.asarray(static)[None]
    if segment is not None:
        same = (segment[:, :, None] == segment[:, None, :]) & (segment != 0)[:, None, :]
        mask = same if mask is None else mask & same
    return mask


def attend(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: jax.Array | None, *, scale: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention under an explicit mask (bool [1 or B,T,S] or None), in plain XLA.

    Returns the result [B,T,H,K] and the weights [B,H,T,S] (dropped by the compiler when unused). The softmax is float32.
    A query that sees nothing (padding) gets zeros, with zero gradient, not NaN. (Vaswani 2017, eq. 1; grouped
    queries: Ainslie 2023.)
    """
    B, T, H, K = q_BTHK.shape
    G, S = k_BSGK.shape[2], k_BSGK.shape[1]
    factor = K**-0.5 if scale is None else scale
    # Heads before time: both products are then plain batched matmuls, which every backend has a fast kernel for.
    q = (q_BTHK * factor).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k = k_BSGK.transpose(0, 2, 1, 3)
    v = v_BSGK.transpose(0, 2, 1, 3)
    logits = jnp.einsum("bgrtk,bgsk->bgrts", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        mask = mask[:, None, None]
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if mask is not None:
        # Not only for padded queries: it also makes the gradient of what must not matter exactly zero.
        weights = jnp.where(mask, weights, 0.0)
    result = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v)
    return result.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K), weights.reshape(B, H, T, S)


def attention(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    layout: Layout,
    segment: jax.Array | None = None,
    *,
    implementation: str = "auto",
    scale: float | None = None,
) -> jax.Array:
    """Self-attention of tokens laid out as `layout`; [B,T,H,K]. `implementation`: auto, xla or cudnn.

    Raises ValueError for an unknown implementation.
    """
    chosen = _choose(implementation, jax.default_backend(), str(q_BTHK.dtype), q_BTHK.shape[-1])
    if chosen == "xla":
        return attend(q_BTHK, k_BTGK, v_BTGK, visible(layout, segment), scale=scale)[0]
    causal = len(layout) == 1 and layout[0].causal
    mask = visible((layout[0].__class__(layout[0].length),), segment) if causal else visible(layout, segment)
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BTGK,
        v_BTGK,
        mask=None if mask is None else mask[:, None],
        is_causal=causal,
        scale=scale,
        implementation="cudnn",
    )


@functools.cache  # so that each choice is logged once
def _choose(implementation: str, backend: str, dtype: str, head_size: int) -> str:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    chosen = implementation
    if implementation == "auto":
        fits = backend == "gpu" and dtype in ("bfloat16", "float16") and head_size % 8 == 0 and head_size <= 128
        chosen = "cudnn" if fits else "xla"
    logger.info("attention: %s kernel on %s (%s, head size %d)", chosen, backend, dtype, head_size)
    return chosen
