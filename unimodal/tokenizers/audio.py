"""Audio: waveform → convolutional frames, as in wav2vec 2.0 (Baevski 2020, §2 and §4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal.errors import DTYPES, UsageError, check_fields
from unimodal.layers import ACTIVATIONS, Linear, Norm, dropout, fan_in
from unimodal.sharding import constrain, whole_in_time
from unimodal.tokenizers.position_convolutions import NormedPositionConvolution, PositionConvolution
from unimodal.tokens import Tokens, tokens

PIECES = 8  # of each row, in the convolutions


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

    @property
    def reach(self) -> int:
        """Samples that one frame sees."""
        return 1 + sum((kernel - 1) * math.prod(self.strides[:i]) for i, kernel in enumerate(self.kernels))

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
        """[B,T,inputs] → [B,T',C]. owner: [B,T',N], which of N recordings of a row each place belongs to, for a norm over each
        by itself."""
        # Whole before it is used. Otherwise the shards of `channels` go round a ring, and each turn passes over all of x.
        kernel = constrain(self.kernel.get_value().astype(x.dtype), "taps", "hidden", "hidden")
        x = jax.lax.conv_general_dilated(x, kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return self._activated(whole_in_time(x), owner)

    @jax.checkpoint  # as in `layers`: norm and GELU together keep what the convolution gave
    def _activated(self, x: jax.Array, owner: jax.Array | None) -> jax.Array:
        if self.bias is not None:
            x = x + self.bias.get_value().astype(x.dtype)[None, None]
        if self.norm is not None:
            x = self.norm.normed(x) if owner is None else _norm_over_time(self.norm, x, owner)
        return ACTIVATIONS["gelu"](x.astype(jnp.float32)).astype(x.dtype)

    @jax.checkpoint
    def normed_at_once(self, pieces: jax.Array, samples: jax.Array) -> jax.Array:
        """Convolution, norm over time and GELU as one product: [B,P,N'], which are the samples [B,N] in pieces → [B·P,T',C].

        GroupNorm with one group per channel normalises each channel over time: LayerNorm of the transpose. A channel's mean
        and variance follow from those of the few samples that each place sees, so no pass over [B,T,C] measures them. They go
        into a kernel for each example. A bias before the norm changes nothing.
        """
        assert self.norm is not None and self.norm.bias is not None
        taps, dtype, high = self.kernel.shape[0], pieces.dtype, jax.lax.Precision.HIGHEST
        # Neighbouring samples are nearly alike, and a kernel's output may be a small difference between them. In a cosine
        # basis its variance is a sum over coefficients that are nearly independent, and stays exact.
        basis = jnp.asarray(_cosines(taps))

        def seen(x: jax.Array) -> jax.Array:
            found = _windows(x.astype(jnp.float32), taps, self.stride, (x.shape[-1] - taps) // self.stride + 1)
            return jax.lax.dot_general(found, basis, (((found.ndim - 1,), (0,)), ((), ())), precision=high)

        everywhere = seen(samples)
        mean = everywhere.mean(axis=1, keepdims=True)
        centred = everywhere - mean
        covariance = jnp.einsum("bti,btj->bij", centred, centred, precision=high) / centred.shape[1]
        kernel = jnp.einsum("kj,kc->jc", basis, self.kernel.get_value()[:, 0].astype(jnp.float32), precision=high)
        kernel = constrain(kernel, "taps", "hidden")
        variance = (jnp.einsum("bij,jc->bic", covariance, kernel, precision=high) * kernel[None]).sum(axis=1)
        scale = jax.lax.rsqrt(variance + self.norm.epsilon) * self.norm.scale.get_value().astype(jnp.float32)[None]
        kernel = (kernel[None] * scale[:, None]).astype(dtype)
        here = centred[:, None] if pieces.shape[1] == 1 else seen(pieces) - mean[:, None]
        y = jnp.einsum("bptk,bkc->bptc", here.astype(dtype), kernel)
        y = y + self.norm.bias.get_value().astype(dtype)[None, None, None]
        y = ACTIVATIONS["gelu"](y.astype(jnp.float32)).astype(dtype)
        return whole_in_time(y.reshape(-1, *y.shape[2:]))


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
            PositionConvolution(width, c.position_kernel, c.position_groups, dtype, rngs=rngs)
            if c.position_layers is None
            else nnx.List(
                NormedPositionConvolution(width, c.position_kernel, c.position_groups, dtype, rngs=rngs)
                for _ in range(c.position_layers)
            )
        )
        self.norm = Norm(width, epsilon=c.norm_epsilon, dtype=dtype) if c.norm else None

    def convolved(self, waveform: jax.Array, recordings: Recordings | None = None) -> jax.Array:
        """Waveform [B,samples] float → frames [B,T,C] as the last convolution leaves them. recordings: several in each row."""
        if not self.config.frames(waveform.shape[1]):
            raise UsageError(f"{waveform.shape[1]} audio samples are too short for one frame")
        c, x = self.config, waveform.astype(self.config.dtype or self.config.param_dtype)
        if c.conv_norm == "group" and recordings is not None:
            places = (x.shape[1] - c.kernels[0]) // c.strides[0] + 1
            x = self.convolutions[0](x[:, :, None], recordings.owner(c, 1, places))
            for convolution in self.convolutions[1:]:
                x = convolution(x)
        else:
            x = self._in_pieces(x)
        factor = self.config.feature_gradient
        return x if factor == 1.0 else jax.lax.stop_gradient(x) if factor == 0.0 else _scaled_gradient(factor, x)

    def _in_pieces(self, x: jax.Array) -> jax.Array:
        """Samples [B,N] → frames [B,T,C], convolved in pieces of each row that overlap by what a frame sees beyond its hop.

        Of few long rows a compiler for TPUs makes such pieces at every convolution, and copies all of its input to do so.
        """
        c, count = self.config, int(self.config.frames(x.shape[1]))
        pieces = PIECES if count >= 16 * PIECES else 1
        each = -(-count // pieces)
        y = _windows(x, (each - 1) * c.hop + c.reach, each * c.hop, pieces) if pieces > 1 else x[:, None]
        first, *rest = self.convolutions
        y = first.normed_at_once(y, x) if c.conv_norm == "group" else first(y.reshape(-1, y.shape[2], 1))
        for convolution in rest:
            y = convolution(y)
        return y.reshape(x.shape[0], -1, y.shape[2])[:, :count]

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


def _norm_over_time(norm: Norm, x: jax.Array, owner: jax.Array) -> jax.Array:
    """Normalise each channel over the places [B,T,N] of each recording by itself: [B,T,C] → [B,T,C], 0 where nobody owns."""
    share, y = owner / jnp.maximum(owner.sum(axis=1, keepdims=True), 1), x.astype(jnp.float32)
    mean = lambda y: jnp.einsum("btn,btc->bnc", share, y, precision="highest")  # noqa: E731
    y = (y - _at(owner, mean(y))) * owner.sum(axis=2, keepdims=True)
    y = y * _at(owner, jax.lax.rsqrt(mean(jnp.square(y)) + norm.epsilon))
    assert norm.bias is not None
    y = (
        y * norm.scale.get_value().astype(jnp.float32)[None, None]
        + norm.bias.get_value().astype(jnp.float32)[None, None]
    )
    return y.astype(x.dtype)


def _windows(x: jax.Array, length: int, step: int, count: int) -> jax.Array:
    """The first `count` windows of so many samples, one every `step`, with zeros beyond the end: [...,N] → [...,count,length]."""
    blocks = -(-length // step)
    none = [(0, 0, 0)] * (x.ndim - 1)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [*none, (0, (count + blocks - 1) * step - x.shape[-1], 0)])
    x = x.reshape(*x.shape[:-1], -1, step)
    return jnp.concatenate([x[..., i : i + count, :] for i in range(blocks)], axis=-1)[..., :length]


def _cosines(size: int) -> np.ndarray:
    """The orthonormal cosine basis (DCT-II) of `size` samples, float32 [samples,coefficients]."""
    angle = np.pi / size * (np.arange(size)[:, None] + 0.5) * np.arange(size)[None]
    return (np.cos(angle) * np.where(np.arange(size) == 0, (1 / size) ** 0.5, (2 / size) ** 0.5)).astype(np.float32)
