"""A prefix that was read, as keys and values, and the one step that reads one more token.

Who sees whom follows from the prefix's layout and segments, as in a plain pass over prefix and continuation: what is
written is a causal span after the others. It continues the segment of the row's last real token, at the place behind it,
wherever the row is padded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from unimodal.backbone import Backbone, Cache, KVCache
from unimodal.errors import UsageError
from unimodal.tokens import Tokens, segment_of
from unimodal.visibility import first_of_segments


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodingState:
    """The memory of a decoder: S slots, of which the prefix and what was written after it take the first `used`."""

    hidden: jax.Array  # [B,D] of the last token, which say what comes next
    cache: Cache  # [L,B,S,G,K], or [B,S,G,K] for each layer; see `layers_apart`
    segment: jax.Array  # [B,S] int32 as in `Tokens`; 0 also where nothing stands yet
    place: jax.Array  # [B,S] int32, in the row, as windows measure it: padding at the end of the prefix takes none
    always: jax.Array  # [B,S] bool, the global tokens
    current: jax.Array  # [B] int32, the segment that goes on
    position: jax.Array  # [B] int32, as in `Tokens`, of the next token
    unconditional: DecodingState | None  # the same ids after the prefix without a condition, for guidance
    used: int = field(metadata={"static": True})  # static, so that a shape can depend on it

    @property
    def room(self) -> int:
        """The number of free slots."""
        return self.segment.shape[1] - self.used

    def after(self, steps: int) -> DecodingState:
        """The same with `steps` more slots in use."""
        twin = self.unconditional
        return replace(self, used=self.used + steps, unconditional=None if twin is None else twin.after(steps))

    def apart(self) -> DecodingState:
        """The same with one cache for each layer."""
        cache, twin = self.cache, self.unconditional
        if isinstance(cache, KVCache):
            cache = tuple(jax.tree.map(lambda x, i=i: x[i], cache) for i in range(len(cache.k)))
        return replace(self, cache=cache, unconditional=None if twin is None else twin.apart())

    def together(self) -> DecodingState:
        """The same with one cache for all layers."""
        cache, twin = self.cache, self.unconditional
        if not isinstance(cache, KVCache):
            cache = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cache)
        return replace(self, cache=cache, unconditional=None if twin is None else twin.together())

    def rows(self, index: jax.Array) -> DecodingState:
        """The rows `index` [N], any number of times each."""
        per_row = ("hidden", "segment", "place", "always", "current", "position")
        twin = self.unconditional
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in per_row},
            cache=jax.tree.map(lambda x: x[:, index] if x.ndim == 5 else x[index], self.cache),
            unconditional=None if twin is None else twin.rows(index),
        )


def prefill(backbone: Backbone, prefix: Tokens, *, steps: int, unconditional: Tokens | None = None) -> DecodingState:
    """Read a prefix in one pass, with room for `steps` ids.

    unconditional: the prefix without its condition, for guidance; as many rows, of any length. Raises UsageError for an
    empty prefix and for fewer than one step.
    """
    if steps < 1:
        raise UsageError(f"steps must be at least 1, but is {steps}")
    twin = None
    if unconditional is not None:
        if unconditional.x.shape[0] != prefix.x.shape[0]:
            raise UsageError(
                f"the unconditional prefix has {unconditional.x.shape[0]} rows, but the prefix {prefix.x.shape[0]}"
            )
        twin = prefill(backbone, unconditional, steps=steps)
    segment = segment_of(prefix)
    batch, length = segment.shape
    if not length:
        raise UsageError("the prefix is empty: give at least one token, such as the one that begins a text")
    if not isinstance(segment, Tracer):
        padding = np.flatnonzero(~(np.asarray(segment) != 0).any(axis=1))
        if len(padding):
            raise UsageError(f"row {padding[0]} of the prefix is all padding: give at least one token")
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))
    last = jnp.where(segment != 0, place, 0).max(axis=1, keepdims=True)
    count = backbone.config.global_tokens
    in_order = prefix.segment is None or not count
    always = place < count if in_order else first_of_segments(segment, count)
    hidden, cache = backbone.prefill(prefix)

    def roomy(x: jax.Array, axis: int = 1) -> jax.Array:
        return jnp.pad(x, [(0, steps if i == axis else 0) for i in range(x.ndim)])

    return DecodingState(
        hidden=jnp.take_along_axis(hidden, last[:, :, None], axis=1)[:, 0],
        cache=jax.tree.map(lambda x: roomy(x, 2), cache),
        segment=roomy(segment),
        place=roomy(place),
        always=roomy(always),
        current=jnp.take_along_axis(segment, last, axis=1)[:, 0],
        position=jnp.take_along_axis(prefix.position, last, axis=1)[:, 0] + 1,
        unconditional=twin,
        used=length,
    )


def layers_apart(backbone: Backbone, state: DecodingState) -> tuple[Backbone, DecodingState]:
    """On a CPU: the same with one array for each layer in place of one for all, outside of a loop that reads them often.

    A loop over layers copies each layer's weights and cache out of the whole there, at every step, which takes longer than the
    products. Accelerators read a slice where it lies, and have no memory for a second copy.
    """
    if jax.default_backend() != "cpu":
        return backbone, state
    return backbone.unstacked(), state.apart()


def advance(
    backbone: Backbone,
    state: DecodingState,
    x_B1D: jax.Array,
    step: jax.Array,
    real: jax.Array,
    modality: str = "",
) -> DecodingState:
    """Read one more token per row, of `modality`, into slot `used + step`; rows that are not `real` [B] stay as they are."""
    config, slot = backbone.config, state.used + step
    before = state.segment != 0
    place = jnp.where(before, state.place, -1).max(axis=1) + 1
    always = (before & (state.segment == state.current[:, None])).sum(axis=1) < config.global_tokens

    def put(x: jax.Array, value: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(x, value[:, None], (0, slot))

    written = replace(
        state,
        segment=put(state.segment, jnp.where(real, state.current, 0)),
        place=put(state.place, place),
        always=put(state.always, always),
        position=state.position + real.astype(jnp.int32),
    )
    mask, near = written.segment == state.current[:, None], None
    if config.window is not None:
        near = place[:, None] - written.place < config.window
        near = (near | written.always | always[:, None])[:, None]
    hidden, cache = backbone.extend(x_B1D, state.position[:, None], mask[:, None], state.cache, slot, near, modality)
    twin = state.unconditional
    return replace(
        written,
        hidden=jnp.where(real[:, None], hidden[:, 0], state.hidden),
        cache=cache,
        unconditional=None if twin is None else advance(backbone, twin, x_B1D, step, real, modality),
    )
