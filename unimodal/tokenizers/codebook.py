"""Images as codes: a discrete VAE (Ramesh 2021, appendix A), whose codes are tokens of a vocabulary.

`codes` gives a picture's ids, `decode` a picture's pixels from them. Where there is a backbone, the codes also have
embeddings, with a position for their row and one for their column.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.convolutions import Conv, ResidualBlock, doubled, pooled
from unimodal.errors import DTYPES, UsageError, check_fields
from unimodal.layers import Embedding, activate, dropout
from unimodal.tokens import Tokens, tokens

ALONE = True  # it has work without a backbone
QUANTISERS = ("gumbel", "vq")


@dataclass(frozen=True)
class Config:
    """Options of the tokenizer that turns pixels into codes, and codes into pixels."""

    image_size: tuple[int, int] = (256, 256)  # height and width in pixels
    channels: int = 3  # 3 for colour, 1 for grey
    vocabulary: int = 8192  # V, the number of codes
    hidden: int = 256  # width of the encoder's first group and of the decoder's last; each group doubles it
    groups: int = 4  # groups of blocks; between two of them the picture's sides are halved
    blocks: int = 2  # residual blocks in a group
    code_size: int = 128  # of a code's vector, as the decoder takes it
    # How a place's code is chosen: "gumbel", by scores of all codes, or "vq", by the nearest vector (van den Oord 2017). With
    # "vq" the decoder's pixels are plain numbers, and else logits.
    quantiser: str = "gumbel"
    dropout: float = 0.0  # rate, on the codes' vectors and on their embeddings
    dtype: str = "float32"  # dtype in which convolutions are computed

    def __post_init__(self) -> None:
        least = dict(image_size=1, channels=1, vocabulary=2, hidden=1, groups=1, blocks=1, code_size=1)
        check_fields("codebook", self, least=least, among=dict(quantiser=QUANTISERS, dtype=DTYPES))
        if any(side % self.stride for side in self.image_size):
            raise UsageError(f"codebook image_size {self.image_size} is not divisible by {self.stride}, 2^(groups - 1)")

    @property
    def stride(self) -> int:
        """Pixels from code to code."""
        return 2 ** (self.groups - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    @property
    def tokens(self) -> int:
        """The number of codes that an image becomes."""
        return math.prod(self.grid)


class Encoder(nnx.Module):
    """pixels [B,H,W,C] → features [B,rows,columns,outputs]."""

    def __init__(self, c: Config, outputs: int, *, rngs: nnx.Rngs):
        gain, width = 1.0 / (c.groups * c.blocks) ** 2, c.hidden
        self.first = Conv(c.channels, width, 7, rngs=rngs)
        groups: list[nnx.List] = []
        for group in range(c.groups):
            sizes = [width, *[c.hidden * 2**group] * c.blocks]
            made = [ResidualBlock(a, b, gain, rngs=rngs) for a, b in zip(sizes, sizes[1:], strict=False)]
            groups, width = [*groups, nnx.List(made)], sizes[-1]
        self.groups = nnx.List(groups)
        self.last = Conv(width, outputs, 1, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        return self.last(_through(self.groups, self.first(pixels), between=pooled))


class Decoder(nnx.Module):
    """vectors [B,rows,columns,code_size] → [B,H,W,2·channels]: of each value a centre and the logarithm of a scale."""

    def __init__(self, c: Config, *, rngs: nnx.Rngs):
        gain, width = 1.0 / (c.groups * c.blocks) ** 2, c.code_size
        groups: list[nnx.List] = []
        for group in reversed(range(c.groups)):
            sizes = [width, *[c.hidden * 2**group] * c.blocks]
            made = [ResidualBlock(a, b, gain, decoder=True, rngs=rngs) for a, b in zip(sizes, sizes[1:], strict=False)]
            groups, width = [*groups, nnx.List(made)], sizes[-1]
        self.groups = nnx.List(groups)
        self.last = Conv(width, 2 * c.channels, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(_through(self.groups, x, between=doubled))


def _through(groups: nnx.List, x: jax.Array, between: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Run groups of blocks one after the other. `between` changes the size of the picture from group to group."""
    for number, group in enumerate(groups):
        x = between(x) if number else x
        for block in group:
            x = block(x)
    return activate("relu", x)


