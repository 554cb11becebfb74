"""Who sees whom, as a description: never a dense array until a kernel cannot do without.

Segments aside, the rule comes down to one number per query: with spans from left to right, query q sees the keys before
its `limit`, which is the end of its span, or q + 1 where the span is causal. A window takes away what is far, global
tokens give it back; neither shows what the layout, or another segment, hides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.errors import UsageError
from unimodal.tokens import Layout

Array = TypeVar("Array", np.ndarray, jax.Array)


@dataclass(frozen=True)
class Pattern:
    """Which key each query may see, by their places alone; static, so that a kernel can be chosen while tracing.

    window: a query sees keys less than `window` places away (causal: itself and the window - 1 before), on both sides
    where the layout allows it; None: however far. global_tokens: that many tokens at the start of each document, or of
    the row where it is but one, see, and are seen, however far (Beltagy 2020, §3.1 "Global Attention"). Raises UsageError
    for a window below 1, or global tokens below 0.
    """

    layout: Layout
    window: int | None = None
    global_tokens: int = 0

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise UsageError(f"window must be at least 1, the token itself, but is {self.window}")
        if self.global_tokens < 0:
            raise UsageError(f"global_tokens must be 0 or more, but is {self.global_tokens}")

    @property
    def length(self) -> int:
        return sum(span.length for span in self.layout)

    @cached_property
    def limit(self) -> np.ndarray:
        """[T] int32: query q sees no key at this place or after."""
        lengths = [span.length for span in self.layout]
        ends = np.repeat(np.cumsum(lengths), lengths)
        causal = np.repeat([span.causal for span in self.layout], lengths)
        return np.where(causal, np.arange(self.length) + 1, ends).astype(np.int32)

    @property
    def causal(self) -> bool:
        """No query sees beyond itself: causal spans only, or of length 1."""
        return all(span.causal or span.length == 1 for span in self.layout)

    @property
    def narrow(self) -> bool:
        """The window takes something away."""
        return self.window is not None and self.window < self.length

    @property
    def full(self) -> bool:
        """All see all."""
        return not self.narrow and len(self.layout) == 1 and (not self.layout[0].causal or self.length == 1)

    def sees(self, query: Array, key: Array, limit: Array, always: tuple[Array, Array] | None = None) -> Array:
        """Whether queries at places `query`, of those limits, see keys at places `key`; broadcast against each other.

        always: which queries and which keys are global tokens; None: the first of the row.
        """
        seen = key < limit
        if not self.narrow:
            return seen
        assert self.window is not None
        near = (query - key < self.window) & (key - query < self.window)
        if self.global_tokens:
            of_query, of_key = (query < self.global_tokens, key < self.global_tokens) if always is None else always
            near = near | of_query | of_key
        return seen & near

    def tiles(self, size: int, count: int, *, anywhere: bool = False) -> np.ndarray:
        """bool [count,count]: whether any query of tile i sees any key of tile j, tiles being `size` tokens wide.

        May say yes where in truth none does, as the window is compared between the tiles' nearest edges. anywhere: global
        tokens may stand in any tile.
        """
        limit = np.pad(self.limit, (0, count * size - self.length)).reshape(count, size).max(axis=1)
        first = np.arange(count, dtype=np.int32) * size
        seen = first[None, :] < limit[:, None]
        if not self.narrow or (anywhere and self.global_tokens):
            return seen
        assert self.window is not None
        gap = np.maximum(np.abs(first[:, None] - first[None, :]) - (size - 1), 0)
        near = gap < self.window
        return seen & (near | (first[:, None] < self.global_tokens) | (first[None, :] < self.global_tokens))


def visible(
    layout: Layout, segment: jax.Array | None, *, window: int | None = None, global_tokens: int = 0
) -> jax.Array | None:
    """The whole rule as bool [1 or B,T,S], True where query t sees key s; None where all see all.

    window, global_tokens: see `Pattern`.
    """
    pattern, mask = Pattern(layout, window, global_tokens), None
    if not pattern.full:
        # Computed rather than a constant, which at 32,768 tokens would be a gigabyte of the program.
        place, always = jnp.arange(pattern.length, dtype=jnp.int32), None
        if segment is not None and pattern.narrow and global_tokens:
            first = first_of_segments(segment, global_tokens)
            always = first[:, :, None], first[:, None, :]
        limit = jnp.asarray(pattern.limit)
        mask = pattern.sees(place[None, :, None], place[None, None, :], limit[None, :, None], always)
    if segment is not None:
        same = (segment[:, :, None] == segment[:, None, :]) & (segment != 0)[:, None, :]
        mask = same if mask is None else mask & same
    return mask


def first_of_segments(segment: jax.Array, count: int) -> jax.Array:
    """bool [B,T]: which tokens are among the first `count` of their segment [B,T], wherever its tokens stand."""
    order = jnp.argsort(segment, axis=1, stable=True)  # segments one after the other, each in its own order
    ordered = jnp.take_along_axis(segment, order, axis=1)
    place = jnp.arange(segment.shape[1], dtype=jnp.int32)[None]
    begins = (ordered != jnp.roll(ordered, 1, axis=1)) | (place == 0)
    start = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
    first = (place - start < count) & (ordered != 0)
    return jnp.take_along_axis(first, jnp.argsort(order, axis=1), axis=1)
