"""Heads: hidden states → logits or embeddings. Small on purpose; what they share is in `layers.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.backbone import Attention, BackboneConfig, Mlp
from unimodal.errors import UsageError
from unimodal.layers import Embedding, Linear, Norm, activate, dropout
from unimodal.sharding import copied

POOLINGS = ("first", "first_two", "mean", "last", "final", "end")


def pool(
    hidden: jax.Array,
    how: str,
    segment: jax.Array | None = None,
    *,
    ids: jax.Array | None = None,
    end: int | None = None,
) -> jax.Array:
    """[B,T,D] → [B,D]: "first" token, "first_two" (the mean of those, a class and a distillation token), "mean" over real
    tokens, "last" real token, "final" place of the row, real or not, or the "end" token: the first of `ids` [B,T] that is
    `end` (None: the largest, which is how CLIP once found it).

    Raises UsageError for another word. A row without real tokens gives zeros for "mean".
    """
    if how == "end" and ids is not None:
        place = ids if end is None else (ids == end).astype(jnp.int32)
        return jnp.take_along_axis(hidden, jnp.argmax(place, axis=1)[:, None, None], axis=1)[:, 0]
    if how == "final":
        return hidden[:, -1]
    if how == "first":
        return hidden[:, 0]
    if how == "first_two":
        return hidden[:, :2].mean(axis=1)
    if how == "mean":
        if segment is None:
            return hidden.mean(axis=1)
        # In float32: a sum over some thousand tokens is beyond float16, and their number beyond bfloat16's digits.
        real = (segment != 0).astype(jnp.float32)[:, :, None]
        return ((hidden.astype(jnp.float32) * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)).astype(hidden.dtype)
    if how == "last":
        if segment is None:
            return hidden[:, -1]
        place = jnp.arange(segment.shape[1], dtype=jnp.int32)[None]
        last = jnp.where(segment != 0, place, 0).max(axis=1)  # padding may stand before, between or after
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    known = ", ".join(name for name in POOLINGS if name != "end" or ids is not None)
    raise UsageError(f"pool {how!r} is not one of {known}")


def pool_segments(hidden: jax.Array, segment: jax.Array, count: int, how: str) -> jax.Array:
    """[B,T,D] → [B,count,D]: `pool` over each of the segments 1 … count of a packed row by itself; zeros for one that is not
    there. how: first, mean or last. Raises UsageError for another word."""
    there = segment[:, None, :] == jnp.arange(1, count + 1, dtype=segment.dtype)[None, :, None]
    if how == "mean":
        weights = there.astype(jnp.float32)
        weights = weights / jnp.maximum(weights.sum(axis=2, keepdims=True), 1)
    elif how in ("first", "last"):
        length = segment.shape[1]
        place = jnp.argmax(there, axis=2) if how == "first" else length - 1 - jnp.argmax(there[:, :, ::-1], axis=2)
        weights = jax.nn.one_hot(place, length, dtype=jnp.float32) * there.any(axis=2, keepdims=True).astype(
            jnp.float32
        )
    else:
        raise UsageError(f"pooling {how!r} is not for packed rows, whose pictures take first, mean or last")
    return jnp.einsum("bnt,btd->bnd", weights, hidden.astype(jnp.float32)).astype(hidden.dtype)


def unit_length(x: jax.Array) -> jax.Array:
    """[…,D] scaled to length 1, float32. Zeros stay zeros."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)


