"""Sampling and beam search with a key/value cache, compiled once per shape."""

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
    fill: int = 0,
) -> jax.Array:
    """Continue each prompt by up to `steps` ids: [B,steps] int32, `fill` after a row's stop id.

    prompt: ids [B,T], padded at the end; lengths [B]: how many are real (at least 1). `tokenizer` embeds ids
    causally, `head(hidden, tokenizer.table)` gives logits. Jit it with `steps`, `sampling` and `stop` static; it ends
    early once every row has met a stop id. Raises UsageError if the position table is too short.
    """
    batch, length = prompt.shape
    reader = _Reader.of(backbone, tokenizer, prompt, lengths, steps)
    last, cache = reader.read(prompt)

    def unfinished(carry: Any) -> jax.Array:
        i, done = carry[0], carry[1]
        return (i < steps) & ~done.all()

    def one(carry: Any) -> Any:
        i, done, hidden_BD, cache, out = carry
        drawn = sample(head(hidden_BD, tokenizer.table), jax.random.fold_in(key, i), sampling)
        ids = jnp.where(done, jnp.int32(fill), drawn)
        out = jax.lax.dynamic_update_slice(out, ids[:, None], (0, i))
        done = done | _is_stop(ids, stop)
        hidden, cache = reader.advance(ids[:, None], (lengths + i)[:, None], cache, length + i)
        return i + 1, done, hidden[:, 0], cache, out

    start = (jnp.int32(0), jnp.zeros((batch,), bool), last, cache, jnp.full((batch, steps), fill, jnp.int32))
    return jax.lax.while_loop(unfinished, one, start)[-1]


def beam_search(
    backbone: Backbone,
    tokenizer: Any,
    head: Callable[..., jax.Array],
    prompt: jax.Array,
    lengths: jax.Array,
    *,
    steps: int,
    beams: int,
    stop: tuple[int, ...] = (),
    length_penalty: float = 0.0,
    fill: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """The likeliest continuations that a beam of `beams` finds: ids [B,beams,steps] int32, best first, and their scores
    [B,beams] float32.

    A continuation's score is its log-probability over its length (its stop id included) to the power `length_penalty`:
    0 prefers short ones, 1 takes the mean per token. One that met a stop id stays in the beam as long as `beams` others
    do not score better, and its row goes on with `fill`. Prompts, arguments and errors are those of `generate`; also
    UsageError if `beams` is below 1.
    """
    if beams < 1:
        raise UsageError(f"beams must be at least 1, but is {beams}")
    batch, length = prompt.shape
    hidden, cache = _Reader.of(backbone, tokenizer, prompt, lengths, steps).read(prompt)
    # From here on every row is `beams` rows. At first they are equal, so only the first of them counts.
    hidden = jnp.repeat(hidden, beams, axis=0)
    cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=1), cache)
    reader = _Reader.of(backbone, tokenizer, prompt, jnp.repeat(lengths, beams, axis=0), steps)
    first = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[None] == 0, (batch, beams))
    offset = beams * jnp.arange(batch, dtype=jnp.int32)[:, None]

    def unfinished(carry: Any) -> jax.Array:
        i, done = carry[0], carry[1]
        return (i < steps) & ~done.all()

    def one(carry: Any) -> Any:
        i, done, total, count, _, out, hidden_ND, cache = carry
        nats = jax.nn.log_softmax(head(hidden_ND, tokenizer.table).astype(jnp.float32), axis=-1)
        best, parent, token, done, total, count = _best_ways_on(
            nats.reshape(batch, beams, -1), done, total, count, length_penalty
        )
        token = jnp.where(done, jnp.int32(fill), token)
        out = jnp.take_along_axis(out, parent[:, :, None], axis=1)
        out = jax.lax.dynamic_update_slice(out, token[:, :, None], (0, 0, i))
        done = done | _is_stop(token, stop)
        rows = (parent + offset).reshape(-1)
        cache = jax.tree.map(lambda x: x[:, rows], cache)
        position = (reader.lengths + i)[:, None]
        hidden, cache = reader.advance(token.reshape(-1, 1), position, cache, length + i)
        return i + 1, done, total, count, best, out, hidden[:, 0], cache

    start = (
        jnp.int32(0),
        jnp.zeros((batch, beams), bool),
        jnp.where(first, 0.0, -jnp.inf),
        jnp.zeros((batch, beams), jnp.float32),
        jnp.zeros((batch, beams), jnp.float32),
        jnp.full((batch, beams, steps), fill, jnp.int32),
        hidden,
        cache,
    )
    _, _, _, _, best, out, _, _ = jax.lax.while_loop(unfinished, one, start)
    return out, best


