"""The one transformer: `Tokens` → hidden states, whatever the modality and whatever the objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal.attention import IMPLEMENTATIONS, attention
from unimodal.errors import UsageError
from unimodal.kernels.dense import attend
from unimodal.layers import Embedding, Linear, Norm, activate, dropout
from unimodal.sharding import constrain
from unimodal.tokens import Layout, Tokens
from unimodal.visibility import Pattern, visible

# name → (activation, gated). Gated MLPs (Shazeer 2020) multiply the activation by a second projection.
MLP_ACTIVATIONS: dict[str, tuple[str, bool]] = {
    **{name: (name, False) for name in ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")},
    "swiglu": ("silu", True),
    "geglu": ("gelu_tanh", True),
    "geglu_erf": ("gelu", True),
}

REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,  # keep every intermediate for the backward pass
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only what passes between the layers
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the weight products, redo attention
}


NO_CACHE = "backbone.relative_buckets has no cache, so nothing can be generated with it"


@dataclass(frozen=True)
class BackboneConfig:
    """Everything a published transformer encoder or decoder varies. An unused option costs nothing."""

    width: int  # D, of the hidden states
    depth: int  # L, how many layers
    heads: int  # H, of the queries
    kv_heads: int | None = None  # G, heads of keys and values; None: H
    head_size: int | None = None  # K; None: D/H
    mlp_width: int | None = None  # M; None: 4·D
    norm_position: str = "pre"  # of each branch: "pre", "post", or "sandwich", before and after it (Ding 2021)
    # False: layer 0 does not normalise before its attention, as its tokens come normalised (its scale stays, unused)
    first_attention_norm: bool = True
    norm: str = "layer"  # "layer" or "rms"
    norm_epsilon: float = 1e-6  # added to the variance
    norm_bias: bool = True  # norms have a bias
    norm_offset: float = 0.0  # added to the learned scale of every norm
    activation: str = "gelu"  # of the MLP: a key of MLP_ACTIVATIONS
    qkv_bias: bool = True  # query, key and value projections have a bias
    key_bias: bool = True  # False: keys have none, even with qkv_bias
    output_bias: bool = True  # the projection after the attention has a bias
    mlp_bias: bool = True  # both projections of the MLP have a bias
    qk_norm: bool = False  # normalise each head's query and key, by the kind of `norm`
    rope_theta: float | None = None  # base of rotary position embedding (Su 2021); None: no rotation
    # How rotation is stretched for longer rows. (factor,): all wavelengths by it. (factor, low, high, length):
    # wavelengths above length/low by the factor, those below length/high not at all, smoothly between (Llama 3.1).
    rope_scaling: tuple[float, ...] | None = None
    rope_layers: tuple[int, ...] | None = None  # layers (from 0) that rotate; None: all
    attention_scale: float | None = None  # factor on the products of query and key; None: 1/√K
    attention_soft_cap: float | None = None  # c: logits z become c·tanh(z/c), so none is beyond ±c (Bello 2016)
    # Buckets of a learned bias on the attention logits, by distance, for each head and shared by all layers (Raffel
    # 2020, §2.1). Half are for earlier keys, half for later ones. Near distances have a bucket each, further ones
    # share. Needs the kernel "xla", and has no cache.
    relative_buckets: int | None = None
    relative_distance: int = 128  # from here on all distances share the last bucket
    layer_scale: float | None = None  # start of a learned scale on each branch (Touvron 2021); None: no scale
    dropout: float = 0.0  # rate, on both residual branches and the output of the attention
    stochastic_depth: float = 0.0  # rate of the last layer; it grows linearly from 0
    final_norm: bool = True  # normalise after the last layer
    shared_layers: bool = False  # use one layer `depth` times (Lan 2020, §3.1 "Cross-layer parameter sharing")
    scan: bool = True  # stack the layers and scan over them; False: unroll them
    remat: str = "none"  # what the backward pass computes again: a key of REMAT
    dtype: str = "float32"  # dtype of the computation
    param_dtype: str = "float32"  # dtype in which parameters are stored
    attention: str = "auto"  # the kernel by name, or "auto"
    # See only tokens less than this many places away: with a causal span, itself and the window - 1 before. None: see
    # all that the layout shows.
    window: int | None = None
    # so many tokens at the start of each document see and are seen whatever the window (Beltagy 2020)
    global_tokens: int = 0
    window_layers: tuple[int, ...] | None = None  # layers (from 0) that have the window; None: all
    window_rope_theta: float | None = None  # rope_theta of those, not stretched; None: as in the others

    def __post_init__(self) -> None:
        Pattern((), self.window, self.global_tokens)  # refuses what makes no sense
        for name in ("width", "depth", "heads", "kv_heads", "head_size", "mlp_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"backbone.{name} must be at least 1, but is {value}")
        for name in ("dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"backbone.{name} must be at least 0 and below 1, but is {getattr(self, name)}")
        if self.head_size is None and self.width % self.heads:
            raise UsageError(f"backbone.width={self.width} is not divisible by heads={self.heads}; or set head_size")
        if self.heads % self.G:
            raise UsageError(f"backbone.heads={self.heads} is not divisible by kv_heads={self.kv_heads}")
        if (scaling := self.rope_scaling) is not None:
            right = len(scaling) in (1, 4) and all(0 < value < math.inf for value in scaling)
            if not right or (len(scaling) == 4 and scaling[1] >= scaling[2]):
                raise UsageError(
                    f"backbone.rope_scaling must be (factor,) or (factor, low, high, length), all positive and low below "
                    f"high, but is {scaling}"
                )
        if self.rope_theta is not None and self.K % 2:
            raise UsageError(f"backbone.rope_theta rotates pairs, so the head size must be even, but is {self.K}")
        for name, allowed in (
            ("norm_position", ("pre", "post", "sandwich")),
            ("norm", ("layer", "rms")),
            ("activation", tuple(MLP_ACTIVATIONS)),
            ("remat", tuple(REMAT)),
            ("attention", IMPLEMENTATIONS),
            ("dtype", ("float32", "bfloat16", "float16")),
            ("param_dtype", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"backbone.{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        self._check_layers()

    def _check_layers(self) -> None:
        """Raises UsageError where an option of some layers names a layer, or needs an option, that is not there."""
        for name in ("window_layers", "rope_layers"):
            beyond = [i for i in getattr(self, name) or () if not 0 <= i < self.depth]
            if beyond:
                raise UsageError(f"backbone.{name} names layer {beyond[0]}, but there are 0 to {self.depth - 1}")
        for name, needed in (
            ("window_layers", "window"),
            ("window_rope_theta", "window"),
            ("window_rope_theta", "rope_theta"),
            ("rope_layers", "rope_theta"),
        ):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise UsageError(f"backbone.{name} means nothing without {needed}: set both, or neither")
        if self.relative_buckets is not None:
            if self.attention not in ("auto", "xla"):
                raise UsageError(f"backbone.attention={self.attention!r} has no relative_buckets: choose auto or xla")
            if (
                self.relative_buckets < 4
                or self.relative_buckets % 4
                or self.relative_distance <= self.relative_buckets
            ):
                raise UsageError(
                    f"backbone.relative_buckets must be a multiple of 4 below relative_distance={self.relative_distance}, but "
                    f"is {self.relative_buckets}"
                )
        if not self.first_attention_norm and self.norm_position == "post":
            raise UsageError("backbone.first_attention_norm=False leaves out a norm that norm_position='post' has not")
        for name in ("attention_scale", "attention_soft_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"backbone.{name} must be above 0, but is {value}")

    @property
    def G(self) -> int:
        """Key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def K(self) -> int:
        """Head size."""
        return self.width // self.heads if self.head_size is None else self.head_size

    @property
    def M(self) -> int:
        """MLP width."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def blocks(self) -> int:
        """Layers with weights of their own."""
        return 1 if self.shared_layers else self.depth

    @property
    def windowed(self) -> tuple[bool, ...]:
        """Which layers the window holds for."""
        layers = range(self.depth) if self.window_layers is None else self.window_layers
        return tuple(self.window is not None and i in layers for i in range(self.depth))

    @property
    def rotations(self) -> tuple[tuple[float, tuple[float, ...] | None] | None, ...]:
        """How each layer rotates: (theta, scaling), or None for not at all."""
        if self.rope_theta is None:
            return (None,) * self.depth
        usual = self.rope_theta, self.rope_scaling
        near = usual if self.window_rope_theta is None else (self.window_rope_theta, None)
        layers = range(self.depth) if self.rope_layers is None else self.rope_layers
        return tuple((near if narrow else usual) if i in layers else None for i, narrow in enumerate(self.windowed))

    def make_norm(self, size: int | None = None) -> Norm:
        return Norm(
            self.width if size is None else size,
            self.norm,
            epsilon=self.norm_epsilon,
            bias=self.norm_bias,
            offset=self.norm_offset,
            dtype=jnp.dtype(self.param_dtype),
        )

    def make_layer_scale(self) -> nnx.Param | None:
        if self.layer_scale is None:
            return None
        scale = jnp.full((self.width,), self.layer_scale, jnp.dtype(self.param_dtype))
        return nnx.Param(scale, axes=("hidden",), kind="vector")


def rope_table(
    position_BT: jax.Array, head_size: int, theta: float, scaling: tuple[float, ...] | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B,T,1,K/2] of rotary position embedding (Su 2021, eq. 34), the halves of K rotated together.

    `scaling`: as BackboneConfig.rope_scaling. Exact at any position: an angle of millions of radians has but one digit
    after the point in float32, so whole turns are left out before anything is rounded."""
    frequency = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if scaling is not None:
        frequency = _stretched(frequency, *scaling)
    # Turns per place: 32 bits after the point, the product of which wraps just where a turn is whole, and what is left.
    turns = frequency / (2 * math.pi) % 1.0
    high = np.round(turns * 2**32)
    rest = (turns - high / 2**32).astype(np.float32)
    steps = (high % 2**32).astype(np.uint32).view(np.int32)
    place = position_BT[:, :, None, None].astype(jnp.int32)
    turned = (place * steps[None, None, None, :]).astype(jnp.float32) * 2.0**-32
    angle = 2 * math.pi * (turned + place.astype(jnp.float32) * rest[None, None, None, :])
    return jnp.cos(angle), jnp.sin(angle)


