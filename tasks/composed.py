"""Composed search: find what a picture becomes when it is changed as words say (Vo 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.answers import Answer, Asked, composed_answers
from unimodal.data.blocks import Changes, Inputs, Texts, columns
from unimodal.evaluation.composition import compositions
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.heads import Embed, LogitScale, Projection
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, WholeBatch, clip, ratio
from unimodal.tokens import concat, lengths_of, segment_of, tokens


@dataclass(frozen=True)
class Composed:
    """A picture and words in one row of tokens make a query, pictures alone are what it is looked for among, and one head
    embeds both. InfoNCE over the global batch, in which other changes of a picture and the picture itself are rivals."""

    name: str = "composed"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    pictures: Changes = Changes()  # pictures, and what becomes of them
    texts: Texts = Texts(length=32)  # the words that say how
    batch_size: int = 32  # pictures of one global batch; each comes with all of its changes
    weight: float = 1.0  # of the loss among the tasks'
    size: int = 64  # of the embeddings
    head: Embed = Embed()  # from hidden states to an embedding
    temperature: float = 0.07  # to start from; it is learned
    words_alone: float = 0.1  # share of queries in training without their picture, so that words also search alone
    image_tokenizer: str = "image"  # one of the config's tokenizers, by name
    text_tokenizer: str = "text"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name

    def inputs(self, model: Model) -> Inputs:
        c, words = (model.tokenizers[name].config for name in (self.image_tokenizer, self.text_tokenizer))
        return columns(self.source, self.pictures.triplets(self.texts, c.image_size, c.channels, words.vocabulary))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        config = model.backbones[self.backbone].config
        embed = Projection(config.width, self.size, self.head, config, rngs=rngs)
        return {"embed": embed, "temperature": LogitScale(1 / self.temperature, most=100.0)}

    def picture(self, model: Model, image: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pictures [B,H,W,C] → embeddings [B,size]."""
        hidden, read = model.hidden(self.image_tokenizer, self.backbone, image, key=key)
        return model.heads[self.name]["embed"](hidden, read.segment)

    def query(
        self, model: Model, image: jax.Array, ids: jax.Array, seen: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Pictures [B,H,W,C], `seen` [B,V] or not, and V sets of words for each, ids [B,V,T] → embeddings [B,V,size]."""
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        batch, many, length = ids.shape
        pixels = model.tokenizers[self.image_tokenizer](image, key=keys[0])
        x = jnp.repeat(pixels.x, many, axis=0)
        shown = jnp.broadcast_to(seen.reshape(-1, 1), x.shape[:2]).astype(jnp.int32)
        ids = ids.reshape(-1, length)
        words = model.tokenizers[self.text_tokenizer](ids, lengths=lengths_of(ids, self.texts.pad), key=keys[1])
        row = concat(tokens(x, segment=shown, modality="image"), words)
        hidden, _ = model.backbones[self.backbone](row, key=keys[2])
        return model.heads[self.name]["embed"](hidden, segment_of(row)).reshape(batch, many, -1)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        keys = jax.random.split(key, 3)
        seen = ~jax.random.bernoulli(keys[0], self.words_alone, batch["looks"].shape)
        rows = {"query": self.query(model, batch["image"], batch["ids"], seen, keys[1]), "looks": batch["looks"]}
        rows |= self.gallery(model, batch, keys[2])
        scale = model.heads[self.name]["temperature"].scale
        return WholeBatch(told_apart, rows=rows, shared=(scale,)), {"scale": scale}

    def gallery(self, model: Model, batch: Batch, key: jax.Array | None = None) -> dict[str, jax.Array]:
        """Embeddings of what is searched: `target` [B,V,size], the changed pictures, and `picture` [B,size]."""
        everything = jnp.concatenate([batch["image"][:, None], batch["changed"]], axis=1)
        found = self.picture(model, everything.reshape(-1, *everything.shape[2:]), key)
        found = found.reshape(*everything.shape[:2], -1)
        return {"picture": found[:, 0], "target": found[:, 1:], "before": batch["before"]}

    def predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        ways = {"query": True, "words": False}
        found = {
            name: self.query(model, batch["image"], batch["ids"], jnp.full(batch["looks"].shape, seen))
            for name, seen in ways.items()
        }
        return {**found, **self.gallery(model, batch), "looks": batch["looks"]}

    def evaluations(self) -> dict[str, Evaluation]:
        return compositions(self, self.inputs)

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        def composed(model: Model, batch: Batch, seen: bool = True) -> jax.Array:
            here = jnp.full((batch["ids"].shape[0], 1), seen)
            return self.query(model, batch["image"], batch["ids"][:, None], here)[:, 0]

        def alone(model: Model, batch: Batch) -> jax.Array:
            c = model.tokenizers[self.image_tokenizer].config
            nothing = jnp.zeros((batch["ids"].shape[0], *c.image_size, c.channels))
            return composed(model, {**batch, "image": nothing}, seen=False)

        return composed_answers(self, model, lambda m, b: self.picture(m, b["image"]), alone, composed)


def told_apart(_: Any, rows: Batch, shared: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the whole batch: every query with its own target among all targets and all pictures as they were."""
    query, target = (rows[name].reshape(-1, rows[name].shape[-1]) for name in ("query", "target"))
    looks, more = rows["looks"].reshape(-1), rows["picture"]
    losses, sums = clip(query, target, shared[0], ids_B=looks, more_ND=more, more_ids_N=rows["before"])
    return losses.mean(), {"accuracy": ratio(sums["correct_a_to_b"], sums["examples"])}
