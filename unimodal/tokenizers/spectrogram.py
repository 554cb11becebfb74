"""Spectrograms: log-mel frames → convolutions over time → tokens with learned positions (Radford 2022, §2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.errors import DTYPES, UsageError, check_fields
from unimodal.layers import ACTIVATIONS, Embedding, activate, dropout, fan_in
from unimodal.sharding import whole_in_time
from unimodal.tokens import Tokens, tokens


@dataclass(frozen=True)
class Config:
    """Options of the tokenizer that turns log-mel frames into tokens."""

    bins: int = 80  # mel bins of a frame
    # length of each convolution, odd: the first in frames, the others in outputs of the one before
    kernels: tuple[int, ...] = (3, 3)
    strides: tuple[int, ...] = (1, 2)  # step of each convolution, in the same units
    max_length: int = 1500  # rows of the position table, in tokens
    activation: str = "gelu"  # after each convolution: a key of layers.ACTIVATIONS
    dropout: float = 0.0  # rate, on the tokens
    init_std: float = 0.02  # standard deviation of the position table at the start
    param_dtype: str = "float32"  # dtype in which parameters are stored

    def __post_init__(self) -> None:
        if len(self.kernels) != len(self.strides):
            raise UsageError(f"spectrogram tokenizer has {len(self.kernels)} kernels but {len(self.strides)} strides")
        least = dict(bins=1, kernels=1, strides=1, max_length=1)
        check_fields("spectrogram", self, least=least, among=dict(param_dtype=DTYPES))
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise UsageError(f"spectrogram kernels {self.kernels} must be odd, to be centred on their frame")
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"spectrogram activation={self.activation!r} is not one of {', '.join(ACTIVATIONS)}")


class Convolution(nnx.Module):
    """One 1-D convolution [B,T,C] → [B,T/stride,D], padded with zeros so that no frame is lost."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.stride, self.pad = stride, kernel // 2
        shape = (kernel, inputs, width)
        start = fan_in(2**0.5, shape[:2])(rngs.params(), shape, dtype)
        self.kernel = nnx.Param(start, axes=("taps", "hidden", "embed"), kind="matrix", contracted=2)
        self.bias = nnx.Param(jnp.zeros((width,), dtype), axes=("embed",), kind="vector")

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, numbers = self.kernel.get_value(), ("NWC", "WIO", "NWC")
        pad = [(self.pad, self.pad)]
        x = jax.lax.conv_general_dilated(x.astype(kernel.dtype), kernel, (self.stride,), pad, dimension_numbers=numbers)
        return whole_in_time(x) + self.bias.get_value()[None, None]


class Tokenizer(nnx.Module):
    """log-mel frames [B,frames,bins] → Tokens [B,T,D], bidirectional."""

    modality = "audio"

    def __init__(self, config: Config, width: int, *, rngs: nnx.Rngs):
        self.config = c = config
        dtype = jnp.dtype(c.param_dtype)
        self.convolutions = nnx.List(
            Convolution(c.bins if i == 0 else width, width, kernel, stride, dtype, rngs=rngs)
            for i, (kernel, stride) in enumerate(zip(c.kernels, c.strides, strict=True))
        )
        make: dict[str, Any] = dict(axes=("place", "embed"), init_std=c.init_std, dtype=dtype, rngs=rngs)
        self.position_table = Embedding(c.max_length, width, **make)

    def __call__(self, frames: jax.Array, *, key: jax.Array | None = None) -> Tokens:
        """Raises UsageError for another number of bins, or more tokens than the position table has places."""
        c = self.config
        if frames.ndim != 3 or frames.shape[2] != c.bins:
            raise UsageError(f"spectrogram of shape {list(frames.shape)} where [B,frames,{c.bins}] was configured")
        x = frames
        for convolution in self.convolutions:
            x = activate(c.activation, convolution(x))
        if x.shape[1] > c.max_length:
            raise UsageError(
                f"spectrogram makes {x.shape[1]} tokens, more than the position table's max_length={c.max_length}"
            )
        x = x + self.position_table.table.get_value()[None, : x.shape[1]]
        return tokens(dropout(x, c.dropout, key), modality=self.modality)