class Classifier(nnx.Module):
    """Pool, normalise if `norm` says so, then a linear layer: [B,T,D] → logits [B,classes].

    Starts at zero, so the first guess is uniform. pooling: "attention", too, of the shape of `backbone`. norm: epsilon of
    a LayerNorm behind the pooling, as AST has it; 0: none.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        pooling: str = "first",
        backbone: BackboneConfig | None = None,
        norm: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.pooling = pooling
        self.norm = Norm(width, epsilon=norm) if norm else None
        self.linear = Linear((width,), (classes,), ("embed", "classes"), init_scale=0.0, rngs=rngs)
        attended = backbone if pooling == "attention" else None
        self.attention = None if attended is None else AttentionPool(attended, rngs=rngs)

    def __call__(self, hidden: jax.Array, segment: jax.Array | None = None) -> jax.Array:
        pooled = pool(hidden, self.pooling, segment) if self.attention is None else self.attention(hidden, segment)
        return self.linear(pooled if self.norm is None else self.norm(pooled))


class PooledClassifier(nnx.Module):
    """Pool, a tanh layer of the same width, dropout, then a linear layer: [B,T,D] → logits [B,classes] (Devlin 2019)."""

    def __init__(self, width: int, classes: int, *, pooling: str = "first", dropout: float = 0.0, rngs: nnx.Rngs):
        self.pooling, self.dropout = pooling, dropout
        self.pooler = Linear((width,), (width,), ("embed", "hidden"), rngs=rngs)
        self.linear = Linear((width,), (classes,), ("embed", "classes"), init_scale=0.0, rngs=rngs)

    def __call__(
        self, hidden: jax.Array, segment: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """`key` turns dropout on."""
        pooled = jnp.tanh(self.pooler(pool(hidden, self.pooling, segment)))
        return self.linear(dropout(pooled, self.dropout, key))


@dataclass(frozen=True)
class Embed:
    """Options of the head that turns hidden states into one embedding of unit length."""

    pooling: str = "mean"  # of the tokens: first, first_two, mean, last, final or end (see `pool`), or attention
    end: int | None = None  # for "end", the id of the token that ends a text; None: the largest id of the text
    norm: float = 0.0  # epsilon of a norm after the pooling; 0: none
    project: bool = True  # whether a linear layer follows; without one, the embedding is as wide as the backbone
    bias: bool = False  # of that layer

    def __post_init__(self) -> None:
        if self.pooling not in (*POOLINGS, "attention"):
            raise UsageError(f"pooling {self.pooling!r} is not one of {', '.join((*POOLINGS, 'attention'))}")


class Projection(nnx.Module):
    """Pool, then project to an embedding of unit length, as `Embed` has it: [B,T,D] → [B,size] float32 (Radford 2021,
    fig. 3). `backbone` gives the pooling by attention its shape."""

    def __init__(
        self,
        width: int,
        size: int,
        config: Embed = Embed(),
        backbone: BackboneConfig | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.config, axes = config, ("embed", "classes")
        self.linear = Linear((width,), (size,), axes, bias=config.bias, rngs=rngs) if config.project else None
        self.norm = Norm(width, epsilon=config.norm) if config.norm else None
        attended = backbone if config.pooling == "attention" else None
        self.attention = None if attended is None else AttentionPool(attended, rngs=rngs)

    def pooled(self, hidden: jax.Array, segment: jax.Array | None = None, *, ids: jax.Array | None = None) -> jax.Array:
        """[B,D]. `ids` [B,T] say where a text ends."""
        if self.attention is not None:
            x = self.attention(hidden, segment)
        else:
            x = pool(hidden, self.config.pooling, segment, ids=ids, end=self.config.end)
        return x if self.norm is None else self.norm(x)

    def projected(
        self, hidden: jax.Array, segment: jax.Array | None = None, *, ids: jax.Array | None = None
    ) -> jax.Array:
        """[B,size], of any length."""
        x = self.pooled(hidden, segment, ids=ids)
        return x if self.linear is None else self.linear(x)

    def __call__(
        self, hidden: jax.Array, segment: jax.Array | None = None, *, ids: jax.Array | None = None
    ) -> jax.Array:
        return unit_length(self.projected(hidden, segment, ids=ids))


class LogitScale(nnx.Module):
    """A factor on similarities, learned as its logarithm, and a bias that is learned too, if `bias` says where
    it starts: x → x·exp(log_scale) + bias. Updates do not lead beyond a scale of `most`."""

    def __init__(self, start: float = 1.0, *, most: float | None = None, bias: float | None = None):
        bounds = None if most is None else (None, math.log(most))
        self.log_scale = nnx.Param(jnp.full((), math.log(start), jnp.float32), axes=(), kind="vector", bounds=bounds)
        self.bias = None if bias is None else nnx.Param(jnp.full((), bias, jnp.float32), axes=(), kind="vector")

    @property
    def scale(self) -> jax.Array:
        return jnp.exp(self.log_scale.get_value())

    @property
    def shared(self) -> tuple[jax.Array, ...]:
        """The scale and, where there is one, the bias: as the objectives take them."""
        return (self.scale,) if self.bias is None else (self.scale, self.bias.get_value())

    def __call__(self, similarity: jax.Array) -> jax.Array:
        scaled = similarity * self.scale.astype(similarity.dtype)
        return scaled if self.bias is None else scaled + self.bias.get_value().astype(similarity.dtype)


class LanguageModel(nnx.Module):
    """hidden [...,D] → logits [...,V]: through the tokenizer's own table when `tied`, else a matrix of its own. soft_cap: c,
    which bends the logits z to c·tanh(z/c) (Bello 2016)."""

    def __init__(
        self,
        width: int,
        vocabulary: int,
        *,
        tied: bool = True,
        bias: bool = False,
        soft_cap: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.soft_cap = soft_cap
        self.linear = None if tied else Linear((width,), (vocabulary,), ("embed", "vocabulary"), bias=False, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((vocabulary,)), axes=("vocabulary",), kind="vector") if bias else None

    def __call__(self, hidden: jax.Array, table: Embedding) -> jax.Array:
        logits = table.logits(hidden) if self.linear is None else self.linear(hidden)
        if self.bias is not None:
            bias = self.bias.get_value().astype(logits.dtype)
            logits = logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)
        return logits if self.soft_cap is None else self.soft_cap * jnp.tanh(logits / self.soft_cap)

    def factors(self, hidden: jax.Array, table: Embedding) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The factors of the logits, for a loss that takes them in chunks: x [B,T,D], copies of the kernel [R,Q,D,V] and
        bias [V] or None of `logits = x·kernel + bias`."""
        if self.linear is None:
            table.check(hidden)
        if self.soft_cap is not None:
            raise UsageError(
                "logits with a soft_cap are no product, so no loss can take them in chunks: set chunks to 1"
            )
        tied = self.linear is None
        kernel = table.table.get_value() if self.linear is None else self.linear.kernel.get_value()
        # The barrier has the kernel's gradient finished, and summed over devices, before the backbone's begins: else the
        # compiler may keep what each device has of it, whole and in float32, until the end of the step.
        hidden, kernel = jax.lax.optimization_barrier((hidden, kernel))
        # Gathered over fsdp once, here, and its gradient summed once, rather than for every chunk; V stays in pieces.
        axes = ("vocabulary", "embed") if tied else ("embed", "vocabulary")
        kernel = copied(kernel, hidden.shape[0], *axes, dtype=hidden.dtype)
        # Transpose a table here, beside the product, which then reads it as it lies; before the barrier it would be copied.
        kernel = jnp.swapaxes(kernel, -1, -2) if tied else kernel
        return hidden, kernel, None if self.bias is None else self.bias.get_value()


