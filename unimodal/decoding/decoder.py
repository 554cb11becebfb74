"""Sampling after a prefix, one id at a time, in one compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from unimodal.backbone import Backbone
from unimodal.decoding.sampling import Sampling, fold_in, guide, sample
from unimodal.decoding.state import DecodingState, advance, layers_apart, prefill
from unimodal.errors import UsageError
from unimodal.tokens import Tokens


@dataclass(frozen=True)
class Decoder:
    """The model that writes. A place counts the ids of the decoder's own vocabulary, so that a table of places can be asked."""

    backbone: Backbone  # that reads the prefix and what was written
    embed: Callable[[jax.Array, jax.Array], jax.Array]  # ids [B,1], their places [B,1] → embeddings [B,1,D]
    logits: Callable[[jax.Array, jax.Array], jax.Array]  # hidden [B,D], the next id's place [B] → [B,V]; -inf forbids
    limit: int | None = None  # places that `embed` knows; None: any number
    modality: str = ""  # of what is written, by which a backbone with experts chooses weights

    def next_logits(self, state: DecodingState, place: jax.Array, guidance: float | None) -> jax.Array:
        """Logits [B,V] of the id at `place` [B], guided where there is guidance."""
        logits = self.logits(state.hidden, place)
        if state.unconditional is None or guidance is None:
            return logits
        return guide(logits, self.logits(state.unconditional.hidden, place), guidance)

    def read(
        self, state: DecodingState, ids: jax.Array, place: jax.Array, step: jax.Array, real: jax.Array
    ) -> DecodingState:
        """The state after ids [B] at `place` [B]; see `state.advance`."""
        x = self.embed(ids[:, None], place[:, None])
        return advance(self.backbone, state, x, step, real, self.modality)


def decode(
    decoder: Decoder,
    prefix: Tokens,
    key: jax.Array,
    *,
    steps: int,
    sampling: Sampling = Sampling(),
    stop: tuple[int, ...] = (),
    fill: int = 0,
    place: jax.Array | int | None = None,
    unconditional: Tokens | None = None,
) -> jax.Array:
    """Write at most `steps` ids after each row of `prefix`: [B,steps] int32, `fill` after a row's stop id.

    place: of the first id, [B] or one for all, as the decoder's vocabulary counts it (after an image and two words, 2);
    None: its position in the row. unconditional: the prefix without its condition, where `sampling` has guidance. key:
    one, or [B]; see `sample`. Jit it with `steps`, `sampling` and `stop` static; it ends early once every row has met a
    stop id. Raises UsageError for an empty prefix, and for more places than the decoder knows.
    """
    state = prefill(decoder.backbone, prefix, steps=steps, unconditional=unconditional)
    options: dict[str, Any] = dict(steps=steps, sampling=sampling, stop=stop, fill=fill, place=place)
    return decode_from(decoder, state, key, **options)[0]


def decode_from(
    decoder: Decoder,
    state: DecodingState,
    key: jax.Array,
    *,
    steps: int,
    sampling: Sampling = Sampling(),
    stop: tuple[int, ...] = (),
    fill: int = 0,
    place: jax.Array | int | None = None,
) -> tuple[jax.Array, DecodingState]:
    """Go on from what `prefill` or an earlier call has read, as `decode` does: the ids, and the state after them.

    A row that stopped goes on right after its stop id. Another decoder may go on: image codes first, then their caption.
    Raises UsageError also if the state has no room for `steps` more.
    """
    check_guidance(state, sampling.guidance)
    first = first_place(decoder, state, place, steps)
    batch = first.shape[0]
    backbone, state = layers_apart(decoder.backbone, state)
    decoder = replace(decoder, backbone=backbone)

    def unfinished(carry: Any) -> jax.Array:
        i, done = carry[0], carry[1]
        return (i < steps) & ~done.all()

    def one(carry: Any) -> Any:
        i, done, state, out = carry
        drawn = sample(decoder.next_logits(state, first + i, sampling.guidance), fold_in(key, i), sampling)
        ids = jnp.where(done, jnp.int32(fill), drawn)
        out = jax.lax.dynamic_update_slice(out, ids[:, None], (0, i))
        state = decoder.read(state, ids, first + i, i, ~done)
        return i + 1, done | is_stop(ids, stop), state, out

    start = (jnp.int32(0), jnp.zeros((batch,), bool), state, jnp.full((batch, steps), fill, jnp.int32))
    _, _, state, out = jax.lax.while_loop(unfinished, one, start)
    return out, jax.lax.stop_gradient(state.together().after(steps))  # a loop that may end early has no gradient


def first_place(decoder: Decoder, state: DecodingState, place: jax.Array | int | None, steps: int) -> jax.Array:
    """[B] int32: the places of the first ids. Raises UsageError where `steps` ids do not fit behind it."""
    if steps > state.room:
        raise UsageError(f"{steps} steps do not fit the {state.room} free slots: prefill with more steps")
    first = state.position if place is None else jnp.asarray(place, jnp.int32)
    traced = isinstance(first, Tracer)
    # While tracing, the slots in use are the most that a position can be.
    most = None if traced and place is not None else state.used if traced else int(np.asarray(first).max())
    # The last id written is not read again. Beyond its end a table would quietly repeat its last row.
    if decoder.limit is not None and most is not None and most + steps - 1 > decoder.limit:
        raise UsageError(f"{most} ids and {steps} steps do not fit the position table, max_length={decoder.limit}")
    return jnp.broadcast_to(first, state.position.shape)


def check_guidance(state: DecodingState, guidance: float | None) -> None:
    """Raises UsageError where there is guidance without a second prefix, or a second prefix without guidance."""
    if guidance is not None and state.unconditional is None:
        raise UsageError(f"guidance={guidance} needs a second prefix, without the condition: unconditional=…")
    if guidance is None and state.unconditional is not None:
        raise UsageError("an unconditional prefix is given, but no guidance: set its scale, such as guidance=3.0")


def is_stop(ids: jax.Array, stop: tuple[int, ...]) -> jax.Array:
    found = jnp.zeros(ids.shape, bool)
    for token in stop:
        found = found | (ids == token)
    return found
