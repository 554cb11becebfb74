"""Places of tokens: rotary angles, exact at any position, and buckets of relative distance."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np


def rope_table(
    position_BT: jax.Array, head_size: int, theta: float, scaling: tuple[float, ...] | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B,T,1,K/2] of rotary position embedding (Su 2021, eq. 34), the halves of K rotated together.

    `scaling`: as BackboneConfig.rope_scaling. Exact at any position: an angle of millions of radians has but one digit
    after the point in float32, so whole turns are left out before anything is rounded."""
    frequency = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if scaling is not None:
        frequency = _stretched(frequency, *scaling)
    # Turns per place: 32 bits after the point, the product of which wraps just where a turn is whole, and what is left.
    turns = frequency / (2 * math.pi) % 1.0
    high = np.round(turns * 2**32)
    rest = (turns - high / 2**32).astype(np.float32)
    steps = (high % 2**32).astype(np.uint32).view(np.int32)
    place = position_BT[:, :, None, None].astype(jnp.int32)
    turned = (place * steps[None, None, None, :]).astype(jnp.float32) * 2.0**-32
    angle = 2 * math.pi * (turned + place.astype(jnp.float32) * rest[None, None, None, :])
    return jnp.cos(angle), jnp.sin(angle)


def _stretched(
    frequency: np.ndarray, factor: float, low: float | None = None, high: float | None = None, length: float = 0.0
) -> np.ndarray:
    """Frequencies divided by `factor`, wholly or only as far as they are slow (see BackboneConfig.rope_scaling)."""
    if low is None or high is None:
        return frequency / factor
    turns = length * frequency / (2 * math.pi)  # in the length that it was trained for
    kept = np.minimum(np.maximum((turns - low) / (high - low), 0.0), 1.0)
    return frequency * (kept + (1 - kept) / factor)


def relative_bucket(distance: np.ndarray, buckets: int, longest: int) -> np.ndarray:
    """The bucket of each distance (place of the key less that of the query), as BackboneConfig.relative_buckets says."""
    half, single = buckets // 2, buckets // 4
    away = np.abs(distance).astype(np.float32)
    far = np.log(np.maximum(away, 1) / np.float32(single)) / np.float32(math.log(longest / single))
    stretch = np.minimum(single + (far * np.float32(half - single)).astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0).astype(np.int32) + np.where(away < single, away.astype(np.int32), stretch)


def rotate(x_BTHK: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the pairs (i, i+K/2) of each head by the angles of `rope`."""
    cos, sin = rope
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)
