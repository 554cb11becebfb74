"""`Tokens`, all that passes from tokenizers to the backbone, with the description of who sees whom.

Shape legend, used in names (`q_BTHK`) and docstrings everywhere:

    B  batch            T  tokens (as queries)    S  tokens (as keys)
    D  width            H  query heads            G  key/value heads (H % G == 0)
    K  head size        M  MLP width              L  layers
    V  vocabulary       C  channels               N  negatives or samples
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Span:
    """A stretch of `length` tokens. They see each other or, if `causal`, only themselves and the tokens before them."""

    length: int  # tokens
    causal: bool = False  # none sees a later one


Layout = tuple[Span, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """Embedded tokens of any modality.

    x: [B,T,D] embeddings.
    position: [B,T] int32, place inside its segment, for RoPE. (Tokenizers add learned position tables themselves.)
    segment: [B,T] int32, 0 = padding. A token sees only its own segment. `None` tells the tracer that every token is real
        and in one segment, so that no kernel needs a mask for it.
    layout: one `Span` per stretch of tokens, left to right. Query q sees key k when both are in the same non-zero
        segment, and k's span is earlier than q's, or the span is shared and (not causal, or k <= q).
    right_padded: a promise about `segment`, known while tracing: each row is one segment with its padding at the end.
        Kernels can then take lengths in place of a mask.
    modality: of each span of the layout, such as ("image", "text"), by which a backbone with `experts` chooses weights. ""
        stands for none, and an empty tuple for none in all spans.
    gaps: some tokens were left out, so `position` skips places, and neighbours in a row may be far apart.
    """

    x: jax.Array
    position: jax.Array
    segment: jax.Array | None
    layout: Layout = field(metadata={"static": True})
    right_padded: bool = field(default=False, metadata={"static": True})
    modality: tuple[str, ...] = field(default=(), metadata={"static": True})
    gaps: bool = field(default=False, metadata={"static": True})

    def with_x(self, x: jax.Array) -> Tokens:
        """The same tokens with other embeddings [B,T,D'], such as hidden states."""
        return replace(self, x=x)


def tokens(
    x: jax.Array,
    *,
    causal: bool = False,
    segment: jax.Array | None = None,
    position: jax.Array | None = None,
    lengths: jax.Array | None = None,
    modality: str = "",
) -> Tokens:
    """Wrap embeddings [B,T,D] as one span. `position` [B,T] defaults to 0, 1, 2, …; `segment` [B,T] to one segment.

    lengths: [B] int32, how many tokens of each row are real. The rest is padding. Give it instead of `segment`, because
    more kernels can use lengths. Raises ValueError if both are given.
    """
    batch, length, _ = x.shape
    if position is None:
        position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))
    if lengths is None:
        return Tokens(x, position, segment, (Span(length, causal),), modality=(modality,))
    if segment is not None:
        raise ValueError("tokens are told apart by segment or by lengths, not by both")
    real = jnp.arange(length, dtype=jnp.int32)[None] < lengths[:, None]
    segment, layout = real.astype(jnp.int32), (Span(length, causal),)
    return Tokens(x, position, segment, layout, right_padded=True, modality=(modality,))


def lengths_of(ids: jax.Array, pad: int) -> jax.Array:
    """Count the ids of each row [B,T] before the padding at its end: [B] int32."""
    return jnp.where(ids != pad, jnp.arange(1, ids.shape[1] + 1, dtype=jnp.int32)[None], 0).max(axis=1)


def concat(first: Tokens, *rest: Tokens) -> Tokens:
    """Join tokens, and their layouts, along T. Positions continue where the same segment stopped before."""
    result = first
    for following in rest:
        position = following.position + _count_before(result, following)
        segment = None
        if result.segment is not None or following.segment is not None:
            segment = jnp.concatenate([segment_of(result), segment_of(following)], axis=1)
        result = Tokens(
            jnp.concatenate([result.x, following.x], axis=1),
            jnp.concatenate([result.position, position], axis=1),
            segment,
            result.layout + following.layout,
            right_padded=result.segment is None and following.right_padded,
            modality=modalities(result) + modalities(following),
            gaps=result.gaps or following.gaps,
        )
    return result


def modalities(tokens: Tokens) -> tuple[str, ...]:
    """The modality of each span of the layout, "" where it has none."""
    return tokens.modality or ("",) * len(tokens.layout)


def segment_of(tokens: Tokens) -> jax.Array:
    """Segment numbers as an array [B,T]: ones where the tokens carry none."""
    if tokens.segment is not None:
        return tokens.segment
    return jnp.ones(tokens.x.shape[:2], jnp.int32)


def _count_before(first: Tokens, second: Tokens) -> jax.Array:
    """Count, for each token of `second`, the tokens of its segment in `first`: [B,T], or [1,1] to broadcast."""
    if first.segment is None and second.segment is None:
        return jnp.full((1, 1), first.x.shape[1], jnp.int32)
    same = segment_of(second)[:, :, None] == segment_of(first)[:, None, :]
    return same.sum(axis=2, dtype=jnp.int32)
