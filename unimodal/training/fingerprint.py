"""A fingerprint of arrays that does not depend on how they are sharded, to notice a flipped bit on restore."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

_GOLDEN = 0x9E3779B9


def leaf_hash(x: jax.Array) -> jax.Array:
    """uint32 hash of an array's bits: the sum mod 2³² of mixed (bits, index) pairs.

    A sum does not care about the order in which it is taken, so every mesh gives the same number, and each device only
    reads its own shard. The index is mixed in, so that exchanged elements are noticed.
    """
    bits = _bits(x)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return _mix(bits ^ _mix(index + jnp.uint32(_GOLDEN))).sum(dtype=jnp.uint32)


@jax.jit
def leaf_hashes(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """`leaf_hash` of every array."""
    return {name: leaf_hash(x) for name, x in arrays.items()}


def fingerprint(hashes: Mapping[str, int]) -> str:
    """16 hexadecimal digits over all leaves, in the order of their names."""
    text = "\n".join(f"{name} {int(value):08x}" for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bits(x: jax.Array) -> jax.Array:
    size = x.dtype.itemsize
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every input bit moves every output bit (the finaliser of MurmurHash3)."""
    word = (word ^ (word >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> jnp.uint32(16))
