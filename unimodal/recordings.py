"""Several recordings in one row of sound: where each lies after some convolutions, and what keeps it to itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recordings:
    """Several recordings in each row of samples, one after another. Each has the frames that it has alone."""

    starts: jax.Array  # [B,N] int32, in samples: multiples of the product of the convolutions' strides, ascending
    lengths: jax.Array  # [B,N] int32, in samples; 0 for none

    def owner(self, kernels: Sequence[int], strides: Sequence[int], places: int) -> jax.Array:
        """[B,places,N] float32: which recording each place after these convolutions belongs to, 1 or 0. Places that see two
        recordings belong to none."""
        first, count = self.starts, self.lengths
        for kernel, stride in zip(kernels, strides, strict=True):
            first, count = first // stride, jnp.maximum((count - kernel) // stride + 1, 0)
        place = jnp.arange(places, dtype=jnp.int32)[None, :, None]
        return ((place >= first[:, None]) & (place < (first + count)[:, None])).astype(jnp.float32)


def at_places(owner: jax.Array, values: jax.Array) -> jax.Array:
    """[B,N,C] of each recording → [B,T,C], at its places [B,T,N]."""
    return jnp.einsum("btn,bnc->btc", owner, values, precision="highest")


def normalised(x: jax.Array, owner: jax.Array, epsilon: float) -> jax.Array:
    """x [B,T,C] float32 at zero mean and unit variance over the places of each recording; 0 where nobody's place is."""
    share = owner / jnp.maximum(owner.sum(axis=1, keepdims=True), 1)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.einsum("btn,btc->bnc", share, x, precision="highest")

    x = (x - at_places(owner, mean(x))) * owner.sum(axis=2, keepdims=True)
    return x * at_places(owner, jax.lax.rsqrt(mean(jnp.square(x)) + epsilon))


def numbered(owner: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Segment [B,T] int32, 1, 2, … by recording and 0 for nobody's, and the position of each place within its recording."""
    number = jnp.arange(1, owner.shape[2] + 1, dtype=owner.dtype)[None, None]
    before = (jnp.cumsum(owner, axis=1) * owner).sum(axis=2)
    return (owner * number).sum(axis=2).astype(jnp.int32), jnp.maximum(before.astype(jnp.int32) - 1, 0)


def kept_apart(
    segment: jax.Array, count: int, gap: int
) -> Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]:
    """A function that runs another, [B,T',D] → [B,T',D], on recordings that have `gap` zeros between them.

    They are then as far from one another as the ends of a row are from nothing. count: recordings in a row, at most.
    """
    real = (segment > 0)[:, :, None]
    place = jnp.arange(segment.shape[1], dtype=jnp.int32)[None] + gap * jnp.maximum(segment - 1, 0)
    length = segment.shape[1] + gap * (count - 1)

    def run(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        there = real.astype(x.dtype)
        spread = jax.vmap(lambda row, at: jnp.zeros((length, row.shape[1]), row.dtype).at[at].add(row))
        return jnp.take_along_axis(function(spread(x * there, place)), place[:, :, None], axis=1) * there

    return run
