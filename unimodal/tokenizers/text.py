"""Text: ids → embedding table, with learned positions and an optional norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.errors import DTYPES, UsageError, check_fields
from unimodal.layers import Embedding, Linear, Norm, dropout
from unimodal.tokens import Tokens, tokens


@dataclass(frozen=True)
class Config:
    """Options of the tokenizer that turns ids into embeddings."""

    vocabulary: int  # V, the number of ids
    # rows of the learned position table; None: no table, as for backbones that rotate (RoPE)
    max_length: int | None = None
    types: int = 0  # rows of the sentence-type table; 0: no table
    norm: bool = False  # normalise the sum of the tables (LayerNorm), as post-norm encoders do
    norm_epsilon: float = 1e-6  # added to the variance
    norm_bias: bool = True  # the norm has a bias
    # Width of the tables and the norm, with a learned projection to the backbone's width behind them (Lan 2020, §3.1
    # "Factorized embedding parameterization"). None: the backbone's width, and no projection.
    embedding_width: int | None = None
    scale: bool = False  # multiply the embeddings by √D
    dropout: float = 0.0  # rate, on the tokens
    # what the ids stand for, by which a backbone with experts chooses weights: a picture's colours are "image"
    modality: str = "text"
    init_std: float = 0.02  # standard deviation of the tables at the start
    param_dtype: str = "float32"  # dtype in which parameters are stored

    def __post_init__(self) -> None:
        least = dict(vocabulary=1, max_length=1, types=0, embedding_width=1)
        check_fields("text", self, least=least, among=dict(param_dtype=DTYPES))


class Tokenizer(nnx.Module):
    """ids [B,T] → Tokens [B,T,D]."""

    def __init__(self, config: Config, width: int, *, rngs: nnx.Rngs):
        c, dtype = config, jnp.dtype(config.param_dtype)
        self.config = config
        make: dict[str, Any] = dict(init_std=c.init_std, dtype=dtype, rngs=rngs)
        size = width if c.embedding_width is None else c.embedding_width
        self.table = Embedding(c.vocabulary, size, **make)
        self.position_table = Embedding(c.max_length, size, axes=("place", "embed"), **make) if c.max_length else None
        self.type_table = Embedding(c.types, size, axes=("place", "embed"), **make) if c.types else None
        self.norm = Norm(size, epsilon=c.norm_epsilon, bias=c.norm_bias, dtype=dtype) if c.norm else None
        projected = c.embedding_width is not None
        self.projection = Linear((size,), (width,), ("hidden", "embed"), dtype=dtype, rngs=rngs) if projected else None

    def __call__(
        self,
        ids: jax.Array,
        *,
        causal: bool = False,
        rows: jax.Array | None = None,
        segment: jax.Array | None = None,
        lengths: jax.Array | None = None,
        position: jax.Array | None = None,
        types: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Tokens:
        """`segment`, `position`, `types`: [B,T] int32. lengths: [B] int32, of rows padded at their end, in place of
        `segment`. rows: [B,T,D], in place of the table's, for what stands for words that it has not. Raises UsageError
        if T exceeds the position table."""
        rows = self.table(ids) if rows is None else rows
        result = tokens(
            rows, causal=causal, segment=segment, position=position, lengths=lengths, modality=self.modality
        )
        x = result.x
        if self.config.scale:
            x = x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype)
        if self.position_table is not None:
            limit = self.config.max_length
            if position is None and limit is not None and rows.shape[1] > limit:
                raise UsageError(
                    f"text of {rows.shape[1]} tokens is longer than the position table, max_length={limit}"
                )
            x = x + self.position_table(result.position)
        if self.type_table is not None:
            x = x + self.type_table(jnp.zeros(rows.shape[:2], jnp.int32) if types is None else types)
        if self.norm is not None:
            x = self.norm(x)
        x = dropout(x, self.config.dropout, key)
        return result.with_x(x if self.projection is None else self.projection(x))

    @property
    def modality(self) -> str:
        return self.config.modality

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [...,D] against the embedding table: [...,V] (tied output weights, Press 2017)."""
        return self.table.logits(hidden)
