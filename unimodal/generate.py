"""Sampling with a key/value cache, compiled once per shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.backbone import Backbone, KVCache
from unimodal.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0: the likeliest, always. top_k: among the k likeliest. top_p: among the
    fewest whose probabilities reach p (Holtzman 2020). min_p: among those at least min_p times as likely as the
    likeliest (Nguyen 2024). Applied in that order, after the temperature."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UsageError(f"temperature must be 0 or more, but is {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be at least 1, but is {self.top_k}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"{name} must be above 0 and at most 1, but is {value}")


def filter_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Tempered logits [B,V] float32 with -inf where `sampling` forbids. The likeliest token always stays."""
    logits = logits_BV.astype(jnp.float32) / jnp.float32(sampling.temperature or 1.0)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ranked, axis=-1)
        # A token stays when those likelier than it do not yet reach p.
        stays = jnp.cumsum(probability, axis=-1) - probability < sampling.top_p
        least = jnp.min(jnp.where(stays, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.min_p is not None:
        most = logits.max(axis=-1, keepdims=True)
        logits = jnp.where(logits < most + jnp.log(jnp.float32(sampling.min_p)), -jnp.inf, logits)
    return logits


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """One id [B] int32 per row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filter_logits(logits_BV, sampling), axis=-1).astype(jnp.int32)


def generate(
    backbone: Backbone,
    tokenizer: Any,
    head: Callable[..., jax.Array],
    prompt: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    sampling: Sampling = Sampling(),
    stop: tuple[int, ...] = (),
) -> jax.Array:
    """Continue each prompt by up to `steps` ids: [B,steps] int32, 0 after a row's stop id.

    prompt: ids [B,T], padded at the end; lengths [B]: how many are real (at least 1). `tokenizer` embeds ids
    causally, `head(hidden, tokenizer.table)` gives logits. Jit it with `steps`, `sampling` and `stop` static; it ends
    early once every row has met a stop id. Raises UsageError if the position table is too short.
    """
    batch, length = prompt.shape
    if steps < 1:
        raise UsageError(f"steps must be at least 1, but is {steps}")
    limit = tokenizer.config.max_length
    # The last id drawn is never embedded. Beyond its end a table would quietly repeat its last row.
    if limit is not None and length + steps - 1 > limit:
        raise UsageError(f"{length} ids and {steps} steps do not fit the position table, max_length={limit}")
    slots = length + steps
    slot = jnp.arange(slots, dtype=jnp.int32)
    # Padding of the prompt stays invisible for good; what is generated goes to the slots after it.
    real_BS = (slot[None] < lengths[:, None]) | (slot[None] >= length)

    def advance(ids: jax.Array, position: jax.Array, cache: KVCache, start: jax.Array) -> tuple[jax.Array, KVCache]:
        x = tokenizer(ids, causal=True, position=position).x
        query = start + jnp.arange(ids.shape[1], dtype=jnp.int32)
        mask = real_BS[:, None, :] & (slot[None, None, :] <= query[None, :, None])
        return backbone.extend(x, position, mask, cache, start)

    def logits(hidden_BD: jax.Array) -> jax.Array:
        return head(hidden_BD, tokenizer.table)

    position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))
    hidden, cache = advance(prompt, position, backbone.init_cache(batch, slots), jnp.int32(0))
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def unfinished(carry: Any) -> jax.Array:
        i, done = carry[0], carry[1]
        return (i < steps) & ~done.all()

    def one(carry: Any) -> Any:
        i, done, hidden_BD, cache, out = carry
        ids = jnp.where(done, 0, sample(logits(hidden_BD), jax.random.fold_in(key, i), sampling))
        out = jax.lax.dynamic_update_slice(out, ids[:, None], (0, i))
        for token in stop:
            done = done | (ids == token)
        hidden, cache = advance(ids[:, None], (lengths + i)[:, None], cache, length + i)
        return i + 1, done, hidden[:, 0], cache, out

    start = (jnp.int32(0), jnp.zeros((batch,), bool), last, cache, jnp.zeros((batch, steps), jnp.int32))
    return jax.lax.while_loop(unfinished, one, start)[-1]
