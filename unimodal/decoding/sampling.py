"""Sampling of the next id from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from unimodal.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """Options of drawing the next id. Guidance comes first, then the temperature, then the filters in the order of the fields."""

    temperature: float = 1.0  # divides the logits; 0: always the likeliest id
    top_k: int | None = None  # among the k likeliest
    top_p: float | None = None  # among the fewest whose probabilities reach p (Holtzman 2020)
    min_p: float | None = None  # among those at least min_p times as likely as the likeliest (Nguyen 2024)
    guidance: float | None = None  # scale s of classifier-free guidance, see `guide`; needs a second prefix

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UsageError(f"temperature must be 0 (always the likeliest) or more, but is {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be at least 1, but is {self.top_k}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"{name} must be above 0 and at most 1, but is {value}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise UsageError(f"guidance must be a finite number, but is {self.guidance}")


def guide(conditional: jax.Array, unconditional: jax.Array, scale: float) -> jax.Array:
    """Classifier-free guidance: u + scale · (c - u) of logits c with the condition and u without it, [B,V] float32.

    1 leaves c as it is, 0 drops the condition, more than 1 exaggerates it (Ho 2022). An id that c forbids with -inf
    stays forbidden.
    """
    c, u = conditional.astype(jnp.float32), unconditional.astype(jnp.float32)
    return jnp.where(c == -jnp.inf, c, u + jnp.float32(scale) * (c - u))


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Tempered logits [B,V] float32 with -inf where `sampling` forbids. The likeliest id always stays."""
    logits = logits_BV.astype(jnp.float32) / jnp.float32(sampling.temperature or 1.0)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ranked, axis=-1)
        # An id stays when those likelier than it do not yet reach p.
        stays = jnp.cumsum(probability, axis=-1) - probability < sampling.top_p
        least = jnp.min(jnp.where(stays, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.min_p is not None:
        most = logits.max(axis=-1, keepdims=True)
        logits = jnp.where(logits < most + jnp.log(jnp.float32(sampling.min_p)), -jnp.inf, logits)
    return logits


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """One id [B] int32 per row. key: one for all rows, or [B] keys.

    Under one key a row draws by the key and its own number in the batch, so rows added after it change nothing. Under
    keys of their own, rows may also change places.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits = filter_logits(logits_BV, sampling)
    if per_row(key):
        return jax.vmap(jax.random.categorical)(key, logits).astype(jnp.int32)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def row_keys(seed: int, ids_BT: jax.Array, lengths_B: jax.Array | None = None) -> jax.Array:
    """A key [B] for each row, by the seed and the row's ids, of which `lengths` are real.

    What is drawn then depends on nothing else in the batch, and rows that differ draw apart: under one key for all, texts
    that were written side by side would take like turns.
    """
    place = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
    real = place >= 0 if lengths_B is None else place < lengths_B[:, None]
    powers = jnp.cumprod(jnp.full(ids_BT.shape, 31, jnp.uint32), axis=1)  # a polynomial of the ids, modulo 2^32
    marks = jnp.where(real, (ids_BT.astype(jnp.uint32) + jnp.uint32(1)) * powers, jnp.uint32(0)).sum(axis=1)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), marks)


def fold_in(key: jax.Array, step: jax.Array) -> jax.Array:
    """The key, or keys [B], of one step."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, step) if per_row(key) else jax.random.fold_in(key, step)


def per_row(key: jax.Array) -> bool:
    """True if every row has a key of its own; a raw key of the older kind is itself a row of numbers."""
    return key.ndim == (1 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 2)
