"""Images: pixels → patches, one matrix product each (Dosovitskiy 2021, eq. 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.errors import UsageError
from unimodal.layers import Embedding, Linear, Norm, dropout
from unimodal.tokens import Tokens, tokens


@dataclass(frozen=True)
class Config:
    """image_size (height, width) and patch in pixels; registers: learned tokens put before the patches (the first is
    the class token); bias of the patch projection; norm: LayerNorm on the tokens before the backbone."""

    image_size: tuple[int, int] = (224, 224)
    patch: int = 16
    channels: int = 3
    registers: int = 1
    bias: bool = True
    norm: bool = False
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    init_std: float = 0.02
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        height, width = self.image_size
        if height % self.patch or width % self.patch:
            raise UsageError(f"image_size {height}x{width} is not divisible by patch={self.patch}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def tokens(self) -> int:
        """How many tokens one image becomes."""
        return self.registers + math.prod(self.grid)


def patchify(pixels: jax.Array, patch: int) -> jax.Array:
    """[B,H,W,C] → [B,T,patch·patch·C], rows first; inside a patch: row, column, channel."""
    batch, height, width, channels = pixels.shape
    rows, columns = height // patch, width // patch
    x = pixels.reshape(batch, rows, patch, columns, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch * patch * channels)


class Tokenizer(nnx.Module):
    """pixels [B,H,W,C] float → Tokens [B, registers + patches, D], bidirectional."""

    def __init__(self, config: Config, width: int, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        self.config = config
        pixels = c.patch * c.patch * c.channels
        self.projection = Linear((pixels,), (width,), ("patch", "embed"), bias=c.bias, dtype=dtype, rngs=rngs)
        make = dict(axes=("place", "embed"), init_std=c.init_std, dtype=dtype, rngs=rngs)
        self.registers = Embedding(c.registers, width, **make) if c.registers else None
        self.position_table = Embedding(c.tokens, width, **make)
        self.norm = Norm(width, epsilon=c.norm_epsilon, dtype=dtype) if c.norm else None

    def __call__(self, pixels: jax.Array, *, key: jax.Array | None = None) -> Tokens:
        """Raises UsageError if the pixels are not of the configured size."""
        c = self.config
        if pixels.shape[1:] != (*c.image_size, c.channels):
            raise UsageError(f"image of shape {pixels.shape[1:]} where {(*c.image_size, c.channels)} was configured")
        x = self.projection(patchify(pixels, c.patch).astype(self.projection.kernel.get_value().dtype))
        if self.registers is not None:
            registers = jnp.broadcast_to(self.registers.table.get_value()[None], (x.shape[0], c.registers, x.shape[2]))
            x = jnp.concatenate([registers, x], axis=1)
        x = x + self.position_table.table.get_value()[None]
        if self.norm is not None:
            x = self.norm(x)
        return tokens(dropout(x, c.dropout, key))
