"""The steps from hidden states to outputs, as a family lists them. What has parameters is a head of `unimodal.heads`, the
class that a task trains, so that `start` can give it to the task as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.backbone import Backbone, BackboneConfig
from unimodal.heads import Embed, LanguageModel, LogitScale, MaskedLanguageModel, Projection, Quantiser, pool
from unimodal.layers import Embedding, Linear, Norm, activate
from unimodal.tokenizers.image import resize_grid
from unimodal.tokens import tokens


@dataclass(frozen=True)
class Context:
    """Everything that a stage may look at besides its input."""

    heads: Mapping[str, Any]  # the model's heads, by name
    tokenizer: Any  # of the tower
    ids: jax.Array  # [B,T] of a text; else the input itself
    segment: jax.Array | None  # [B,T], 0 for padding; None: all is real
    outputs: Mapping[str, jax.Array]  # those computed before, by name


class Stage(Protocol):
    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        """The modules it needs, by name under `heads`."""
        ...

    def __call__(self, x: jax.Array, context: Context) -> jax.Array: ...


@dataclass(frozen=True)
class Bare:
    """A stage without parameters."""

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Headed:
    """A stage that is one module, the head `name`: of a class that tasks train, too."""

    name: str  # of the head, in `model.heads`

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {self.name: self.module(rngs)}

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        raise NotImplementedError

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return context.heads[self.name](x)


@dataclass(frozen=True)
class Pool(Bare):
    """The mean over the real tokens from `start` to `stop`: [B,T,D] → [B,D]. (0, 1) is the first token."""

    start: int = 0  # first token
    stop: int | None = 1  # behind the last token; None: the end

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        real = None if context.segment is None or self.stop is not None else context.segment[:, self.start :]
        return pool(x[:, self.start : self.stop], "mean", real)


@dataclass(frozen=True)
class Last(Bare):
    """The last token of the row: [B,T,D] → [B,D]."""

    real: bool = False  # the last token that is no padding, in place of the last of all
    pad_id: int | None = None  # tells padding by this id; None: by the mask

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        real = context.segment if self.pad_id is None else (context.ids != self.pad_id).astype(jnp.int32)
        return pool(x, "last" if self.real else "final", real)


@dataclass(frozen=True)
class Both(Bare):
    """Two poolings side by side: [B,T,D] → [B,2·D]."""

    first: Pool  # the left half
    second: Pool  # the right half

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return jnp.concatenate([self.first(x, context), self.second(x, context)], axis=-1)


@dataclass(frozen=True)
class Unit(Bare):
    """Scaled to length one."""

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        y = x.astype(jnp.float32)
        return (y * jax.lax.rsqrt(jnp.maximum(jnp.square(y).sum(axis=-1, keepdims=True), 1e-24))).astype(x.dtype)


@dataclass(frozen=True)
class Dense(Headed):
    """A linear layer and, if named, an activation."""

    inputs: int  # width
    outputs: int  # width
    activation: str | None = None  # after it; None: none
    bias: bool = True  # it has one

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return Linear((self.inputs,), (self.outputs,), ("embed", "classes"), bias=self.bias, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        x = context.heads[self.name](x)
        return x if self.activation is None else activate(self.activation, x)


@dataclass(frozen=True)
class Normed(Headed):
    """A LayerNorm."""

    width: int  # of its input
    epsilon: float  # beside the variance
    bias: bool = True  # it has one

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return Norm(self.width, epsilon=self.epsilon, bias=self.bias)


@dataclass(frozen=True)
class _OverIds(Headed):
    """Logits over the ids, which may share the tokenizer's table."""

    head: ClassVar[Any]  # a class of `unimodal.heads`
    width: int  # of hidden states
    vocabulary: int  # how many ids

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        # What a subclass adds are options of its head.
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        return self.head(**options, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return context.heads[self.name](x, context.tokenizer.table)


@dataclass(frozen=True)
class Vocabulary(_OverIds):
    """Logits over the ids."""

    head = LanguageModel
    tied: bool = True  # the last matrix is the tokenizer's table
    bias: bool = False  # one for each id
    soft_cap: float | None = None  # logits stay within ± this, by tanh; None: unbounded


@dataclass(frozen=True)
class MaskedVocabulary(_OverIds):
    """Logits over the ids of masked tokens."""

    head = MaskedLanguageModel
    activation: str  # of the transform before the table
    norm_epsilon: float  # of the norm after it
    tied: bool = True  # the last matrix is the tokenizer's table


@dataclass(frozen=True)
class Embedded(Headed):
    """One embedding of each row."""

    width: int  # of hidden states
    size: int  # of the embedding
    config: Embed  # pooling, norm and projection
    backbone: BackboneConfig  # whose options a pooling by attention has
    part: str = ""  # "pooled" or "projected" for what comes before; "": the embedding of unit length

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return Projection(self.width, self.size, self.config, self.backbone, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        head = context.heads[self.name]
        made = getattr(head, self.part) if self.part else head
        return made(x, context.segment, ids=context.ids).astype(x.dtype)


@dataclass(frozen=True)
class Quantised(Headed):
    """Each frame's likeliest codes from a product codebook, side by side."""

    channels: int  # of the features
    groups: int  # codebooks
    codes: int  # in each codebook
    size: int  # of one code

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return Quantiser(self.channels, self.groups, self.codes, self.size, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        quantiser = context.heads[self.name]
        scores = quantiser.scores(x)
        return quantiser.look_up(jax.nn.one_hot(jnp.argmax(scores, axis=-1), self.codes, dtype=x.dtype))


@dataclass(frozen=True)
class Similarity(Headed):
    """Embeddings [A,E] against the output `other` [B,E], scaled (and shifted): [A,B] (Radford 2021; Zhai 2023)."""

    other: str  # the output that is compared with
    bias: bool = False  # similarities are shifted, too

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return LogitScale(bias=0.0 if self.bias else None)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return context.heads[self.name](x @ context.outputs[self.other].T)


@dataclass(frozen=True)
class Decoded:
    """A second backbone over the projected tokens and its own position table (He 2022, §3 "MAE decoder"); drops the
    first `drop` tokens. All tokens are given here, so what stands for a masked one is kept and not used."""

    name: str  # of the backbone among the heads; its other parts are NAME_embed, NAME_position and NAME_mask
    inputs: int  # width of the encoder
    length: int  # rows of the position table
    config: BackboneConfig  # of the backbone
    drop: int = 1  # tokens at the front that are left out of the output

    def make(self, rngs: nnx.Rngs) -> dict[str, Any]:
        width = self.config.width
        return {
            f"{self.name}_embed": Linear((self.inputs,), (width,), ("embed", "hidden"), rngs=rngs),
            f"{self.name}_position": Embedding(self.length, width, axes=("place", "embed"), rngs=rngs),
            f"{self.name}_mask": Embedding(1, width, axes=("place", "embed"), rngs=rngs),
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
