"""What tasks share that compare views of a picture (SimCLR, MoCo, SwAV): features of views, and a projector.

`inputs`, `features` and `evaluations` are methods of such a task, which has the fields `source`, `views`, `batch_size`,
`tokenizer`, `backbone` and `pooling`: it takes them by `features = joint_embedding.features`.

The projector is for the objective only: what is kept of a run are the features before it (Chen 2020, §4.2). Its batch
norm takes the statistics of the batch it is given, and of no other. So a task runs it where all of the global batch is:
inside the judge of a `WholeBatch` term, whose `shared` may hold modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.data.blocks import Inputs, Views, columns
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.evaluation.views import view_retrieval
from unimodal.heads import pool
from unimodal.layers import Linear, Norm, activate
from unimodal.model import Model

NORMS = ("batch", "layer", "none")


@dataclass(frozen=True)
class Projector:
    """Shape of an MLP between features and embeddings. By default SimCLR's, but narrower (Chen 2020, appendix B.9)."""

    layers: int = 2  # linear layers; MoCo v3 has 3, its predictor 2
    hidden: int = 256  # width between them; papers: 2048 (SimCLR, MoCo v2, SwAV) or 4096 (MoCo v3)
    size: int = 64  # of the embeddings; papers: 128 (SimCLR, MoCo v2, SwAV) or 256 (MoCo v3)
    # After each linear layer but the last: over the global batch, over the features of each example, or none. Layer norm
    # compares no examples, so it also suits batches too small for statistics.
    norm: str = "batch"
    last_norm: bool = False  # one after the last, too, without scale and bias (MoCo v3)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"a projector's norm must be one of {', '.join(NORMS)}, but is {self.norm!r}")
        if min(self.layers, self.hidden, self.size) < 1:
            raise UsageError(
                f"a projector needs layers, hidden and size of 1 or more, but has {self.layers}, {self.hidden}, {self.size}"
            )
        if self.last_norm and self.norm == "none":
            raise UsageError("a projector with last_norm needs norm=batch or norm=layer")


class BatchNorm(nnx.Module):
    """Normalise over all dimensions but the last by the statistics of what it is given, in float32 (Ioffe 2015).

    Where the batch is sharded over devices, the statistics are those of all of it. learned: a scale and a bias follow.
    """

    def __init__(self, size: int, *, epsilon: float = 1e-5, learned: bool = True):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((size,)), axes=("hidden",), kind="vector") if learned else None
        self.bias = nnx.Param(jnp.zeros((size,)), axes=("hidden",), kind="vector") if learned else None

    def __call__(self, x: jax.Array) -> jax.Array:
        axes = tuple(range(x.ndim - 1))
        y = x.astype(jnp.float32)
        y = y - y.mean(axis=axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=axes, keepdims=True) + self.epsilon)
        if self.scale is not None and self.bias is not None:
            where = (1,) * (y.ndim - 1) + (y.shape[-1],)
            y = y * self.scale.get_value().reshape(where) + self.bias.get_value().reshape(where)
        return y.astype(x.dtype)


class Mlp(nnx.Module):
    """features [..., D] → embeddings [..., size], as a `Projector` says, with ReLU in between."""

    def __init__(self, width: int, config: Projector, *, rngs: nnx.Rngs):
        c, last = config, config.layers - 1
        widths = [width, *[c.hidden] * last, c.size]
        bias = c.norm == "none"  # a norm takes away what a bias adds
        # No layer is named after a mesh axis of the backbone: these are small, and their width need not divide.
        axes = [("embed", "hidden"), *[("hidden", "embed")] * last]
        self.linear = nnx.List(
            Linear((widths[i],), (widths[i + 1],), axes[i], bias=bias or i == last and not c.last_norm, rngs=rngs)
            for i in range(c.layers)
        )
        normed = c.norm != "none"
        self.norm = nnx.List([_norm(c.norm, c.hidden) for _ in range(last if normed else 0)])
        self.last_norm = _norm(c.norm, c.size, learned=False) if c.last_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        for i, linear in enumerate(self.linear):
            x = linear(x)
            if i < len(self.linear) - 1:
                x = activate("relu", self.norm[i](x) if len(self.norm) else x)
        return x if self.last_norm is None else self.last_norm(x)


class Prototypes(nnx.Module):
    """Embeddings of unit length [..., D] → cosines with K learned prototypes [..., K] (Caron 2020, §3.1).

    Prototypes are scaled to unit length each time they are used. They begin about as long, since an optimizer whose steps
    have a size of their own, as Adam's have, would turn longer ones more slowly.
    """

    def __init__(self, size: int, count: int, *, rngs: nnx.Rngs):
        table = jax.random.normal(rngs.params(), (size, count)) / math.sqrt(size)
        self.table = nnx.Param(table, axes=("embed", "classes"), kind="matrix")

    def __call__(self, x: jax.Array) -> jax.Array:
        table = self.table.get_value().astype(jnp.float32)
        table = table * jax.lax.rsqrt(jnp.maximum(jnp.square(table).sum(axis=0, keepdims=True), 1e-12))
        return jnp.einsum("...d,dk->...k", x.astype(jnp.float32), table, precision=jax.lax.Precision.HIGHEST)


def _norm(kind: str, size: int, *, learned: bool = True) -> nnx.Module:
    # Of layer norm there is no form without scale and bias.
    return BatchNorm(size, learned=learned) if kind == "batch" else Norm(size, epsilon=1e-5)


def check_pair(name: str, views: Views) -> None:
    """Raises UsageError for a task that compares two views, but would be given others."""
    if (views.count, views.small) != (2, 0):
        raise UsageError(
            f"{name} compares two views of a picture, but {name}.views has count={views.count} and small={views.small}"
        )


def inputs(task: Any, model: Model) -> Inputs:
    """Views of pictures, as the task's tokenizer takes them."""
    c = model.tokenizers[task.tokenizer].config
    if task.views.small:
        c.tiled(task.views.small_size, f"{task.name}.views.small_size")
    return columns(task.source, task.views.part(c.image_size, c.channels))


def features(task: Any, model: Model, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """Views of a batch, [B,V,H,W,C], and small ones if there are any → pooled hidden states [B,V,D], small ones last.

    `key` turns dropout on; each kind of view draws its own. Raises UsageError for small views where the tokenizer takes one
    size only.
    """
    read = model.tokenizers[task.tokenizer]
    found, c = [], read.config
    for number, pixels in enumerate(batch[name] for name in ("views", "small_views") if name in batch):
        outer = None if key is None else jax.random.fold_in(key, number)
        inner = None if outer is None else jax.random.fold_in(outer, 1)
        count, size = pixels.shape[:2], pixels.shape[2:4]
        if size != tuple(c.image_size) and not c.resize:
            raise UsageError(
                f"views of {size[0]}x{size[1]} pixels need tokenizers.{task.tokenizer}.resize=True, as its image_size is "
                f"{c.image_size[0]}x{c.image_size[1]}"
            )
        tokens = read(pixels.reshape(-1, *pixels.shape[2:]), key=inner)
        hidden, _ = model.backbones[task.backbone](tokens, key=outer)
        found.append(pool(hidden, task.pooling).reshape(*count, -1))
    return jnp.concatenate(found, axis=1)


def evaluations(task: Any) -> dict[str, Evaluation]:
    """Whether features of a view find the other view of its picture."""
    return {task.name: view_retrieval(task.features, task.inputs, task.batch_size)}
