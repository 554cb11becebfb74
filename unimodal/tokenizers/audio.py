"""Audio: waveform → convolutional frames, as in wav2vec 2.0 (Baevski 2020, §2 and §4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.errors import DTYPES, UsageError, check_fields
from unimodal.layers import ACTIVATIONS, Linear, Norm, activate, dropout, fan_in
from unimodal.sharding import whole_in_time
from unimodal.tokens import Tokens, tokens


@dataclass(frozen=True)
class Config:
    """Options of the tokenizer that turns a waveform into frames."""

    channels: int = 512  # of each convolution
    # length of each convolution: the first in samples, the others in frames of the one before
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)  # step of each convolution, in the same units
    # "group": a GroupNorm after the first convolution (base model); "layer": a LayerNorm after each (large model)
    conv_norm: str = "group"
    conv_bias: bool = False  # the convolutions have a bias
    position_kernel: int = 128  # length of the convolutional position embedding, in frames
    position_groups: int = 16  # groups of its channels
    # None: one position convolution, with weight normalisation. A number: so many plain ones in a row, each followed by
    # a norm without parameters (Baevski 2022).
    position_layers: int | None = None
    norm: bool = True  # normalise the tokens before the backbone (LayerNorm)
    norm_epsilon: float = 1e-5  # added to the variance
    # Factor on the gradient that reaches the convolutions: 0.1 in the base model (§4.2). 0 skips their backward pass.
    feature_gradient: float = 1.0
    feature_dropout: float = 0.0  # rate, on the projected frames
    dropout: float = 0.0  # rate, on the tokens
    dtype: str | None = None  # dtype of the computation; None: param_dtype
    param_dtype: str = "float32"  # dtype in which parameters are stored

    def __post_init__(self) -> None:
        if len(self.kernels) != len(self.strides):
            raise UsageError(f"audio tokenizer has {len(self.kernels)} kernels but {len(self.strides)} strides")
        least = dict(channels=1, kernels=1, strides=1, position_kernel=1, position_groups=1, position_layers=1)
        among = dict(conv_norm=("group", "layer"), dtype=DTYPES, param_dtype=DTYPES)
        check_fields("audio", self, least=least, among=among)
        if not self.kernels:
            raise UsageError("audio tokenizer.kernels names no convolution; give one or more")
        if not 0 <= self.feature_gradient < math.inf:
            raise UsageError(f"audio feature_gradient must be finite and at least 0, but is {self.feature_gradient}")

    @property
    def hop(self) -> int:
        """Samples from frame to frame."""
        return math.prod(self.strides)

    def frames(self, samples: jax.Array | int) -> jax.Array | int:
        """Count the frames that the convolutions make of so many samples; 0 if too short for one."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return jnp.maximum(samples, 0) if isinstance(samples, jax.Array) else max(samples, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Recordings:
    """Several recordings in each row of samples, one after another. Each has the frames that it has alone."""

    starts: jax.Array  # [B,N] int32, in samples: multiples of `Config.hop`, ascending
    lengths: jax.Array  # [B,N] int32, in samples; 0 for none

    def owner(self, config: Config, layers: int, places: int) -> jax.Array:
        """[B,places,N] float32: which recording each place after so many convolutions belongs to, 1 or 0. Places that see two
        recordings belong to none."""
        first, count = self.starts, self.lengths
        for kernel, stride in zip(config.kernels[:layers], config.strides[:layers], strict=True):
            first, count = first // stride, jnp.maximum((count - kernel) // stride + 1, 0)
        place = jnp.arange(places, dtype=jnp.int32)[None, :, None]
        return ((place >= first[:, None]) & (place < (first + count)[:, None])).astype(jnp.float32)


