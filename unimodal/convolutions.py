"""Convolutions over pictures [B,H,W,C]: what a discrete VAE's encoder and decoder are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.layers import activate, fan_in


class Conv(nnx.Module):
    """A convolution over a picture that keeps its size: [B,H,W,inputs] → [B,H,W,outputs]."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, rngs: nnx.Rngs):
        shape, axes = (kernel, kernel, inputs, outputs), ("taps", "taps", "hidden", "channels")
        made = fan_in(1.0, shape[:3])(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param(made, axes=axes, kind="matrix", contracted=3)
        self.bias = nnx.Param(jnp.zeros((outputs,)), axes=("channels",), kind="vector")

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, numbers = self.kernel.get_value().astype(x.dtype), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return y + self.bias.get_value().astype(y.dtype)[None, None, None]


class ResidualBlock(nnx.Module):
    """x + gain · four convolutions of relu(x), the middle ones a quarter as wide (Ramesh 2021, appendix A.1).

    last: the size of the last convolution's kernel; an encoder's is 1 and a decoder's 3, whose first is 1. gain: 1 over the
    square of the number of blocks, so that deep stacks begin near the identity.
    """

    def __init__(self, inputs: int, outputs: int, gain: float, *, decoder: bool = False, rngs: nnx.Rngs):
        hidden, self.gain = outputs // 4, gain
        kernels = (1, 3, 3, 3) if decoder else (3, 3, 3, 1)
        widths = (inputs, hidden, hidden, hidden, outputs)
        self.skip = Conv(inputs, outputs, 1, rngs=rngs) if inputs != outputs else None
        self.convolutions = nnx.List(
            [Conv(a, b, k, rngs=rngs) for a, b, k in zip(widths, widths[1:], kernels, strict=False)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for convolution in self.convolutions:
            y = convolution(activate("relu", y))
        return (x if self.skip is None else self.skip(x)) + jnp.asarray(self.gain, x.dtype) * y


def pooled(x: jax.Array) -> jax.Array:
    """The largest of each 2×2 places: [B,H,W,C] → [B,H/2,W/2,C]."""
    # Not by reshaping and `max`: its gradient divides by how many places equal the largest, which the compiler may compute
    # anew, rounded otherwise, and then there is none.
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def doubled(x: jax.Array) -> jax.Array:
    """Each place four times: [B,H,W,C] → [B,2H,2W,C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
