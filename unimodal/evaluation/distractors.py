"""Picking a masked frame's own code among distractors, and how many codes are in use (Baevski 2020, §3.2, §4.2)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.objectives import example_sum
from unimodal.objectives.speech import frame_choices


def picked(
    context: jax.Array,
    target: jax.Array,
    masked: jax.Array,
    negatives: jax.Array,
    codes: jax.Array,
    temperature: float,
) -> dict[str, jax.Array]:
    """Per example: `correct` of its masked `frames`, how often each code is `used` [B,groups,codes], and the one `chosen`
    at each frame [B,T,groups].

    context, target: [B,T,D]. masked: bool [B,T]. negatives: as in `wav2vec2_contrastive`. codes: one-hot [B,T,groups,codes].
    """
    chosen = jnp.argmax(codes, axis=-1).astype(jnp.int32)
    _, _, right = frame_choices(context, target, masked, negatives, chosen, temperature)
    frames = masked.astype(jnp.float32)
    correct, frames = example_sum(right, frames), frames.sum(axis=1)
    # No comparison with NaN is true, so that a model that gives NaN would seem never to be beaten.
    correct = jnp.where(jnp.isnan(context).any(axis=(1, 2)), jnp.nan, correct)
    used = (codes * masked[:, :, None, None].astype(jnp.float32)).sum(axis=1)
    return {"correct": correct, "frames": frames, "used": used, "chosen": chosen}


def picking_score(sums: Mapping[str, np.ndarray], floor: float) -> dict[str, float]:
    """The score of sums of `picked`. floor: a codebook whose perplexity is lower has collapsed."""
    share = sums["used"] / sums["used"].sum(axis=1, keepdims=True)
    entropy = -(share * np.log(np.where(share == 0, 1.0, share))).sum(axis=1)
    perplexity = np.exp(entropy)  # of each codebook
    return {
        "value": float(sums["correct"] / sums["frames"]),
        "code_perplexity": float(perplexity.mean()),
        "collapsed": float(not perplexity.min() >= floor),  # NaN is a collapse, too
    }