def _best_ways_on(
    nats_BKV: jax.Array, done: jax.Array, total: jax.Array, count: jax.Array, length_penalty: float
) -> tuple[jax.Array, ...]:
    """The K best of all ways in which K rows can go on: their scores, the rows they come from and the tokens they add,
    and, as of those rows, done, total (nats) and count (tokens); all [B,K]."""
    batch, beams, vocabulary = nats_BKV.shape
    # A finished row has one way to go on: as it is.
    still = jnp.where(jnp.arange(vocabulary, dtype=jnp.int32) == 0, 0.0, -jnp.inf)[None, None]
    totals = total[:, :, None] + jnp.where(done[:, :, None], still, nats_BKV)
    count = count + (~done).astype(jnp.float32)
    scores = totals / (count**length_penalty)[:, :, None]
    best, place = jax.lax.top_k(scores.reshape(batch, -1), beams)
    parent, token = place // vocabulary, (place % vocabulary).astype(jnp.int32)
    total = jnp.take_along_axis(totals.reshape(batch, -1), place, axis=1)
    done, count = (jnp.take_along_axis(x, parent, axis=1) for x in (done, count))
    return best, parent, token, done, total, count


@dataclass(frozen=True)
class _Reader:
    """Runs ids through the backbone with a cache of `slots` places: the padded prompt first, then what is written."""

    backbone: Backbone
    tokenizer: Any
    lengths: jax.Array
    length: int
    slots: int

    @classmethod
    def of(cls, backbone: Backbone, tokenizer: Any, prompt: jax.Array, lengths: jax.Array, steps: int) -> _Reader:
        length = prompt.shape[1]
        if steps < 1:
            raise UsageError(f"steps must be at least 1, but is {steps}")
        limit = tokenizer.config.max_length
        # The last id drawn is never embedded. Beyond its end a table would quietly repeat its last row.
        if limit is not None and length + steps - 1 > limit:
            raise UsageError(f"{length} ids and {steps} steps do not fit the position table, max_length={limit}")
        return cls(backbone, tokenizer, lengths, length, length + steps)

    def read(self, prompt: jax.Array) -> tuple[jax.Array, KVCache]:
        """Hidden states [B,D] of each prompt's last id, and the cache."""
        position = jnp.broadcast_to(jnp.arange(self.length, dtype=jnp.int32)[None], prompt.shape)
        empty = self.backbone.init_cache(prompt.shape[0], self.slots)
        hidden, cache = self.advance(prompt, position, empty, jnp.int32(0))
        return jnp.take_along_axis(hidden, (self.lengths - 1)[:, None, None], axis=1)[:, 0], cache

    def advance(
        self, ids: jax.Array, position: jax.Array, cache: KVCache, start: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        slot = jnp.arange(self.slots, dtype=jnp.int32)
        # Padding of the prompt stays invisible for good; what is generated goes to the slots after it.
        real_BS = (slot[None] < self.lengths[:, None]) | (slot[None] >= self.length)
        query = start + jnp.arange(ids.shape[1], dtype=jnp.int32)
        mask = real_BS[:, None, :] & (slot[None, None, :] <= query[None, :, None])
        c, near = self.backbone.config, None
        if c.window is not None:
            # In places of the text, as when it was trained: what is written follows the prompt, not its padding.
            place_BS = jnp.where(slot[None] < self.length, slot[None], slot[None] - self.length + self.lengths[:, None])
            near = position[:, :, None] - place_BS[:, None, :] < c.window
            near = near | (place_BS < c.global_tokens)[:, None, :] | (position < c.global_tokens)[:, :, None]
        x = self.tokenizer(ids, causal=True, position=position).x
        return self.backbone.extend(x, position, mask, cache, start, near)


def _is_stop(ids: jax.Array, stop: tuple[int, ...]) -> jax.Array:
    found = jnp.zeros(ids.shape, bool)
    for token in stop:
        found = found | (ids == token)
    return found