class MaskedLanguageModel(nnx.Module):
    """Linear, activation, norm, then the tokenizer's table (or a matrix of its own, if not `tied`) and a bias: hidden
    [...,D] → [...,V] (Devlin 2019)."""

    def __init__(
        self,
        width: int,
        vocabulary: int,
        *,
        activation: str = "gelu",
        norm_epsilon: float = 1e-6,
        tied: bool = True,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.transform = Linear((width,), (width,), ("embed", "hidden"), rngs=rngs)
        self.norm = Norm(width, epsilon=norm_epsilon)
        self.decoder = LanguageModel(width, vocabulary, tied=tied, bias=True, rngs=rngs)

    def __call__(self, hidden: jax.Array, table: Embedding) -> jax.Array:
        return self.decoder(self._transformed(hidden), table)

    def factors(self, hidden: jax.Array, table: Embedding) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The factors of the logits, as in `LanguageModel.factors`, of the transformed hidden states."""
        return self.decoder.factors(self._transformed(hidden), table)

    def _transformed(self, hidden: jax.Array) -> jax.Array:
        return self.norm(activate(self.activation, self.transform(hidden)))


class AttentionPool(nnx.Module):
    """A learned probe attends to all tokens, then an MLP on a residual branch: hidden [B,T,D] → [B,D] (Zhai 2022, §3.1
    "multihead attention pooling"). `config` gives width, heads, logits, MLP and norm, as in a backbone."""

    def __init__(self, config: BackboneConfig, *, rngs: nnx.Rngs):
        self.probe = nnx.Param(jax.random.normal(rngs.params(), (config.width,)), axes=("embed",), kind="vector")
        self.attention = Attention(config, rngs=rngs)
        self.norm = config.make_norm()
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, hidden: jax.Array, segment: jax.Array | None = None) -> jax.Array:
        probe = jnp.broadcast_to(
            self.probe.get_value().astype(hidden.dtype)[None, None], (hidden.shape[0], 1, hidden.shape[2])
        )
        mask = None if segment is None else (segment != 0)[:, None, :]
        x = self.attention.between(probe, hidden, mask)
        return (x + self.mlp(self.norm(x)))[:, 0]


class Quantiser(nnx.Module):
    """Scores of the codes of a product codebook, and the codes themselves (Baevski 2020, §2 "Quantization module").

    features [B,T,C] → scores [B,T,groups,codes]; one-hot choices [B,T,groups,codes] → [B,T,groups·size].
    """

    def __init__(self, channels: int, groups: int, codes: int, size: int, *, rngs: nnx.Rngs):
        self.scores = Linear((channels,), (groups, codes), ("hidden", "hidden", "codes"), rngs=rngs)
        table = jax.random.uniform(rngs.params(), (groups, codes, size))
        self.table = nnx.Param(table, axes=("hidden", "codes", "embed"), kind="table")

    def look_up(self, choices: jax.Array) -> jax.Array:
        chosen = jnp.einsum("btgv,gvc->btgc", choices, self.table.get_value().astype(choices.dtype))
        return chosen.reshape(*chosen.shape[:2], -1)
