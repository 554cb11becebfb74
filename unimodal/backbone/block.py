"""One layer: attention and an MLP on residual branches, for training and generation with a cache alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal.attention import attention
from unimodal.backbone.config import MLP_ACTIVATIONS, BackboneConfig
from unimodal.backbone.positions import rotate
from unimodal.kernels.dense import attend
from unimodal.layers import Linear, activate, dropout
from unimodal.remat import named
from unimodal.sharding import constrain
from unimodal.tokens import Layout
from unimodal.visibility import visible


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of what came before, for generation."""

    k: jax.Array  # [B,S,G,K], or [L,B,S,G,K] for a backbone
    v: jax.Array  # as k


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerKind:
    """Options that differ between layers, None where they do not.

    Each is a numpy array with one value a layer, which an unrolled backbone can read while tracing.
    """

    rope: Any = None  # which of the rotations
    windowed: Any = None  # the window holds
    bare: Any = None  # attention has no norm before it


class Attention(nnx.Module):
    """Multi-head self-attention with optional grouped key/value heads, query/key norm and rotary positions."""

    def __init__(self, config: BackboneConfig, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        self.implementation, self.global_tokens = c.attention, c.global_tokens
        self.window = c.window if any(c.windowed) else None
        self.scale, self.soft_cap = c.attention_scale, c.attention_soft_cap
        make: dict[str, Any] = dict(quantization=c.quantization, dtype=dtype, rngs=rngs)
        self.query = Linear((c.width,), (c.heads, c.K), ("embed", "heads", "head_size"), bias=c.qkv_bias, **make)
        key_bias = c.qkv_bias and c.key_bias
        self.key = Linear((c.width,), (c.G, c.K), ("embed", "kv_heads", "head_size"), bias=key_bias, **make)
        self.value = Linear((c.width,), (c.G, c.K), ("embed", "kv_heads", "head_size"), bias=c.qkv_bias, **make)
        # Residual branches start small so that the sum over 2·depth of them has unit scale (Radford 2019, §2.3).
        self.output = Linear(
            (c.heads, c.K),
            (c.width,),
            ("heads", "head_size", "embed"),
            bias=c.output_bias,
            init_scale=(2 * c.depth) ** -0.5,
            **make,
        )
        self.query_norm = c.make_norm(c.K) if c.qk_norm else None
        self.key_norm = c.make_norm(c.K) if c.qk_norm else None

    def project(
        self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query [B,T,H,K], key and value [B,T,G,K], normed and rotated."""
        q, k, v = self._projected(x_BTD, x_BTD)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v

    def _projected(self, asking: jax.Array, asked: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q = named(self.query(asking), "query", flat=2)
        k = named(self.key(asked), "key", flat=2)
        v = named(self.value(asked), "value", flat=2)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return q, k, v

    def between(self, asking_BTD: jax.Array, asked_BSD: jax.Array, mask_BTS: jax.Array | None) -> jax.Array:
        """What some tokens take from others, without positions: [B,T,D]."""
        q, k, v = self._projected(asking_BTD, asked_BSD)
        return self.output(attend(q, k, v, mask_BTS, scale=self.scale, soft_cap=self.soft_cap)[0])

    def __call__(
        self,
        x_BTD: jax.Array,
        layout: Layout,
        segment: jax.Array | None,
        rope: tuple[jax.Array, jax.Array] | None,
        *,
        right_padded: bool = False,
        capture: bool = False,
        windowed: Any = None,
        bias_HTT: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attended [B,T,D], and the weights [B,H,T,T] if `capture` (which needs the plain kernel). right_padded: as in
        `Tokens`. windowed: whether the window holds here, None: it does. bias_HTT: added to the logits."""
        q, k, v = self.project(x_BTD, rope)
        q = constrain(q, "batch", "tokens", "heads", "head_size")
        always: int = self.global_tokens
        bent: dict[str, Any] = dict(scale=self.scale, soft_cap=self.soft_cap, bias=bias_HTT)

        def run(window: int | None) -> tuple[jax.Array, jax.Array | None]:
            if capture:
                return attend(q, k, v, visible(layout, segment, window=window, global_tokens=always), **bent)
            result = attention(
                q,
                k,
                v,
                layout,
                segment,
                window=window,
                global_tokens=always,
                implementation=self.implementation,
                right_padded=right_padded,
                **bent,
            )
            return result, None

        if windowed is None or isinstance(windowed, np.bool_):
            result, weights = run(self.window if windowed is None or windowed else None)
        else:  # one layer's program serves all in a scan; a device runs the branch that it takes
            result, weights = jax.lax.cond(windowed, lambda: run(self.window), lambda: run(None))
        return self.output(result), weights

    def extend(
        self,
        x_BTD: jax.Array,
        cache: KVCache,
        start: jax.Array,
        mask_BTS: jax.Array,
        rope: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[jax.Array, KVCache]:
        """Attend from new tokens to the cache and themselves; they are written to its slots start … start+T-1."""
        q, k, v = self.project(x_BTD, rope)
        at = (0, start, 0, 0)
        cache = KVCache(jax.lax.dynamic_update_slice(cache.k, k, at), jax.lax.dynamic_update_slice(cache.v, v, at))
        result, _ = attend(q, cache.k, cache.v, mask_BTS, scale=self.scale, soft_cap=self.soft_cap)
        return self.output(result), cache


class Mlp(nnx.Module):
    """Two-layer perceptron, gated or not."""

    def __init__(self, config: BackboneConfig, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        self.activation, gated = MLP_ACTIVATIONS[c.activation]
        make: dict[str, Any] = dict(bias=c.mlp_bias, quantization=c.quantization, dtype=dtype, rngs=rngs)
        self.gate = Linear((c.width,), (c.M,), ("embed", "mlp"), **make) if gated else None
        self.up = Linear((c.width,), (c.M,), ("embed", "mlp"), **make)
        self.down = Linear((c.M,), (c.width,), ("mlp", "embed"), init_scale=(2 * c.depth) ** -0.5, **make)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        up = named(self.up(x_BTD), "mlp_up")
        if self.gate is None:
            hidden = activate(self.activation, up)
        else:
            hidden = activate(self.activation, named(self.gate(x_BTD), "mlp_gate"), up)
        return self.down(constrain(hidden, "batch", "tokens", "mlp"))


class Expert(nnx.Module):
    """The MLP of one modality's tokens, and the norm of its branch."""

    def __init__(self, config: BackboneConfig, *, rngs: nnx.Rngs):
        self.mlp_norm = config.make_norm()
        self.mlp = Mlp(config, rngs=rngs)


Stretch = tuple[str, int]
"""Neighbouring tokens with the same weights: the name of their expert ("": what all share), and how many they are."""


class Block(nnx.Module):
    """One layer: attention and MLP, each on a residual branch."""

    def __init__(self, config: BackboneConfig, *, rngs: nnx.Rngs):
        self.pre_norm, sandwich = config.norm_position != "post", config.norm_position == "sandwich"
        self.dropout, self.stochastic_depth = config.dropout, config.stochastic_depth
        self.attention_norm = config.make_norm()
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = config.make_norm()
        self.mlp = Mlp(config, rngs=rngs)
        self.experts = (
            nnx.Dict({name: Expert(config, rngs=rngs) for name in config.experts}) if config.experts else None
        )
        self.attention_scale = config.make_layer_scale()
        self.mlp_scale = config.make_layer_scale()
        self.attention_post_norm = config.make_norm() if sandwich else None
        self.mlp_post_norm = config.make_norm() if sandwich else None

    def __call__(
        self,
        x_BTD: jax.Array,
        attend_to: Callable[[Attention, jax.Array], tuple[jax.Array, Any]],
        *,
        key: jax.Array | None = None,
        depth_rate: jax.Array | float = 0.0,
        bare: Any = None,
        stretches: Sequence[Stretch] = (),
    ) -> tuple[jax.Array, Any]:
        """One layer. `attend_to(attention, x)` says how to attend: in full, or by extending a cache. bare: no norm before
        the attention. stretches: which tokens have which expert, (): none has one."""
        keys = [None, None] if key is None else list(jax.random.split(key))
        pre = self.pre_norm

        normed = self.attention_norm(x_BTD) if pre else x_BTD
        attended, extra = attend_to(self.attention, normed if bare is None else jnp.where(bare, x_BTD, normed))
        attended = self._kept(attended)
        if self.attention_post_norm is not None:
            attended = self.attention_post_norm(attended)
        x_BTD = x_BTD + self._branch(attended, self.attention_scale, keys[0], depth_rate)
        if not pre:
            x_BTD = self.attention_norm(x_BTD)
        x_BTD = constrain(x_BTD, "batch", "tokens", "hidden")

        perceived = self._by_expert(lambda part, x: part.mlp(part.mlp_norm(x) if pre else x), x_BTD, stretches)
        perceived = self._kept(perceived)
        if self.mlp_post_norm is not None:
            perceived = self.mlp_post_norm(perceived)
        x_BTD = x_BTD + self._branch(perceived, self.mlp_scale, keys[1], depth_rate)
        if not pre:
            x_BTD = self._by_expert(lambda part, x: part.mlp_norm(x), x_BTD, stretches)
        return constrain(x_BTD, "batch", "tokens", "hidden"), extra

    def _kept(self, y: jax.Array) -> jax.Array:
        """Name what a branch gives where a norm reads it, whose backward pass would compute the last product again."""
        return y if self.pre_norm and self.mlp_post_norm is None else named(y, "branch")

    def _by_expert(
        self, call: Callable[[Any, jax.Array], jax.Array], x_BTD: jax.Array, stretches: Sequence[Stretch]
    ) -> jax.Array:
        """`call(part, x)` of each stretch of tokens with its expert, or with this layer itself."""
        if not stretches:
            return call(self, x_BTD)
        ends = np.cumsum([length for _, length in stretches])
        pieces = jnp.split(x_BTD, ends[:-1], axis=1)
        experts: Any = self.experts
        called = [call(experts[name] if name else self, x) for (name, _), x in zip(stretches, pieces, strict=True)]
        return jnp.concatenate(called, axis=1) if len(called) > 1 else called[0]

    def _branch(
        self, y: jax.Array, scale: nnx.Param | None, key: jax.Array | None, depth_rate: jax.Array | float
    ) -> jax.Array:
        if scale is not None:
            y = y * scale.get_value().astype(y.dtype)[None, None]
        if key is None or (not self.dropout and not self.stochastic_depth):
            return y
        drop, skip = jax.random.split(key)
        y = dropout(y, self.dropout, drop)
        return dropout(y, depth_rate, skip, per_example=True) if self.stochastic_depth else y
