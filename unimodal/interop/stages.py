"""The steps from hidden states to outputs. A family lists them; each is small, named, and the same for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.backbone import Backbone, BackboneConfig
from unimodal.heads import AttentionPool, LanguageModel, MaskedLanguageModel, Quantiser
from unimodal.layers import Embedding, Linear, Norm, activate
from unimodal.tokenizers.image import resize_grid
from unimodal.tokens import tokens


@dataclass(frozen=True)
class Context:
    """What a stage may look at besides its input: the parts of the model, the tokens' origin, earlier outputs."""

    heads: Mapping[str, Any]
    tokenizer: Any
    ids: jax.Array
    segment: jax.Array | None
    outputs: Mapping[str, jax.Array]


class Stage(Protocol):
    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        """The modules it needs, by name under `heads`."""
        ...

    def __call__(self, x: jax.Array, context: Context) -> jax.Array: ...


@dataclass(frozen=True)
class Pool:
    """The mean over the real tokens from `start` to `stop`: [B,T,D] → [B,D]. (0, 1) is the first token."""

    start: int = 0
    stop: int | None = 1

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        x = x[:, self.start : self.stop]
        if context.segment is None or self.stop is not None:
            return x.mean(axis=1)
        real = (context.segment[:, self.start :] != 0).astype(jnp.float32)[:, :, None]
        return ((x.astype(jnp.float32) * real).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)).astype(x.dtype)


@dataclass(frozen=True)
class At:
    """One token per row: the first whose id is `id` (or, if None, the largest id: how CLIP once found its end of text)."""

    id: int | None

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        place = context.ids if self.id is None else (context.ids == self.id).astype(jnp.int32)
        return jnp.take_along_axis(x, jnp.argmax(place, axis=1)[:, None, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Last:
    """The last token of the row, padding or not (or, if `real`, the last that is none: by its id if pad_id is given,
    else by the mask). [B,T,D] → [B,D]."""

    real: bool = False
    pad_id: int | None = None

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        real = context.segment if self.pad_id is None else (context.ids != self.pad_id).astype(jnp.int32)
        if real is None or not self.real:
            return x[:, -1]
        slot = jnp.where(real != 0, jnp.arange(x.shape[1], dtype=jnp.int32)[None], 0)
        return jnp.take_along_axis(x, jnp.argmax(slot, axis=1)[:, None, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Both:
    """Two poolings side by side: [B,T,D] → [B,2·D]."""

    first: Pool
    second: Pool

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return jnp.concatenate([self.first(x, context), self.second(x, context)], axis=-1)


@dataclass(frozen=True)
class Dense:
    """A linear layer and, if named, an activation."""

    name: str
    inputs: int
    outputs: int
    activation: str | None = None
    bias: bool = True

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {self.name: Linear((self.inputs,), (self.outputs,), ("embed", "classes"), bias=self.bias, rngs=rngs)}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        x = context.heads[self.name](x)
        return x if self.activation is None else activate(self.activation, x)


@dataclass(frozen=True)
class Normed:
    """A LayerNorm."""

    name: str
    width: int
    epsilon: float
    bias: bool = True

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {self.name: Norm(self.width, epsilon=self.epsilon, bias=self.bias)}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return context.heads[self.name](x)


@dataclass(frozen=True)
class Unit:
    """Scaled to length one."""

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        y = x.astype(jnp.float32)
        return (y * jax.lax.rsqrt(jnp.maximum(jnp.square(y).sum(axis=-1, keepdims=True), 1e-24))).astype(x.dtype)


@dataclass(frozen=True)
class Vocabulary:
    """Logits over the ids (`heads.LanguageModel`)."""

    name: str
    width: int
    vocabulary: int
    tied: bool = True
    bias: bool = False
    soft_cap: float | None = None

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        options: dict[str, Any] = dict(tied=self.tied, bias=self.bias, soft_cap=self.soft_cap)
        return {self.name: LanguageModel(self.width, self.vocabulary, **options, rngs=rngs)}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return context.heads[self.name](x, context.tokenizer.table)


@dataclass(frozen=True)
class MaskedVocabulary:
    """Logits over the ids of masked tokens (`heads.MaskedLanguageModel`)."""

    name: str
    width: int
    vocabulary: int
    activation: str
    epsilon: float
    tied: bool = True

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        head = MaskedLanguageModel(
            self.width,
            self.vocabulary,
            activation=self.activation,
            norm_epsilon=self.epsilon,
            tied=self.tied,
            rngs=rngs,
        )
        return {self.name: head}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return context.heads[self.name](x, context.tokenizer.table)


@dataclass(frozen=True)
class Attended:
    """A learned probe attends to all tokens (`heads.AttentionPool`)."""

    name: str
    config: BackboneConfig

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {self.name: AttentionPool(self.config, rngs=rngs)}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return context.heads[self.name](x)


@dataclass(frozen=True)
class Quantised:
    """Each frame's likeliest codes from a product codebook, side by side (`heads.Quantiser`)."""

    name: str
    channels: int
    groups: int
    codes: int
    size: int

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {self.name: Quantiser(self.channels, self.groups, self.codes, self.size, rngs=rngs)}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        quantiser = context.heads[self.name]
        scores = quantiser.scores(x)
        return quantiser.look_up(jax.nn.one_hot(jnp.argmax(scores, axis=-1), self.codes, dtype=x.dtype))


@dataclass(frozen=True)
class Decoded:
    """A second backbone over the projected tokens and its own position table (He 2022, §3 "MAE decoder"); drops the
    first `drop` tokens. All tokens are given here: what was masked is the caller's matter."""

    name: str
    inputs: int
    length: int
    config: BackboneConfig
    drop: int = 1

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        width = self.config.width
        return {
            f"{self.name}_embed": Linear((self.inputs,), (width,), ("embed", "hidden"), rngs=rngs),
            f"{self.name}_position": Embedding(self.length, width, axes=("place", "embed"), rngs=rngs),
            self.name: Backbone(self.config, rngs=rngs),
        }

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        x = context.heads[f"{self.name}_embed"](x)
        table = context.heads[f"{self.name}_position"].table.get_value()
        if x.shape[1] != self.length:
            # As published: the patches' places are stretched in the order of reading, not over the grid.
            first, places = table[: self.drop], (self.length - self.drop, x.shape[1] - self.drop)
            stretched = resize_grid(table[self.drop :], (1, places[0]), (1, places[1]))
            table = jnp.concatenate([first, stretched])
        x = x + table.astype(x.dtype)[None]
        return context.heads[self.name](tokens(x))[0][:, self.drop :]


class LogScale(nnx.Module):
    """A learned scale kept as its logarithm, and a learned bias if `bias`."""

    def __init__(self, *, bias: bool):
        self.log_scale = nnx.Param(jnp.zeros((), jnp.float32), axes=())
        self.bias = nnx.Param(jnp.zeros((), jnp.float32), axes=()) if bias else None


@dataclass(frozen=True)
class Similarity:
    """Embeddings [A,E] against the output `other` [B,E], scaled (and shifted): [A,B] (Radford 2021; Zhai 2023)."""

    name: str
    other: str
    bias: bool = False

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {self.name: LogScale(bias=self.bias)}

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        learned = context.heads[self.name]
        logits = (x @ context.outputs[self.other].T) * jnp.exp(learned.log_scale.get_value()).astype(x.dtype)
        return logits if learned.bias is None else logits + learned.bias.get_value().astype(x.dtype)
