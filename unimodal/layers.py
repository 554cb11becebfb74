"""The few layers with parameters that everything else is made of.

Each `nnx.Param` has metadata:

- axes: the logical axes of its dimensions, by which it is split over devices (see `sharding`);
- kind: "matrix", "table" (rows that are looked up) or "vector" (biases and scales, without weight decay). By default a
  parameter of at most one dimension is a vector, and any other a matrix;
- contracted: how many of a matrix's leading dimensions are summed over;
- bounds: (lowest, highest), either of them None. An update never leads beyond them.

Norms and activations are under `jax.checkpoint`. The backward pass keeps only their input and computes the rest again.
Writing the intermediates to memory and reading them back (six arrays instead of two) takes longer than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from unimodal.errors import UsageError
from unimodal.quantization import product
from unimodal.remat import named

Initializer = Callable[..., jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # The formula of Hendrycks 2016. jax.nn.gelu uses erfc: more exact in half precision, five times slower on CPUs.
    "gelu": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


@partial(jax.checkpoint, static_argnums=0)
def activate(name: str, x: jax.Array, factor: jax.Array | None = None) -> jax.Array:
    """Apply an activation of ACTIVATIONS, and multiply by `factor` (gated MLPs): [...] → [...]. Computes in float32."""
    y = ACTIVATIONS[name](x.astype(jnp.float32))
    return (y if factor is None else y * factor.astype(jnp.float32)).astype(x.dtype)


def fan_in(scale: float, inputs: Sequence[int]) -> Initializer:
    """Truncated normal with standard deviation scale / sqrt(number of inputs)."""
    # 0.87962566 is the standard deviation of a unit normal truncated to ±2.
    return jax.nn.initializers.truncated_normal(scale / math.sqrt(math.prod(inputs)) / 0.87962566)


class Linear(nnx.Module):
    """y = x·kernel + bias, contracting the last len(inputs) dimensions of x: [..., *inputs] → [..., *outputs].

    kernel: [*inputs, *outputs], bias: [*outputs]; `axes` names the kernel's dimensions. Computes in x's dtype.
    quantization: the product's format, one of QUANTIZATION.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        axes: Sequence[str],
        *,
        bias: bool = True,
        init_scale: float = 1.0,
        quantization: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (*inputs, *outputs)
        self.contracted, self.quantization = len(inputs), quantization
        self.kernel = nnx.Param(
            fan_in(init_scale, inputs)(rngs.params(), shape, dtype),
            axes=tuple(axes),
            kind="matrix",
            contracted=len(inputs),
        )
        bias_axes = tuple(axes[len(inputs) :])
        self.bias = nnx.Param(jnp.zeros(tuple(outputs), dtype), axes=bias_axes, kind="vector") if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel.get_value().astype(x.dtype)
        if self.quantization == "none":
            contract = tuple(range(x.ndim - self.contracted, x.ndim)), tuple(range(self.contracted))
            y = jax.lax.dot_general(x, kernel, (contract, ((), ())))
        else:
            y = product(x, kernel, self.contracted, self.quantization)
        if self.bias is not None:
            bias = self.bias.get_value().astype(y.dtype)
            y = y + jnp.expand_dims(bias, tuple(range(y.ndim - bias.ndim)))
        return y


class Norm(nnx.Module):
    """LayerNorm (`kind="layer"`, Ba 2016) or RMSNorm (`"rms"`, Zhang 2019) over the last dimension, in float32.

    offset: added to the learned scale. With 1 the scale is stored around 0, where half precision is finest.
    """

    def __init__(
        self,
        size: int,
        kind: str = "layer",
        *,
        epsilon: float = 1e-6,
        bias: bool = True,
        offset: float = 0.0,
        axis: str = "hidden",
        dtype: DTypeLike = jnp.float32,
    ):
        if kind not in ("layer", "rms"):
            raise ValueError(f"norm {kind!r} is not one of layer, rms")
        self.kind, self.epsilon, self.offset = kind, epsilon, offset
        self.scale = nnx.Param(jnp.full((size,), 1 - offset, dtype), axes=(axis,), kind="vector")
        shifted = bias and kind == "layer"
        self.bias = nnx.Param(jnp.zeros((size,), dtype), axes=(axis,), kind="vector") if shifted else None

    @jax.checkpoint
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.normed(x)

    def normed(self, x: jax.Array) -> jax.Array:
        """Normalise without `jax.checkpoint`, for callers that keep the input themselves."""
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        scale = _broadcast(self.scale, y)
        y = y * (scale + self.offset if self.offset else scale)
        if self.bias is not None:
            y = y + _broadcast(self.bias, y)
        return y.astype(x.dtype)


class Embedding(nnx.Module):
    """A table [entries, D]: looks up ids and, transposed, gives logits (tied weights)."""

    def __init__(
        self,
        entries: int,
        width: int,
        *,
        axes: tuple[str, str] = ("vocabulary", "embed"),
        init_std: float = 0.02,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        table = init_std * jax.random.normal(rngs.params(), (entries, width), dtype)
        self.table = nnx.Param(table, axes=axes, kind="table")

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids int [...] → [..., D]."""
        return self.table.get_value()[ids]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] → [..., entries]. Raises UsageError for hidden states of another width than the table's."""
        self.check(hidden)
        return jnp.einsum("...d,vd->...v", hidden, self.table.get_value().astype(hidden.dtype))

    def check(self, hidden: jax.Array) -> None:
        """Raises UsageError for hidden states [..., D] of another width than the table's, which it cannot score."""
        width = self.table.get_value().shape[1]
        if hidden.shape[-1] != width:
            raise UsageError(
                f"hidden states of width {hidden.shape[-1]} have no logits by a table of embedding_width {width}: untie the "
                "head, or set embedding_width to None"
            )


def split_key(key: jax.Array | None, count: int) -> tuple[jax.Array | None, ...]:
    """Independent keys for `count` places that drop out; None for each of them where there is no key."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


def dropout(x: jax.Array, rate: float | jax.Array, key: jax.Array | None, *, per_example: bool = False) -> jax.Array:
    """Zero entries with probability `rate` and scale up the rest. Without a `key`, do nothing.

    per_example: zero whole examples (stochastic depth, Huang 2016). `rate` may be traced: it differs by layer in a scan.
    """
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1) if per_example else x.shape
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = named(jax.random.bernoulli(key, keep, shape), "dropout")
    # Divide in float32: in bfloat16, 0.9 is 0.8984, and the expectation would not be x.
    scaled = (x.astype(jnp.float32) / keep).astype(x.dtype)
    return jnp.where(kept, scaled, jnp.zeros((), x.dtype))


def _broadcast(parameter: nnx.Param, y: jax.Array) -> jax.Array:
    value = parameter.get_value().astype(y.dtype)
    return value.reshape((1,) * (y.ndim - 1) + value.shape)
