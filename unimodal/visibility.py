"""The visibility rule: which key each query may see. It stays a description until a kernel needs a dense mask.

Without segments, one number per query is enough. Query q sees the keys before its `limit`: the end of its span, or q + 1
where the span is causal. A window hides keys that are far away, and global tokens are exempt from it. Neither shows a key
that the layout or the segments hide.
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
    """The visibility rule by places alone. It is static, so that a kernel can be chosen while tracing.

    Raises UsageError for a window below 1, or global tokens below 0.
    """

    layout: Layout  # spans of the row
    # Keys must be less than this many places away, on both sides where the layout allows it. None: any distance.
    window: int | None = None
    # So many tokens at the start of each document see and are seen at any distance (Beltagy 2020, §3.1).
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
        """The first place that each query does not see, [T] int32."""
        lengths = [span.length for span in self.layout]
        ends = np.repeat(np.cumsum(lengths), lengths)
        causal = np.repeat([span.causal for span in self.layout], lengths)
        return np.where(causal, np.arange(self.length) + 1, ends).astype(np.int32)

    @property
    def causal(self) -> bool:
        """True if no query sees beyond itself: every span is causal or of length 1."""
        return all(span.causal or span.length == 1 for span in self.layout)

    @property
    def narrow(self) -> bool:
        """True if the window hides anything."""
        return self.window is not None and self.window < self.length

    @property
    def full(self) -> bool:
        """True if every query sees every key."""
        return not self.narrow and len(self.layout) == 1 and (not self.layout[0].causal or self.length == 1)

    def sees(self, query: Array, key: Array, limit: Array, always: tuple[Array, Array] | None = None) -> Array:
        """Compare queries at places `query`, with their limits, to keys at places `key`. Arrays broadcast.

        always: masks of the queries and the keys that are global tokens; None: the first tokens of the row.
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
        """Find the tiles of `size` tokens that see each other: bool [count,count], queries' tile by keys' tile.

        The window is compared between the nearest edges of two tiles, so a tile may be True although none of its queries
        sees a key. anywhere: global tokens may stand in any tile.
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
    """Compute the dense mask: bool [1 or B,T,S], True where query t sees key s. None if all see all.

    window, global_tokens: see `Pattern`.
    """
    pattern, mask = Pattern(layout, window, global_tokens), None
    if not pattern.full:
        # Compute it: as a constant it would add a gigabyte to the program at 32,768 tokens.
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
    """Mark the first `count` tokens of every segment [B,T], wherever its tokens stand: bool [B,T]."""
    order = jnp.argsort(segment, axis=1, stable=True)  # segments one after the other, each in its own order
    ordered = jnp.take_along_axis(segment, order, axis=1)
    place = jnp.arange(segment.shape[1], dtype=jnp.int32)[None]
    begins = (ordered != jnp.roll(ordered, 1, axis=1)) | (place == 0)
    start = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
    first = (place - start < count) & (ordered != 0)
    return jnp.take_along_axis(first, jnp.argsort(order, axis=1), axis=1)
