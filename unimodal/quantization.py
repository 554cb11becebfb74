"""Products with weights in eight bits, forward and backward.

A product sums over some dimensions of its two operands. Each operand is divided by scales of its own, one for every
slice along what is summed over, so that the slice's largest absolute value becomes the largest that eight bits hold:
one scale a token, and one for each of the weights' outputs. Scales of neighbouring tokens, rows and devices never meet:
a causal model stays causal, and neither the batch, `accumulate` nor a mesh changes what is rounded.

    y  = x·W     both operands in eight bits, summed over the inputs
    dx = g·Wᵀ    both operands in eight bits, summed over the outputs
    dW = xᵀ·g    in x's own dtype

The gradient of the weights sums over all tokens of the batch, where the noise of eight bits hurts most and the sums of
int8 could leave 32 bits (Wortsman 2023, "SwitchBack", which has one scale for all of W). Rounding passes gradients on
as if it were not there. The backward pass rounds again, from what a plain product keeps as well. With float8,
activations and weights are e4m3 and gradients e5m2, whose range is wider (Micikevicius 2022, §3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclass(frozen=True)
class Format:
    """Eight bits of one kind."""

    values: DTypeLike  # of activations and weights
    gradients: DTypeLike
    sums: DTypeLike  # what products are added up in


FORMATS = {
    "int8": Format(jnp.int8, jnp.int8, jnp.int32),
    "float8": Format(jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float32),
}
QUANTIZATION = ("none", *FORMATS)

_LEAST = 1e-30  # a slice that is nothing but zeros, as that of a padded token, has a scale too


def quantize(x: jax.Array, dtype: DTypeLike, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Eight bits and float32 scales with values·scales ≈ x; one scale for all that lies along `axes`, which stay as ones.
    Where x has a NaN or an infinity, its scale is not finite, so what is computed of it is NaN."""
    whole = jnp.issubdtype(dtype, jnp.integer)
    largest = float(jnp.iinfo(dtype).max if whole else jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=tuple(axes), keepdims=True), _LEAST) / largest
    # Clipped, as the quotient may be an ulp beyond the largest; a conversion of more than that is NaN in float8.
    values = jnp.clip(x / scale, -largest, largest)
    return (jnp.round(values) if whole else values).astype(dtype), scale


def product(x: jax.Array, kernel: jax.Array, contracted: int, kind: str) -> jax.Array:
    """x [..., *inputs] · kernel [*inputs, *outputs] → [..., *outputs] in x's dtype, by a format of FORMATS. contracted: how
    many dimensions the inputs are."""
    made: Any = _product(contracted, kind, x, kernel)
    return made


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(contracted: int, kind: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _forward(contracted, kind, x, kernel)[0]


def _forward(contracted: int, kind: str, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    values = FORMATS[kind].values
    return _scaled(x, kernel, contracted, range(contracted), (values, values), kind), (x, kernel)


def _backward(contracted: int, kind: str, kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    form, outputs = FORMATS[kind], range(contracted, kernel.ndim)
    dx = _scaled(g, kernel, len(outputs), outputs, (form.gradients, form.values), kind)
    tokens = tuple(range(x.ndim - contracted))
    return dx, jax.lax.dot_general(x, g, ((tokens, tokens), ((), ()))).astype(kernel.dtype)


_product.defvjp(_forward, _backward)


def _scaled(
    x: jax.Array, kernel: jax.Array, last: int, along: Sequence[int], dtypes: tuple[DTypeLike, DTypeLike], kind: str
) -> jax.Array:
    """Contract the `last` dimensions of x with the dimensions `along` of the kernel, both in eight bits."""
    ends = tuple(range(x.ndim - last, x.ndim))
    left, x_scale = quantize(x, dtypes[0], ends)
    right, kernel_scale = quantize(kernel, dtypes[1], along)
    sums = jax.lax.dot_general(left, right, ((ends, tuple(along)), ((), ())), preferred_element_type=FORMATS[kind].sums)
    apart = tuple(range(x.ndim - last, sums.ndim))  # dimensions of the sums that are the kernel's
    by_token = jnp.expand_dims(jnp.squeeze(x_scale, ends), apart)
    by_output = jnp.expand_dims(jnp.squeeze(kernel_scale, tuple(along)), tuple(range(x.ndim - last)))
    return (sums.astype(jnp.float32) * by_token * by_output).astype(x.dtype)
