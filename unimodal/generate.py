"""Text after text: sampling and beam search with a key/value cache, compiled once per shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from unimodal.backbone import Backbone
from unimodal.decoding import Decoder, Sampling, beam_decode, decode, filter_logits, row_keys, sample
from unimodal.errors import UsageError
from unimodal.tokens import Tokens

__all__ = [
    "Sampling",
    "beam_search",
    "check_ids",
    "filter_logits",
    "generate",
    "row_keys",
    "sample",
    "text_decoder",
    "text_prefix",
]


def text_decoder(backbone: Backbone, tokenizer: Any, head: Callable[..., jax.Array]) -> Decoder:
    """Writes text: `tokenizer` embeds ids causally, `head(hidden, tokenizer.table)` gives logits."""
    return Decoder(
        backbone,
        embed=lambda ids, place: tokenizer(ids, causal=True, position=place).x,
        logits=lambda hidden, place: head(hidden, tokenizer.table),
        limit=tokenizer.config.max_length,
        modality=tokenizer.modality,
    )


def text_prefix(tokenizer: Any, prompt: jax.Array, lengths: jax.Array) -> Tokens:
    """Prompts [B,T] as a causal span, counted from each row's first real id, wherever the row is padded.

    lengths: [B], how many ids are real, before the padding at the row's end; or a mask [B,T], 0 at padding, which may
    stand at either end. Raises UsageError for an id that the vocabulary has not.
    """
    if prompt.ndim != 2 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise UsageError(f"a prompt should be ids [B,T] of whole numbers, but is {prompt.dtype}{list(prompt.shape)}")
    if lengths.shape not in (prompt.shape[:1], prompt.shape):
        raise UsageError(
            f"lengths should be [B] or a mask [B,T] of a prompt {list(prompt.shape)}, but are {list(lengths.shape)}"
        )
    prompt, counted = prompt.astype(jnp.int32), lengths.ndim == 1
    place = jnp.arange(prompt.shape[1], dtype=jnp.int32)
    real = place[None] < lengths[:, None] if counted else lengths != 0
    check_ids(prompt, real, tokenizer.config.vocabulary)
    where: dict[str, Any] = {"segment": real.astype(jnp.int32)}
    if counted:  # more kernels can read lengths than segments
        where = {"lengths": lengths.astype(jnp.int32)}
    position = jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)
    return tokenizer(prompt, causal=True, position=position, **where)


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
    """Continue each prompt by at most `steps` ids: [B,steps] int32, `fill` after a row's stop id.

    Parts: see `text_decoder`. prompt, lengths: see `text_prefix`. key: one, or one per row; the same key writes the same
    text, however the prompts are padded, and whatever rows follow (see `sample`). Jit it with `steps`, `sampling` and
    `stop` static; it ends early once every row has met a stop id. Raises UsageError if the position table is too short,
    for an empty prompt and for unknown ids, as far as they are known while tracing.
    """
    prefix = text_prefix(tokenizer, prompt, lengths)
    decoder = text_decoder(backbone, tokenizer, head)
    return decode(decoder, prefix, key, steps=steps, sampling=sampling, stop=stop, fill=fill)


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
    [B,beams] float32. Scores, stop ids and `length_penalty`: see `beam_decode`; the rest: see `generate`."""
    decoder, prefix = text_decoder(backbone, tokenizer, head), text_prefix(tokenizer, prompt, lengths)
    options: dict[str, Any] = dict(steps=steps, beams=beams, stop=stop, length_penalty=length_penalty, fill=fill)
    return beam_decode(decoder, prefix, **options)


def check_ids(prompt: Any, real: Any, vocabulary: int) -> None:
    """Raises UsageError for a real id of a prompt [B,T] outside the vocabulary, where ids are known and not traced."""
    if isinstance(prompt, Tracer) or isinstance(real, Tracer):
        return
    ids = np.asarray(prompt)
    unknown = np.argwhere(np.asarray(real) & ((ids < 0) | (ids >= vocabulary)))
    if len(unknown):
        row, place = unknown[0]
        raise UsageError(f"row {row} of the prompt holds the id {ids[row, place]}; the vocabulary has {vocabulary} ids")
