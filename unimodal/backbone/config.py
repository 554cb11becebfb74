"""Options of a backbone, in one frozen dataclass."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from unimodal.attention import IMPLEMENTATIONS
from unimodal.errors import UsageError
from unimodal.layers import Norm
from unimodal.quantization import QUANTIZATION
from unimodal.remat import REMAT
from unimodal.visibility import Pattern

# name → (activation, gated). Gated MLPs (Shazeer 2020) multiply the activation by a second projection.
MLP_ACTIVATIONS: dict[str, tuple[str, bool]] = {
    **{name: (name, False) for name in ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")},
    "swiglu": ("silu", True),
    "geglu": ("gelu_tanh", True),
    "geglu_erf": ("gelu", True),
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
    # share. Needs the kernel "xla" or "lean", and has no cache.
    relative_buckets: int | None = None
    relative_distance: int = 128  # from here on all distances share the last bucket
    # Modalities whose tokens have an MLP of their own in each layer, and the norm of its branch (Bao 2022, §3.1
    # "Mixture-of-Modality-Experts"): of "text", "image", "audio". All others share one, and attention is everybody's.
    experts: tuple[str, ...] = ()
    layer_scale: float | None = None  # start of a learned scale on each branch (Touvron 2021); None: no scale
    dropout: float = 0.0  # rate, on both residual branches and the output of the attention
    stochastic_depth: float = 0.0  # rate of the last layer; it grows linearly from 0
    final_norm: bool = True  # normalise after the last layer
    shared_layers: bool = False  # use one layer `depth` times (Lan 2020, §3.1 "Cross-layer parameter sharing")
    scan: bool = True  # stack the layers and scan over them; False: unroll them
    remat: str = "none"  # what the backward pass computes again: a key of REMAT
    dtype: str = "float32"  # dtype of the computation
    param_dtype: str = "float32"  # dtype in which parameters are stored
    quantization: str = "none"  # products with weights in eight bits, forward and backward: "int8" or "float8"
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
            ("quantization", QUANTIZATION),
        ):
            if getattr(self, name) not in allowed:
                # Another number of bits is a choice, and no slip of the pen.
                near = [] if "dtype" in name else difflib.get_close_matches(str(getattr(self, name)), allowed, n=1)
                raise UsageError(
                    f"backbone.{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}"
                    + (f"; did you mean {near[0]}?" if near else "")
                )
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
            if self.attention not in ("auto", "xla", "lean"):
                raise UsageError(
                    f"backbone.attention={self.attention!r} has no relative_buckets: choose auto, xla or lean"
                )
            if (
                self.relative_buckets < 4
                or self.relative_buckets % 4
                or self.relative_distance <= self.relative_buckets
            ):
                raise UsageError(
                    f"backbone.relative_buckets must be a multiple of 4 below relative_distance={self.relative_distance}, but "
                    f"is {self.relative_buckets}"
                )
        if len(set(self.experts)) < len(self.experts) or "" in self.experts:
            raise UsageError(f"backbone.experts must name modalities, each once, but is {self.experts}")
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
        """The rotation of each layer: (theta, scaling), or None for not at all."""
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
