"""The fused attention of NVIDIA GPUs, asked for in the terms it is fast in: causal and window flags before masks."""

from __future__ import annotations

import jax

from unimodal.tokens import Span
from unimodal.visibility import Pattern, visible


def needs_mask(pattern: Pattern, segmented: bool) -> bool:
    """Whether flags do not say it all, so that cuDNN must be given [B,T,S] numbers. It has windows behind a query only
    (`jax.nn.dot_product_attention` refuses others), and none of its versions is known to combine them with a mask."""
    return segmented or not (pattern.full or (pattern.causal and not (pattern.narrow and pattern.global_tokens)))


def cudnn(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segment: jax.Array | None,
    pattern: Pattern,
    *,
    scale: float,
) -> jax.Array:
    """[B,T,H,K] in bfloat16 or float16. Queries of padding get anything finite, which nobody may look at."""
    flagged = pattern.causal and not (pattern.narrow and (pattern.global_tokens or segment is not None))
    window = (pattern.window - 1, 0) if flagged and pattern.narrow and pattern.window is not None else None
    if not needs_mask(pattern, segment is not None):
        mask = None
    elif flagged:  # causality is a flag, segments are the mask
        mask = visible((Span(pattern.length),), segment)
    else:
        mask = visible(pattern.layout, segment, window=pattern.window, global_tokens=pattern.global_tokens)
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSGK,
        v_BSGK,
        mask=None if mask is None else mask[:, None],
        is_causal=flagged,
        scale=scale,
        local_window_size=window,
        implementation="cudnn",
    )