class Convolution(nnx.Module):
    """One 1-D convolution [B,T,C] → [B,T',C'], its norm and GELU."""

    def __init__(self, inputs: int, kernel: int, stride: int, norm: str | None, config: Config, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        self.stride, self.norm_kind = stride, norm
        shape = (kernel, inputs, c.channels)
        axes = ("taps", "hidden", "channels")
        # √2: GELU halves the variance, and seven layers without it would lose the signal (He 2015).
        self.kernel = nnx.Param(
            fan_in(2**0.5, shape[:2])(rngs.params(), shape, dtype), axes=axes, kind="matrix", contracted=2
        )
        bias = jnp.zeros((c.channels,), dtype) if c.conv_bias else None
        self.bias = None if bias is None else nnx.Param(bias, axes=("channels",), kind="vector")
        self.norm = Norm(c.channels, epsilon=1e-5, axis="channels", dtype=dtype) if norm else None

    def __call__(self, x: jax.Array, owner: jax.Array | None = None) -> jax.Array:
        """owner: [B,T',N], which of N recordings of a row each place belongs to, for a norm over each by itself."""
        kernel = self.kernel.get_value().astype(x.dtype)
        x = jax.lax.conv_general_dilated(x, kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return self._activated(whole_in_time(x), owner)

    @jax.checkpoint  # as in `layers`: norm and GELU together keep what the convolution gave
    def _activated(self, x: jax.Array, owner: jax.Array | None) -> jax.Array:
        if self.bias is not None:
            x = x + self.bias.get_value().astype(x.dtype)[None, None]
        if self.norm is not None:
            # GroupNorm with one group per channel normalises each channel over time: LayerNorm of the transpose.
            x = _norm_over_time(self.norm, x, owner) if self.norm_kind == "group" else self.norm.normed(x)
        return ACTIVATIONS["gelu"](x.astype(jnp.float32)).astype(x.dtype)


class GroupedConvolution(nnx.Module):
    """A grouped convolution, of which both kinds of position embedding are made: [B,T,D] → [B,T,D], in two ways."""

    def __init__(self, width: int, config: Config):
        if width % config.position_groups:
            raise UsageError(
                f"width {width} is not divisible by the audio tokenizer's position_groups={config.position_groups}"
            )
        self.groups, self.taps = config.position_groups, config.position_kernel

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

    def __init__(self, width: int, config: Config, *, rngs: nnx.Rngs):
        super().__init__(width, config)
        dtype, shape = jnp.dtype(config.param_dtype), (self.taps, width // self.groups, width)
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

    def __init__(self, width: int, config: Config, *, rngs: nnx.Rngs):
        super().__init__(width, config)
        dtype, shape = jnp.dtype(config.param_dtype), (self.taps, width // self.groups, width)
        kernel = fan_in(2**0.5, shape[:2])(rngs.params(), shape, dtype)
        self.kernel = nnx.Param(kernel, axes=("taps", "hidden", "embed"), kind="matrix")
        self.bias = nnx.Param(jnp.zeros((width,), dtype), axes=("embed",), kind="vector")

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.along_time(x, self.kernel.get_value().astype(x.dtype), self.bias).astype(jnp.float32)
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + 1e-5)
        return activate("gelu", y.astype(x.dtype))


class Tokenizer(nnx.Module):
    """waveform [B,samples] → Tokens [B,T,D] through `features` and `embed`, which wav2vec 2.0 calls apart."""

    modality = "audio"

    def __init__(self, config: Config, width: int, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        self.config = config
        self.convolutions = nnx.List(
            Convolution(
                1 if i == 0 else c.channels,
                kernel,
                stride,
                c.conv_norm if i == 0 or c.conv_norm == "layer" else None,
                c,
                rngs=rngs,
            )
            for i, (kernel, stride) in enumerate(zip(c.kernels, c.strides, strict=True))
        )
        self.feature_norm = Norm(c.channels, epsilon=c.norm_epsilon, axis="channels", dtype=dtype)
        self.projection = Linear((c.channels,), (width,), ("hidden", "embed"), dtype=dtype, rngs=rngs)
        start = jax.random.uniform(rngs.params(), (width,), dtype)
        self.mask_embedding = nnx.Param(start, axes=("embed",), kind="vector")
        self.position: Any = (
            PositionConvolution(width, c, rngs=rngs)
            if c.position_layers is None
            else nnx.List(NormedPositionConvolution(width, c, rngs=rngs) for _ in range(c.position_layers))
        )
        self.norm = Norm(width, epsilon=c.norm_epsilon, dtype=dtype) if c.norm else None

    def convolved(self, waveform: jax.Array, recordings: Recordings | None = None) -> jax.Array:
        """Waveform [B,samples] float → frames [B,T,C] as the last convolution leaves them. recordings: several in each row."""
        if not self.config.frames(waveform.shape[1]):
            raise UsageError(f"{waveform.shape[1]} audio samples are too short for one frame")
        x = waveform[:, :, None].astype(self.config.dtype or self.config.param_dtype)
        first = None  # only the first convolution has a norm over time
        if recordings is not None and self.config.conv_norm == "group":
            places = (waveform.shape[1] - self.config.kernels[0]) // self.config.strides[0] + 1
            first = recordings.owner(self.config, 1, places)
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x, first if i == 0 else None)
        factor = self.config.feature_gradient
        return x if factor == 1.0 else jax.lax.stop_gradient(x) if factor == 0.0 else _scaled_gradient(factor, x)

    def features(self, waveform: jax.Array, recordings: Recordings | None = None) -> jax.Array:
        """Waveform [B,samples] float → normalised convolutional frames [B,T,C]."""
        return self.feature_norm(self.convolved(waveform, recordings))

    def embed(
        self,
        features: jax.Array,
        *,
        lengths: jax.Array | None = None,
        recordings: Recordings | None = None,
        masked: jax.Array | None = None,
        silenced: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Tokens:
        """Frames [B,T,C] → Tokens. `lengths` [B]: samples that are real, or `recordings`: several in each row, each of which
        gets the tokens it has alone; `masked` bool [B,T]: frames whose projection is replaced by the learned mask embedding;
        `silenced` bool [B,D], or [B,N,D] of N recordings: channels of the projection set to zero."""
        x = self.projection(features)
        if key is not None and self.config.feature_dropout:
            x = dropout(x, self.config.feature_dropout, jax.random.fold_in(key, 1))
        if masked is not None:
            x = jnp.where(masked[:, :, None], self.mask_embedding.get_value().astype(x.dtype)[None, None], x)
        owner = None if recordings is None else recordings.owner(self.config, len(self.config.kernels), x.shape[1])
        if silenced is not None:
            silent = silenced[:, None, :] if owner is None else _at(owner, silenced.astype(jnp.float32)) > 0.5
            x = jnp.where(silent, jnp.zeros((), x.dtype), x)
        frames = None
        if owner is not None:
            return self._several(x, owner, key)
        if lengths is not None:
            frames = jnp.asarray(self.config.frames(lengths))
            real = jnp.arange(x.shape[1], dtype=jnp.int32)[None] < frames[:, None]
            x = x * real[:, :, None].astype(x.dtype)  # padding must not reach real frames through the convolution
        x = x + self._positioned(x)
        if self.norm is not None:
            x = self.norm(x)
        return tokens(dropout(x, self.config.dropout, key), lengths=frames, modality=self.modality)

    def _several(self, x: jax.Array, owner: jax.Array, key: jax.Array | None) -> Tokens:
        """The tokens of several recordings in each row, of which none reaches another."""
        segment = (
            (owner * jnp.arange(1, owner.shape[2] + 1, dtype=owner.dtype)[None, None]).sum(axis=2).astype(jnp.int32)
        )
        real = (segment > 0)[:, :, None].astype(x.dtype)
        before = jnp.cumsum(owner, axis=1) * owner
        position = jnp.maximum(before.sum(axis=2).astype(jnp.int32) - 1, 0)
        # Room for half a kernel between two recordings holds them as far apart as the ends of a row are from nothing.
        gap = self.config.position_kernel // 2
        place = jnp.arange(x.shape[1], dtype=jnp.int32)[None] + gap * jnp.maximum(segment - 1, 0)
        length = x.shape[1] + gap * (owner.shape[2] - 1)

        def apart(x: jax.Array) -> jax.Array:
            spread = jax.vmap(lambda row, at: jnp.zeros((length, row.shape[1]), row.dtype).at[at].add(row))
            return spread(x * real, place)

        def together(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, place[:, :, None], axis=1) * real

        x = x * real
        x = x + self._positioned(x, lambda convolution, x: together(convolution(apart(x))))
        if self.norm is not None:
            x = self.norm(x)
        return tokens(dropout(x, self.config.dropout, key), segment=segment, position=position, modality=self.modality)

    def _positioned(self, x: jax.Array, run: Callable[[Any, jax.Array], jax.Array] = lambda c, x: c(x)) -> jax.Array:
        if self.config.position_layers is None:
            return run(self.position, x)
        for convolution in self.position:
            x = run(convolution, x)
        return x

    def __call__(
        self, waveform: jax.Array, *, lengths: jax.Array | None = None, key: jax.Array | None = None
    ) -> Tokens:
        """waveform [B,samples], lengths [B] in samples (None: all real)."""
        return self.embed(self.features(waveform), lengths=lengths, key=key)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scaled_gradient(factor: float, x: jax.Array) -> jax.Array:
    """x, bit for bit; what flows back is multiplied by `factor`."""
    return x


_scaled_gradient.defvjp(lambda factor, x: (x, None), lambda factor, _, g: (g * jnp.asarray(factor, g.dtype),))


def _at(owner: jax.Array, values: jax.Array) -> jax.Array:
    """[B,N,C] of each recording → [B,T,C], at its places [B,T,N]."""
    return jnp.einsum("btn,bnc->btc", owner, values, precision="highest")


def _norm_over_time(norm: Norm, x: jax.Array, owner: jax.Array | None = None) -> jax.Array:
    y = x.astype(jnp.float32)
    if owner is None:
        y = y - y.mean(axis=1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=1, keepdims=True) + norm.epsilon)
    else:
        share = owner / jnp.maximum(owner.sum(axis=1, keepdims=True), 1)
        mean = lambda y: jnp.einsum("btn,btc->bnc", share, y, precision="highest")  # noqa: E731
        y = (y - _at(owner, mean(y))) * owner.sum(axis=2, keepdims=True)  # what is nobody's is 0
        y = y * _at(owner, jax.lax.rsqrt(mean(jnp.square(y)) + norm.epsilon))
    assert norm.bias is not None
    y = (
        y * norm.scale.get_value().astype(jnp.float32)[None, None]
        + norm.bias.get_value().astype(jnp.float32)[None, None]
    )
    return y.astype(x.dtype)


def _norm_per_tap(kernel: jax.Array) -> jax.Array:
    """‖kernel[tap]‖ over both channel dimensions: torch's weight_norm(dim=2), as wav2vec 2.0 has it."""
    return jnp.sqrt(jnp.square(kernel.astype(jnp.float32)).sum(axis=(1, 2))).astype(kernel.dtype)
