"""Images: pixels → patches, one matrix product each (Dosovitskiy 2021, eq. 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal.errors import DTYPES, UsageError, check_fields
from unimodal.layers import Embedding, Linear, Norm, dropout
from unimodal.sharding import whole_in_time
from unimodal.tokens import Tokens, tokens


@dataclass(frozen=True)
class Config:
    """Options of the tokenizer that turns pixels into patches."""

    image_size: tuple[int, int] = (224, 224)  # height and width in pixels
    patch: int = 16  # side of a patch in pixels
    channels: int = 3  # 3 for colour, 1 for grey or a spectrogram
    registers: int = 1  # learned tokens before the patches; the first is the class token
    plain_registers: int = 0  # more of them, between the registers and the patches, without a position (Darcet 2024)
    # Pixels from patch to patch, down and across; what is left over at the right and bottom goes unseen. None: the side
    # of a patch, and the image must divide by it.
    stride: tuple[int, int] | None = None
    positions: bool = True  # a learned position table
    resize: bool = False  # take images of other sizes too, and resize the position table to their grid, bicubically
    antialias: bool = False  # resize with a filter that widens as the grid shrinks
    bias: bool = True  # the patch projection has a bias
    norm: bool = False  # normalise the tokens before the backbone (LayerNorm)
    norm_epsilon: float = 1e-6  # added to the variance
    dropout: float = 0.0  # rate, on the tokens
    init_std: float = 0.02  # standard deviation of the learned tokens and the position table at the start
    # The position table starts as sines and cosines of row and column instead (He 2022, appendix A.1).
    sincos: bool = False
    param_dtype: str = "float32"  # dtype in which parameters are stored

    def __post_init__(self) -> None:
        least = dict(image_size=1, patch=1, channels=1, registers=0, plain_registers=0, stride=1)
        check_fields("image", self, least=least, among=dict(param_dtype=DTYPES))
        self.tiled(self.image_size, "image_size")

    def tiled(self, size: tuple[int, ...], what: str) -> tuple[int, int]:
        """The height and width themselves. Raises UsageError, calling them `what`, where patches would leave pixels unseen."""
        height, width = size
        if min(height, width) < self.patch:
            raise UsageError(f"{what} {height}x{width} is smaller than patch={self.patch}")
        if self.stride is None and (height % self.patch or width % self.patch):
            raise UsageError(f"{what} {height}x{width} is not divisible by patch={self.patch}")
        return height, width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.grid_of(*self.image_size)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of another size."""
        down, across = self.stride or (self.patch, self.patch)
        return (height - self.patch) // down + 1, (width - self.patch) // across + 1

    @property
    def tokens(self) -> int:
        """The number of tokens that one image becomes."""
        return self.registers + self.plain_registers + math.prod(self.grid)


def patchify(pixels: jax.Array, patch: int) -> jax.Array:
    """[B,H,W,C] → [B,T,patch·patch·C], rows first; inside a patch: row, column, channel."""
    batch, height, width, channels = pixels.shape
    rows, columns = height // patch, width // patch
    x = pixels.reshape(batch, rows, patch, columns, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch * patch * channels)