class Tokenizer(nnx.Module):
    """pixels [B,H,W,C] in [0,1] → Tokens [B, rows·columns, D], bidirectional; and ids, and pixels again."""

    modality = "image"

    def __init__(self, config: Config, width: int, *, rngs: nnx.Rngs):
        c = config
        self.config = config
        self.encoder = Encoder(c, c.vocabulary if c.quantiser == "gumbel" else c.code_size, rngs=rngs)
        self.decoder = Decoder(c, rngs=rngs)
        # Nearest vectors begin about as large as what the encoder gives at first; mixed ones would all but vanish.
        table = jax.random.normal(rngs.params(), (c.vocabulary, c.code_size))
        table = table * (c.code_size**-0.5 if c.quantiser == "vq" else 1.0)
        nearest = c.quantiser == "vq"  # then they are running means, see `state.RunningCodebook`
        self.vectors = nnx.Param(
            table, axes=("vocabulary", "hidden"), kind="vector" if nearest else "table", written=nearest
        )
        self.embedding = Embedding(c.vocabulary, width, rngs=rngs) if width else None
        place: dict[str, Any] = dict(axes=("place", "embed"), rngs=rngs)
        self.rows = Embedding(c.grid[0], width, **place) if width else None
        self.columns = Embedding(c.grid[1], width, **place) if width else None

    def features(self, pixels: jax.Array) -> jax.Array:
        """Encode pixels: scores of all codes [B,rows,columns,V], or vectors [B,rows,columns,code_size].

        Raises UsageError if the pixels are not of the configured size."""
        c = self.config
        if pixels.shape[1:] != (*c.image_size, c.channels):
            raise UsageError(f"image of shape {pixels.shape[1:]} where {(*c.image_size, c.channels)} was configured")
        return self.encoder(pixels.astype(c.dtype)).astype(jnp.float32)

    def nearest(self, features: jax.Array) -> jax.Array:
        """The codes [...] int32 of features [..., V or code_size]."""
        if self.config.quantiser == "vq":
            table = self.vectors.get_value()
            product = jnp.matmul(features, table.T, precision=jax.lax.Precision.HIGHEST)
            features = product - jnp.expand_dims(jnp.square(table).sum(axis=1) / 2, tuple(range(features.ndim - 1)))
        return jnp.argmax(features, axis=-1).astype(jnp.int32)

    def codes(self, pixels: jax.Array) -> jax.Array:
        """The ids [B, rows·columns] int32 of a picture's codes, rows first. No gradient goes through them."""
        return jax.lax.stop_gradient(self.nearest(self.features(pixels))).reshape(pixels.shape[0], -1)

    def look_up(self, codes: jax.Array) -> jax.Array:
        """Codes int [...] → their vectors [...,code_size]."""
        return self.vectors.get_value()[codes]

    def decode(self, vectors: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Vectors [B,rows,columns,code_size] → [B,H,W,2·channels]; see `Decoder`."""
        dropped = dropout(vectors, self.config.dropout, key)
        return self.decoder(dropped.astype(self.config.dtype)).astype(jnp.float32)

    def pixels(self, codes: jax.Array) -> jax.Array:
        """The picture [B,H,W,C] in [0,1] of codes [B, rows·columns]."""
        c = self.config
        centre = self.decode(self.look_up(codes.reshape(-1, *c.grid)))[..., : c.channels]
        return jnp.clip(centre if c.quantiser == "vq" else unmapped(jax.nn.sigmoid(centre)), 0.0, 1.0)

    def embed(self, codes: jax.Array, place: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Codes [B,T] at `place` [B,T] of the picture, rows first → [B,T,D]. Raises UsageError without a backbone."""
        if self.embedding is None or self.rows is None or self.columns is None:
            raise UsageError("codes have embeddings only beside a backbone: name one in the config's backbones")
        across = self.config.grid[1]
        x = self.embedding(codes) + self.rows(place // across) + self.columns(place % across)
        return dropout(x, self.config.dropout, key)

    def __call__(self, pixels: jax.Array, *, key: jax.Array | None = None) -> Tokens:
        codes = self.codes(pixels)
        place = jnp.broadcast_to(jnp.arange(codes.shape[1], dtype=jnp.int32)[None], codes.shape)
        return tokens(self.embed(codes, place, key), modality=self.modality)


MARGIN = 0.1  # ε of Ramesh 2021, appendix A.3: keeps values away from 0 and 1, where the logit is infinite


def mapped(pixels: jax.Array) -> jax.Array:
    """Pixels in [0,1] → [ε, 1 - ε]."""
    return (1 - 2 * MARGIN) * pixels + MARGIN


def unmapped(values: jax.Array) -> jax.Array:
    """Turn `mapped` values into pixels again."""
    return (values - MARGIN) / (1 - 2 * MARGIN)
