"""Beam search after a prefix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.decoding.decoder import Decoder, check_guidance, first_place, is_stop
from unimodal.decoding.state import DecodingState, layers_apart, prefill
from unimodal.errors import UsageError
from unimodal.tokens import Tokens


def beam_decode(
    decoder: Decoder,
    prefix: Tokens,
    *,
    steps: int,
    beams: int,
    stop: tuple[int, ...] = (),
    length_penalty: float = 0.0,
    fill: int = 0,
    place: jax.Array | int | None = None,
    unconditional: Tokens | None = None,
    guidance: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The likeliest continuations that a beam of `beams` finds: ids [B,beams,steps] int32, best first, and their scores
    [B,beams] float32.

    A continuation's score is its log-probability over its length (its stop id included) to the power `length_penalty`:
    0 prefers short ones, 1 takes the mean per token. One that met a stop id stays in the beam as long as `beams` others
    do not score better, and its row goes on with `fill`. guidance: its scale; the log-probabilities are those of the
    guided logits. The other arguments and errors are those of `decode`; also UsageError if `beams` is below 1.
    """
    if beams < 1:
        raise UsageError(f"beams must be at least 1, but is {beams}")
    state = prefill(decoder.backbone, prefix, steps=steps, unconditional=unconditional)
    check_guidance(state, guidance)
    first, batch = first_place(decoder, state, place, steps), prefix.x.shape[0]
    # From here on every row is `beams` rows. At first they are equal, so only the first of them counts.
    first = jnp.repeat(first, beams)
    backbone, state = layers_apart(decoder.backbone, state)
    decoder = replace(decoder, backbone=backbone)
    state = state.rows(jnp.repeat(jnp.arange(batch, dtype=jnp.int32), beams))
    offset = beams * jnp.arange(batch, dtype=jnp.int32)[:, None]

    def unfinished(carry: Any) -> jax.Array:
        i, done = carry[0], carry[1]
        return (i < steps) & ~done.all()

    def one(carry: Any) -> Any:
        i, done, total, count, _, out, state = carry
        logits = decoder.next_logits(state, first + i, guidance)
        nats = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        best, parent, token, done, total, count = _best_ways_on(
            nats.reshape(batch, beams, -1), done, total, count, length_penalty
        )
        token = jnp.where(done, jnp.int32(fill), token)
        out = jnp.take_along_axis(out, parent[:, :, None], axis=1)
        out = jax.lax.dynamic_update_slice(out, token[:, :, None], (0, 0, i))
        state = state.rows((parent + offset).reshape(-1))
        state = decoder.read(state, token.reshape(-1), first + i, i, ~done.reshape(-1))
        return i + 1, done | is_stop(token, stop), total, count, best, out, state

    _, _, _, _, best, out, _ = jax.lax.while_loop(unfinished, one, _start(batch, beams, steps, fill, state))
    return out, jax.lax.stop_gradient(best)  # a loop that may end early has no gradient


def _start(batch: int, beams: int, steps: int, fill: int, state: DecodingState) -> tuple[Any, ...]:
    counts = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[None] == 0, (batch, beams))
    zeros = jnp.zeros((batch, beams), jnp.float32)
    out = jnp.full((batch, beams, steps), fill, jnp.int32)
    return jnp.int32(0), jnp.zeros((batch, beams), bool), jnp.where(counts, 0.0, -jnp.inf), zeros, zeros, out, state


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
