"""Positions of audio frames by grouped convolutions over time (Baevski 2020, §2; Baevski 2022, §4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from unimodal.errors import UsageError
from unimodal.layers import activate, fan_in
from unimodal.sharding import whole_in_time


class GroupedConvolution(nnx.Module):
    """A grouped convolution, of which both kinds of position embedding are made: [B,T,D] → [B,T,D], in two ways."""

    def __init__(self, width: int, taps: int, groups: int):
        if width % groups:
            raise UsageError(f"width {width} is not divisible by the audio tokenizer's position_groups={groups}")
        self.groups, self.taps = groups, taps

    def along_time(self, x: jax.Array, kernel: jax.Array, bias: nnx.Param) -> jax.Array:
        # An even kernel would lengthen the sequence by one with symmetric padding; the last frame is dropped.
        x = jnp.pad(whole_in_time(x), ((0, 0), (self.taps // 2, (self.taps - 1) // 2), (0, 0)))
        y = whole_in_time(jax.lax.platform_dependent(x, kernel, cpu=self._by_spectrum, default=self._convolved))
        return y + bias.get_value().astype(x.dtype)[None, None]

    def _convolved(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=numbers, feature_group_count=self.groups
        )

    def _by_spectrum(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The same by Fourier transforms of overlapping stretches, of each of which the end is kept (overlap-save). On a CPU
        XLA's grouped convolution takes 15 times as long with its gradient."""
        batch, padded, width = x.shape
        length, size = padded - self.taps + 1, 2 << (self.taps - 1).bit_length()
        step = size - self.taps + 1
        count = -(-length // step)
        # A stretch is a block of `step` samples and the first of the next block, of which it needs fewer than `step`.
        samples = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, (count + 1) * step - padded), (0, 0)))
        blocks = samples.reshape(batch, count + 1, step, width)
        stretches = jnp.concatenate([blocks[:, :-1], blocks[:, 1:, : self.taps - 1]], axis=2)
        spectrum = jnp.fft.rfft(stretches, axis=2).reshape(batch, count, -1, self.groups, width // self.groups)
        response = jnp.fft.rfft(kernel[::-1].astype(jnp.float32), n=size, axis=0)
        response = response.reshape(-1, width // self.groups, self.groups, width // self.groups)
        product = jnp.einsum("bnfgc,fcgo->bnfgo", spectrum, response).reshape(batch, count, -1, width)
        y = jnp.fft.irfft(product, n=size, axis=2)[:, :, self.taps - 1 :]
        return y.reshape(batch, count * step, width)[:, :length].astype(x.dtype)


class PositionConvolution(GroupedConvolution):
    """Grouped convolution over time whose GELU is added to the tokens: relative position without a table (§2).

    The kernel carries weight normalisation over its channels (Salimans 2016): kernel = magnitude · direction / ‖direction‖.
    """

    def __init__(self, width: int, taps: int, groups: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        super().__init__(width, taps, groups)
        shape = (taps, width // groups, width)
        direction = fan_in(2.0, shape[:2])(rngs.params(), shape, dtype)
        self.direction = nnx.Param(direction, axes=("taps", "hidden", "embed"), kind="matrix")
        self.magnitude = nnx.Param(_norm_per_tap(direction), axes=("taps",), kind="vector")
        self.bias = nnx.Param(jnp.zeros((width,), dtype), axes=("embed",), kind="vector")

    def __call__(self, x: jax.Array) -> jax.Array:
        direction = self.direction.get_value()
        scale = self.magnitude.get_value() / _norm_per_tap(direction)
        kernel = (direction * scale[:, None, None]).astype(x.dtype)
        return activate("gelu", self.along_time(x, kernel, self.bias))


class NormedPositionConvolution(GroupedConvolution):
    """One of several in a row: a plain grouped convolution, LayerNorm without scale or bias, GELU (Baevski 2022, §4)."""

    def __init__(self, width: int, taps: int, groups: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        super().__init__(width, taps, groups)
        shape = (taps, width // groups, width)
        kernel = fan_in(2**0.5, shape[:2])(rngs.params(), shape, dtype)
        self.kernel = nnx.Param(kernel, axes=("taps", "hidden", "embed"), kind="matrix")
        self.bias = nnx.Param(jnp.zeros((width,), dtype), axes=("embed",), kind="vector")

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.along_time(x, self.kernel.get_value().astype(x.dtype), self.bias).astype(jnp.float32)
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + 1e-5)
        return activate("gelu", y.astype(x.dtype))


def _norm_per_tap(kernel: jax.Array) -> jax.Array:
    """‖kernel[tap]‖ over both channel dimensions: torch's weight_norm(dim=2), as wav2vec 2.0 has it."""
    return jnp.sqrt(jnp.square(kernel.astype(jnp.float32)).sum(axis=(1, 2))).astype(kernel.dtype)