class Tokenizer(nnx.Module):
    """pixels [B,H,W,C] float → Tokens [B, registers + patches, D], bidirectional."""

    modality = "image"

    def __init__(self, config: Config, width: int, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        self.config = config
        pixels = c.patch * c.patch * c.channels
        self.projection = Linear((pixels,), (width,), ("patch", "embed"), bias=c.bias, dtype=dtype, rngs=rngs)
        make: dict[str, Any] = dict(axes=("place", "embed"), init_std=c.init_std, dtype=dtype, rngs=rngs)
        self.registers = Embedding(c.registers, width, **make) if c.registers else None
        self.plain_registers = Embedding(c.plain_registers, width, **make) if c.plain_registers else None
        self.position_table = position_table(c, width, rngs=rngs) if c.positions else None
        self.norm = Norm(width, epsilon=c.norm_epsilon, dtype=dtype) if c.norm else None

    def __call__(self, pixels: jax.Array, *, key: jax.Array | None = None, keep: jax.Array | None = None) -> Tokens:
        """keep: [B,K] int32, the patches that become tokens, by their number in the image, in this order; None: all. Their
        positions stay those of the whole image. Raises UsageError if the pixels are not of the configured size."""
        c = self.config
        if pixels.shape[3:] != (c.channels,) or (not c.resize and pixels.shape[1:3] != c.image_size):
            raise UsageError(f"image of shape {pixels.shape[1:]} where {(*c.image_size, c.channels)} was configured")
        grid = c.grid_of(*pixels.shape[1:3])
        if min(grid) < 1:
            raise UsageError(
                f"image of {pixels.shape[1]}x{pixels.shape[2]} pixels is smaller than one patch of {c.patch}"
            )
        x = self._project(pixels.astype(self.projection.kernel.get_value().dtype))
        if self.registers is not None:
            x = _before(self.registers, x)
        if self.position_table is not None:
            table = self.position_table.table.get_value()
            if grid != c.grid:
                resized = resize_grid(table[c.registers :], c.grid, grid, antialias=c.antialias)
                table = jnp.concatenate([table[: c.registers], resized])
            x = x + table[None]
        if self.plain_registers is not None:
            plain = _before(self.plain_registers, x[:, c.registers :])
            x = jnp.concatenate([x[:, : c.registers], plain], axis=1)
        position = None
        if keep is not None:
            x, position = _kept(x, keep, c.registers + c.plain_registers)
        if self.norm is not None:
            x = self.norm(x)
        result = tokens(dropout(x, c.dropout, key), position=position, modality=self.modality)
        return replace(result, gaps=keep is not None)

    def packed(
        self,
        patches: jax.Array,
        *,
        segment: jax.Array,
        position: jax.Array,
        register: jax.Array,
        place: jax.Array,
        key: jax.Array | None = None,
    ) -> Tokens:
        """Rows of patches of several pictures of any sizes, [B,T,patch·patch·C], as Tokens that see their own picture only.

        Each picture gets the tokens that a call gives it alone, with its position table resized to the picture's grid
        (Dehghani 2023, §2). segment: [B,T], 1, 2, … by picture, 0 for padding. position: [B,T], within it. register: [B,T],
        1, 2, … for the learned tokens before a picture's patches, 0 for a patch. place: [B,T,4], a patch's row and column and
        its picture's rows and columns. Raises UsageError for a tokenizer with a stride.
        """
        c = self.config
        if c.stride is not None:
            raise UsageError("patches that overlap cannot be packed: leave tokenizers' stride at None")
        x = self.projection(patches.astype(self.projection.kernel.get_value().dtype))
        if self.position_table is not None:
            table = self.position_table.table.get_value()
            x = x + _resized_at(table[c.registers :], c.grid, place, antialias=c.antialias)
        learned = self._learned()
        if learned is not None:
            x = jnp.where(register[:, :, None] > 0, learned[jnp.maximum(register - 1, 0)], x)
        if self.norm is not None:
            x = self.norm(x)
        return tokens(dropout(x, c.dropout, key), segment=segment, position=position, modality=self.modality)

    def _learned(self) -> jax.Array | None:
        """The tokens before the patches with their positions, [registers + plain_registers, D]; None where there are none."""
        found = []
        if self.registers is not None:
            first = self.registers.table.get_value()
            table = None if self.position_table is None else self.position_table.table.get_value()
            found.append(first if table is None else first + table[: len(first)])
        if self.plain_registers is not None:
            found.append(self.plain_registers.table.get_value())
        return jnp.concatenate(found) if found else None

    def _project(self, pixels: jax.Array) -> jax.Array:
        """Pixels → embedded patches [B,T,D], rows first."""
        c = self.config
        if c.stride is None:
            rows, columns = c.grid_of(*pixels.shape[1:3])
            return self.projection(patchify(pixels[:, : rows * c.patch, : columns * c.patch], c.patch))
        kernel = self.projection.kernel.get_value()
        kernel = kernel.reshape(c.patch, c.patch, c.channels, kernel.shape[1])
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(pixels, kernel, c.stride, "VALID", dimension_numbers=numbers)
        x = whole_in_time(x.reshape(x.shape[0], -1, x.shape[3]))
        bias = self.projection.bias
        return x if bias is None else x + bias.get_value()[None, None]


def position_table(config: Config, width: int, *, rngs: nnx.Rngs) -> Embedding:
    """A learned table with a row of the width for each register and each patch, as the config has it start."""
    places = config.registers + math.prod(config.grid)
    dtype = jnp.dtype(config.param_dtype)
    table = Embedding(places, width, axes=("place", "embed"), init_std=config.init_std, dtype=dtype, rngs=rngs)
    if config.sincos:
        waves = np.concatenate([np.zeros((config.registers, width), np.float32), sines_and_cosines(config.grid, width)])
        table.table.set_value(jnp.asarray(waves, dtype))
    return table


def sines_and_cosines(grid: tuple[int, int], width: int) -> np.ndarray:
    """[rows·columns, width] float32: sines and cosines of the column, then of the row, at width/4 frequencies each from 1
    down to 1/10,000 (Vaswani 2017, §3.5, in two dimensions). Raises UsageError where 4 does not divide the width."""
    if width % 4:
        raise UsageError(f"tokenizer sincos=True needs a width that is divisible by 4, but it is {width}")
    down, across = np.meshgrid(*(np.arange(side) for side in grid), indexing="ij")
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = [place.reshape(-1, 1) * frequencies for place in (across, down)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1).astype(np.float32)


def resize_grid(table: jax.Array, old: tuple[int, int], new: tuple[int, int], *, antialias: bool = False) -> jax.Array:
    """Position embeddings [rows·columns,D] of one grid for another, by bicubic interpolation in float32 (Keys 1981, as
    published models have it: a = -0.75, or with `antialias` a = -0.5)."""
    weights = _smooth_bicubic if antialias else _bicubic
    x = table.astype(jnp.float32).reshape(*old, table.shape[1])
    down, across = (jnp.asarray(weights(a, b)) for a, b in zip(old, new, strict=True))
    x = jnp.einsum("rh,cw,hwd->rcd", down, across, x, precision="highest")
    return x.reshape(-1, table.shape[1]).astype(table.dtype)


def _bicubic(old: int, new: int) -> np.ndarray:
    """[new,old] float32: how much of each old place goes into each new one; beyond the border the border repeats."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        weights = _cubic(np, centre - (first + step), a=-0.75)
        np.add.at(matrix, (np.arange(new), np.clip(first + step, 0, old - 1)), weights)
    return matrix.astype(np.float32)


def _smooth_bicubic(old: int, new: int) -> np.ndarray:
    """Interpolate as `_bicubic`, but as wide as one new place if that is wider than an old one, and cut off at the border."""
    step = old / new
    centre = (np.arange(new) + 0.5) * step - 0.5
    matrix = _cubic(np, (centre[:, None] - np.arange(old)[None]) / max(step, 1.0), a=-0.5)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def _cubic(np: Any, distance: Any, a: float) -> Any:
    """Keys' piecewise cubic, 0 from a distance of 2 on, in numpy or jax.numpy."""
    t = np.abs(distance)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _resized_at(table: jax.Array, old: tuple[int, int], place_BT4: jax.Array, *, antialias: bool) -> jax.Array:
    """`resize_grid`, of each place of a row alone: [B,T,D]. place: row, column, rows and columns of its grid."""
    place = place_BT4.astype(jnp.float32)
    down, across = (_weights_at(place[..., i], place[..., i + 2], old[i], antialias=antialias) for i in (0, 1))
    weights = (down[..., :, None] * across[..., None, :]).reshape(*place.shape[:2], -1)
    return jnp.einsum("btg,gd->btd", weights, table.astype(jnp.float32), precision="highest").astype(table.dtype)


def _weights_at(index: jax.Array, size: jax.Array, old: int, *, antialias: bool) -> jax.Array:
    """The row `index` [B,T] of `_bicubic` or `_smooth_bicubic` from `old` to `size` [B,T]: [B,T,old] float32."""
    centre = ((index + 0.5) * old / size - 0.5)[..., None]
    there = jnp.arange(old, dtype=jnp.float32)[None, None]
    if antialias:
        weights = _cubic(jnp, (centre - there) / jnp.maximum(old / size, 1.0)[..., None], a=-0.5)
        return weights / weights.sum(axis=-1, keepdims=True)
    first = jnp.floor(centre)
    weights = jnp.zeros((*index.shape, old), jnp.float32)
    for step in (-1, 0, 1, 2):
        at = jnp.clip(first + step, 0, old - 1) == there
        weights = weights + jnp.where(at, _cubic(jnp, centre - (first + step), a=-0.75), 0.0)
    return weights


def _kept(x: jax.Array, keep: jax.Array, first: int) -> tuple[jax.Array, jax.Array]:
    """Tokens [B,first+K,D] of [B,T,D] and their places [B,first+K]: all before `first`, and of the patches after it `keep`."""
    patches = jnp.take_along_axis(x[:, first:], keep[:, :, None], axis=1)
    before = jnp.broadcast_to(jnp.arange(first, dtype=jnp.int32)[None], (x.shape[0], first))
    return jnp.concatenate([x[:, :first], patches], axis=1), jnp.concatenate([before, keep + first], axis=1)


def _before(learned: Embedding, x: jax.Array) -> jax.Array:
    """The learned tokens, then x."""
    table = learned.table.get_value()
    return jnp.concatenate([jnp.broadcast_to(table[None], (x.shape[0], *table.shape)), x], axis=1)