def _stretched(
    frequency: np.ndarray, factor: float, low: float | None = None, high: float | None = None, length: float = 0.0
) -> np.ndarray:
    """Frequencies divided by `factor`, wholly or only as far as they are slow (see BackboneConfig.rope_scaling)."""
    if low is None or high is None:
        return frequency / factor
    turns = length * frequency / (2 * math.pi)  # in the length that it was trained for
    kept = np.minimum(np.maximum((turns - low) / (high - low), 0.0), 1.0)
    return frequency * (kept + (1 - kept) / factor)


def relative_bucket(distance: np.ndarray, buckets: int, longest: int) -> np.ndarray:
    """The bucket of each distance (place of the key less that of the query), as BackboneConfig.relative_buckets says."""
    half, single = buckets // 2, buckets // 4
    away = np.abs(distance).astype(np.float32)
    far = np.log(np.maximum(away, 1) / np.float32(single)) / np.float32(math.log(longest / single))
    stretch = np.minimum(single + (far * np.float32(half - single)).astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0).astype(np.int32) + np.where(away < single, away.astype(np.int32), stretch)


def rotate(x_BTHK: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the pairs (i, i+K/2) of each head by the angles of `rope`."""
    cos, sin = rope
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)


def _chosen(ropes: Any, kind: LayerKind) -> Any:
    """The rotation of one layer."""
    return ropes if kind.rope is None else jax.tree.map(lambda tables: tables[kind.rope], ropes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of what came before, for generation: k, v [B,S,G,K] (stacked [L,B,S,G,K] for a backbone)."""

    k: jax.Array
    v: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerKind:
    """What is not alike in all layers, and None where it is: which of the rotations a layer takes, whether the window holds
    for it, whether its attention has no norm before it. One value a layer in numpy arrays, which an unrolled backbone
    can read while tracing."""

    rope: Any = None
    windowed: Any = None
    bare: Any = None


class Attention(nnx.Module):
    """Multi-head self-attention with optional grouped key/value heads, query/key norm and rotary positions."""

    def __init__(self, config: BackboneConfig, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        self.implementation, self.global_tokens = c.attention, c.global_tokens
        self.window = c.window if any(c.windowed) else None
        self.scale, self.soft_cap = c.attention_scale, c.attention_soft_cap
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
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
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v

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
        make: dict[str, Any] = dict(bias=c.mlp_bias, dtype=dtype, rngs=rngs)
        self.gate = Linear((c.width,), (c.M,), ("embed", "mlp"), **make) if gated else None
        self.up = Linear((c.width,), (c.M,), ("embed", "mlp"), **make)
        self.down = Linear((c.M,), (c.width,), ("mlp", "embed"), init_scale=(2 * c.depth) ** -0.5, **make)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        up = self.up(x_BTD)
        hidden = activate(self.activation, up) if self.gate is None else activate(self.activation, self.gate(x_BTD), up)
        return self.down(constrain(hidden, "batch", "tokens", "mlp"))


class Block(nnx.Module):
    """One layer: attention and MLP, each on a residual branch."""

    def __init__(self, config: BackboneConfig, *, rngs: nnx.Rngs):
        self.pre_norm, sandwich = config.norm_position != "post", config.norm_position == "sandwich"
        self.dropout, self.stochastic_depth = config.dropout, config.stochastic_depth
        self.attention_norm = config.make_norm()
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = config.make_norm()
        self.mlp = Mlp(config, rngs=rngs)
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
    ) -> tuple[jax.Array, Any]:
        """One layer. `attend_to(attention, x)` says how to attend: in full, or by extending a cache. bare: no norm before
        the attention."""
        keys = [None, None] if key is None else list(jax.random.split(key))
        pre = self.pre_norm

        normed = self.attention_norm(x_BTD) if pre else x_BTD
        attended, extra = attend_to(self.attention, normed if bare is None else jnp.where(bare, x_BTD, normed))
        if self.attention_post_norm is not None:
            attended = self.attention_post_norm(attended)
        x_BTD = x_BTD + self._branch(attended, self.attention_scale, keys[0], depth_rate)
        if not pre:
            x_BTD = self.attention_norm(x_BTD)
        x_BTD = constrain(x_BTD, "batch", "tokens", "hidden")

        perceived = self.mlp(self.mlp_norm(x_BTD) if pre else x_BTD)
        if self.mlp_post_norm is not None:
            perceived = self.mlp_post_norm(perceived)
        x_BTD = x_BTD + self._branch(perceived, self.mlp_scale, keys[1], depth_rate)
        if not pre:
            x_BTD = self.mlp_norm(x_BTD)
        return constrain(x_BTD, "batch", "tokens", "hidden"), extra

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
        "attention" (weights, [L,B,H,T,T]); what is not asked for costs nothing.
        """
        c = self.config
        unknown = set(capture) - {"hidden", "attention"}
        if unknown:
            raise ValueError(f"capture {sorted(unknown)} is not among 'hidden', 'attention'")
        (ropes, kinds), bias_HTT = self._kinds(tokens.position), self._relative_bias(tokens.x.shape[1])

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

            x, weights = block(x, attend_to, key=layer_key, depth_rate=rate, bare=kind.bare)
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
        ropes, kinds = self._kinds(tokens.position)

        def layer(x: jax.Array, inputs: tuple[Block, LayerKind]) -> tuple[jax.Array, KVCache]:
            block, kind = inputs
            rope = _chosen(ropes, kind)
            options: dict[str, Any] = dict(right_padded=tokens.right_padded, windowed=kind.windowed)

            def attend_to(attention: Attention, x: jax.Array) -> tuple[jax.Array, KVCache]:
                result, _ = attention(x, tokens.layout, tokens.segment, rope, **options)
                _, k, v = attention.project(x, rope)  # as the call above does; the compiler makes one of the two
                return result, KVCache(k, v)

            return block(x, attend_to, bare=kind.bare)

        x, cache = self._run(layer, constrain(tokens.x.astype(c.dtype), "batch", "tokens", "hidden"), (kinds,))
        return (x if self.final_norm is None else self.final_norm(x)), cache

    def extend(
        self,
        x_BTD: jax.Array,
        position_BT: jax.Array,
        mask_BTS: jax.Array,
        cache: KVCache,
        start: jax.Array,
        near_BTS: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Hidden states [B,T,D] of new tokens that see the cache under `mask_BTS`, and the cache with them in it. near_BTS:
        all that layers with a window see of it. Raises UsageError for a backbone with relative_buckets."""
        c = self.config
        if c.relative_buckets is not None:
            raise UsageError(NO_CACHE)
        ropes, kinds = self._kinds(position_BT)

        def layer(x: jax.Array, inputs: tuple[Block, KVCache, LayerKind]) -> tuple[jax.Array, KVCache]:
            block, layer_cache, kind = inputs
            mask, rope = mask_BTS, _chosen(ropes, kind)
            if near_BTS is not None and any(c.windowed):
                mask = mask & (near_BTS if kind.windowed is None else near_BTS | ~kind.windowed)
            return block(x, lambda attention, y: attention.extend(y, layer_cache, start, mask, rope), bare=kind.bare)

        x, cache = self._run(layer, x_BTD.astype(c.dtype), (cache, kinds))
        return (x if self.final_norm is None else self.final_norm(x)), cache

    def _relative_bias(self, length: int) -> jax.Array | None:
        """What distance adds to each head's logits, [H,T,T]."""
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
            block = self.layers[0 if c.shared_layers else i]
            x, out = layer(x, (block, *jax.tree.map(lambda leaf, i=i: leaf[i], per_layer)))
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
