"""The fused attention of NVIDIA GPUs. It is fast with flags, windows and lengths, so these come before masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unimodal.tokens import Span
from unimodal.visibility import Pattern, visible


def needs_mask(pattern: Pattern, packed: bool) -> bool:
    """True if flags and lengths cannot express the pattern, so that cuDNN needs a [B,T,S] mask.

    cuDNN has windows behind a query only (`jax.nn.dot_product_attention` refuses others). No version is known to combine
    them with a mask. packed: segments are more than padding at the end of rows.
    """
    return packed or not (pattern.full or (pattern.causal and not (pattern.narrow and pattern.global_tokens)))


def cudnn(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segment: jax.Array | None,
    pattern: Pattern,
    *,
    scale: float,
    right_padded: bool = False,
) -> jax.Array:
    """Compute attention [B,T,H,K] in bfloat16 or float16.

    right_padded: as in `Tokens`. Padded queries then get zeros, and otherwise some finite value that must not be used.
    """
    packed = segment is not None and not right_padded
    if not needs_mask(pattern, packed):
        return _by_lengths(q_BTHK, k_BSGK, v_BSGK, segment, pattern, scale)
    flagged = pattern.causal and not pattern.narrow
    # Causality is a flag here, so the mask is of segments alone.
    layout, window = ((Span(pattern.length),), None) if flagged else (pattern.layout, pattern.window)
    mask = visible(layout, segment, window=window, global_tokens=pattern.global_tokens)
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSGK,
        v_BSGK,
        mask=None if mask is None else mask[:, None],
        is_causal=flagged,
        scale=scale,
        implementation="cudnn",
    )


def _by_lengths(
    q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None, pattern: Pattern, scale: float
) -> jax.Array:
    """Attend without a mask: by lengths, and flags for causality and a window."""
    lengths, real = None, None
    if segment is not None:
        real = (segment != 0)[:, :, None, None]
        # cuDNN promises nothing about padding, forward or backward. Zero it on the way in and out.
        q, k, v = (jnp.where(real, x, jnp.zeros((), x.dtype)) for x in (q, k, v))
        if not pattern.narrow:  # behind a causal window there is no padding to be seen: no need to combine the two
            # A row of padding alone keeps one key: a softmax over none has no value.
            lengths = jnp.maximum((segment != 0).sum(axis=1, dtype=jnp.int32), 1)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=pattern.causal,
        scale=scale,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=(pattern.window - 1, 0) if pattern.narrow and pattern.window is not None else None,
        implementation="cudnn",
    )
    return out if real is None else jnp.where(real, out, jnp.zeros((), out.dtype))
