"""The one transformer: `Tokens` → hidden states, whatever the modality and whatever the objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal.backbone.block import Attention, Block, KVCache, LayerKind, Stretch
from unimodal.backbone.config import NO_CACHE, BackboneConfig
from unimodal.backbone.positions import relative_bucket, rope_table
from unimodal.errors import UsageError
from unimodal.layers import Embedding
from unimodal.remat import REMAT
from unimodal.sharding import constrain
from unimodal.tokens import Tokens, modalities

Cache = KVCache | tuple[KVCache, ...]
"""Keys and values of all layers: arrays of them all, or one for each."""


class Backbone(nnx.Module):
    """A stack of `Block`s. `layers` is one stacked Block (scan) or an nnx.List of them; `stacked`/`unstacked` convert."""

    def __init__(self, config: BackboneConfig, *, rngs: nnx.Rngs):
        self.config = config

        def make(key: jax.Array) -> Block:
            return Block(config, rngs=nnx.Rngs(key))

        keys = jax.random.split(rngs.params(), config.blocks)
        self.layers: Any = jax.vmap(make)(keys) if config.scan else nnx.List([make(key) for key in keys])
        self.final_norm = config.make_norm() if config.final_norm else None
        buckets, dtype = config.relative_buckets, jnp.dtype(config.param_dtype)
        axes = ("place", "heads")
        self.relative = Embedding(buckets, config.heads, axes=axes, dtype=dtype, rngs=rngs) if buckets else None

    def __call__(
        self, tokens: Tokens, *, key: jax.Array | None = None, capture: Sequence[str] = ()
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Hidden states [B,T,D], and what was asked for in `capture`.

        key: turns dropout and stochastic depth on. capture: any of "hidden" (after each layer, [L,B,T,D]) and
        "attention" (weights, [L,B,H,T,T]); what is not asked for costs nothing. Raises UsageError for tokens with gaps and
        relative_buckets or a window.
        """
        c = self.config
        unknown = set(capture) - {"hidden", "attention"}
        if unknown:
            raise ValueError(f"capture {sorted(unknown)} is not among 'hidden', 'attention'")
        if tokens.gaps and (option := "relative_buckets" if c.relative_buckets else "window" if c.window else None):
            raise UsageError(
                f"backbone.{option} counts tokens in a row, so no patches of a picture can be left out before it, as mask_ratio "
                f"and patch_dropout do"
            )
        (ropes, kinds), bias_HTT = self._kinds(tokens.position), self._relative_bias(tokens.x.shape[1])
        stretches = self._stretches(tokens)

        def layer(x: jax.Array, inputs: tuple[Block, Any, Any, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
            block, layer_key, rate, kind = inputs

            def attend_to(attention: Attention, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
                return attention(
                    x,
                    tokens.layout,
                    tokens.segment,
                    _chosen(ropes, kind),
                    right_padded=tokens.right_padded,
                    capture="attention" in capture,
                    windowed=kind.windowed,
                    bias_HTT=bias_HTT,
                )

            options: dict[str, Any] = dict(key=layer_key, depth_rate=rate, bare=kind.bare, stretches=stretches)
            x, weights = block(x, attend_to, **options)
            kept = {} if weights is None else {"attention": weights}
            return x, kept | ({"hidden": x} if "hidden" in capture else {})

        if REMAT[c.remat] is not None:
            # The scan already keeps XLA from undoing the recomputation; in an unrolled list it must be told.
            layer = jax.checkpoint(layer, policy=REMAT[c.remat], prevent_cse=not c.scan)
        x = constrain(tokens.x.astype(c.dtype), "batch", "tokens", "hidden")
        keys = None if key is None else jax.random.split(key, c.depth)
        rates = jnp.linspace(0.0, c.stochastic_depth, c.depth, dtype=jnp.float32)
        x, out = self._run(layer, x, (keys, rates, kinds))
        return (x if self.final_norm is None else self.final_norm(x)), out

    def prefill(self, tokens: Tokens) -> tuple[jax.Array, KVCache]:
        """Hidden states [B,T,D] as a call gives them, and the keys and values of every layer: [L,B,T,G,K]. Raises UsageError
        for a backbone with relative_buckets."""
        c = self.config
        if c.relative_buckets is not None:
            raise UsageError(NO_CACHE)
        (ropes, kinds), stretches = self._kinds(tokens.position), self._stretches(tokens)

        def layer(x: jax.Array, inputs: tuple[Block, LayerKind]) -> tuple[jax.Array, KVCache]:
            block, kind = inputs
            rope = _chosen(ropes, kind)
            options: dict[str, Any] = dict(right_padded=tokens.right_padded, windowed=kind.windowed)

            def attend_to(attention: Attention, x: jax.Array) -> tuple[jax.Array, KVCache]:
                result, _ = attention(x, tokens.layout, tokens.segment, rope, **options)
                _, k, v = attention.project(x, rope)  # as the call above does; the compiler makes one of the two
                return result, KVCache(k, v)

            return block(x, attend_to, bare=kind.bare, stretches=stretches)

        x, cache = self._run(layer, constrain(tokens.x.astype(c.dtype), "batch", "tokens", "hidden"), (kinds,))
        return (x if self.final_norm is None else self.final_norm(x)), cache

    def extend(
        self,
        x_BTD: jax.Array,
        position_BT: jax.Array,
        mask_BTS: jax.Array,
        cache: Cache,
        start: jax.Array,
        near_BTS: jax.Array | None = None,
        modality: str = "",
    ) -> tuple[jax.Array, Cache]:
        """Hidden states [B,T,D] of new tokens that see the cache under `mask_BTS`, and the cache with them in it. near_BTS:
        all that layers with a window see of it. modality: of the new tokens. A cache that is one for each layer is handed back
        so. Raises UsageError for a backbone with relative_buckets."""
        c = self.config
        if c.relative_buckets is not None:
            raise UsageError(NO_CACHE)
        ropes, kinds = self._kinds(position_BT)
        stretches = [(modality, x_BTD.shape[1])] if modality in c.experts else []

        def layer(x: jax.Array, inputs: tuple[Block, KVCache, LayerKind]) -> tuple[jax.Array, KVCache]:
            block, layer_cache, kind = inputs
            mask, rope = mask_BTS, _chosen(ropes, kind)
            if near_BTS is not None and any(c.windowed):
                mask = mask & (near_BTS if kind.windowed is None else near_BTS | ~kind.windowed)
            options: dict[str, Any] = dict(bare=kind.bare, stretches=stretches)
            return block(x, lambda attention, y: attention.extend(y, layer_cache, start, mask, rope), **options)

        x, found = x_BTD.astype(c.dtype), cache
        if isinstance(cache, KVCache):
            x, found = self._run(layer, x, (cache, kinds))
        else:
            caches = list(cache)
            for i, own in enumerate(caches):
                x, caches[i] = layer(x, (self._block(i), own, jax.tree.map(lambda leaf, i=i: leaf[i], kinds)))
            found = tuple(caches)
        return (x if self.final_norm is None else self.final_norm(x)), found

    def _block(self, i: int) -> Block:
        """The block of layer i."""
        i = 0 if self.config.shared_layers else i
        return jax.tree.map(lambda leaf: leaf[i], self.layers) if self.config.scan else self.layers[i]

    def _stretches(self, tokens: Tokens) -> list[Stretch]:
        """Which tokens have which expert, left to right; empty where none has one."""
        found: list[Stretch] = []
        for modality, span in zip(modalities(tokens), tokens.layout, strict=True):
            name, length = modality if modality in self.config.experts else "", span.length
            if found and found[-1][0] == name:
                length += found.pop()[1]
            found.append((name, length))
        return found if any(name for name, _ in found) else []

    def _relative_bias(self, length: int) -> jax.Array | None:
        """The bias that distance adds to each head's logits, [H,T,T]."""
        c, place = self.config, np.arange(length)
        if self.relative is None or c.relative_buckets is None:
            return None
        bucket = relative_bucket(place[None, :] - place[:, None], c.relative_buckets, c.relative_distance)
        return self.relative(jnp.asarray(bucket)).transpose(2, 0, 1)

    def _kinds(self, position_BT: jax.Array) -> tuple[Any, LayerKind]:
        """The rotations (one after the other, if layers differ), and how each layer differs from the others."""
        c = self.config
        ways = list(dict.fromkeys(c.rotations))
        ropes: Any = None
        still = jnp.zeros_like(position_BT)  # turned by nothing, for layers without rotation among others with it
        if ways != [None]:
            tables = [rope_table(position_BT, c.K, *way) if way else rope_table(still, c.K, 1.0) for way in ways]
            ropes = jax.tree.map(lambda *tables: jnp.stack(tables), *tables) if len(ways) > 1 else tables[0]
        kinds = LayerKind(
            rope=np.asarray([ways.index(way) for way in c.rotations], np.int32) if len(ways) > 1 else None,
            windowed=np.asarray(c.windowed) if len(set(c.windowed)) > 1 else None,
            bare=None if c.first_attention_norm else np.arange(c.depth) == 0,
        )
        return ropes, kinds

    def _run(self, layer: Callable[..., Any], x: jax.Array, per_layer: tuple[Any, ...]) -> tuple[jax.Array, Any]:
        """Thread x through the layers, scanned or one by one; what each returns beside x comes back stacked."""
        c = self.config
        if c.scan and c.shared_layers:
            block = jax.tree.map(lambda leaf: leaf[0], self.layers)
            return jax.lax.scan(lambda x, rest: layer(x, (block, *rest)), x, per_layer, length=c.depth)
        if c.scan:
            return jax.lax.scan(layer, x, (self.layers, *per_layer))
        outs = []
        for i in range(c.depth):
            x, out = layer(x, (self._block(i), *jax.tree.map(lambda leaf, i=i: leaf[i], per_layer)))
            outs.append(out)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

    def stacked(self) -> Backbone:
        """The same weights as one stacked Block, run by a scan (one compiled layer, whatever the depth)."""
        if self.config.scan:
            return self
        return self._with_layers(jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.layers), scan=True)

    def unstacked(self) -> Backbone:
        """The same weights as a list of Blocks, unrolled: `backbone.layers[3].mlp` can be looked at or replaced."""
        if not self.config.scan:
            return self
        blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], self.layers) for i in range(self.config.blocks)]
        return self._with_layers(nnx.List(blocks), scan=False)

    def _with_layers(self, layers: Any, *, scan: bool) -> Backbone:
        config = replace(self.config, scan=scan)
        other = jax.eval_shape(lambda: Backbone(config, rngs=nnx.Rngs(0)))  # the structure alone
        other.layers, other.final_norm, other.relative = layers, self.final_norm, self.relative
        return other


def _chosen(ropes: Any, kind: LayerKind) -> Any:
    """The rotation of one layer."""
    return ropes if kind.rope is None else jax.tree.map(lambda tables: tables[kind.rope], ropes)
