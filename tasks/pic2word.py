"""A picture as a word of a trained CLIP, so that words can be said about it without triplets (Pic2Word, Saito 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import dual_encoder
from unimodal.answers import Answer, Asked, composed_answers
from unimodal.data.blocks import Changes, Inputs, Texts, columns
from unimodal.evaluation.composition import compositions
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.heads import Embed, LogitScale
from unimodal.joint_embedding import Mlp, Projector
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, whole_batch
from unimodal.tokens import lengths_of


@dataclass(frozen=True)
class Pic2word:
    """A network that writes a picture's embedding as one token, whose text embedding is then the picture's own (§3.2).

    Pictures alone train it. CLIP itself stays as it is: freeze its parts.
    """

    name: str = "pic2word"  # a CLIP of this name in `init_from` fills its heads
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    pictures: Changes = Changes()  # the pictures; for evaluation, and what becomes of them
    texts: Texts = Texts(length=32)  # the words that say how
    before: str = ""  # what is said before the picture: the paper has "a photo of"
    batch_size: int = 32  # pictures of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    image_tokenizer: str = "image"  # one of the config's tokenizers, by name
    text_tokenizer: str = "text"  # one of the config's tokenizers, by name
    image_backbone: str = "image"  # one of the config's backbones, by name
    text_backbone: str = "text"  # one of the config's backbones, by name
    size: int = 64  # of the embeddings
    image_head: Embed = Embed()  # as in the CLIP
    text_head: Embed = Embed()  # as in the CLIP
    causal: bool = False  # as in the CLIP
    word: Projector = Projector(layers=3, hidden=512, norm="none")  # the network; its `size` is the text's width

    # What `dual_encoder` asks of a task that compares pictures and texts.
    pair, fill = ("image", "text"), None
    embed_one = dual_encoder.embed_one
    __post_init__ = dual_encoder.check

    def inputs(self, model: Model) -> Inputs:
        c = model.tokenizers[self.image_tokenizer].config
        return columns(self.source, self.pictures.part(c.image_size, c.channels))

    def triplets(self, model: Model) -> Inputs:
        """What evaluation sees: pictures, words, and what they make of the pictures."""
        c, words = (model.tokenizers[name].config for name in (self.image_tokenizer, self.text_tokenizer))
        return columns(self.source, self.pictures.triplets(self.texts, c.image_size, c.channels, words.vocabulary))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        shape = replace(self.word, size=model.backbones[self.text_backbone].config.width)
        read = dual_encoder.encoders(self, model, rngs)
        return {**read, "temperature": LogitScale(1 / 0.07, most=100.0), "word": Mlp(self.size, shape, rngs=rngs)}

    def said(self, model: Model, picture: jax.Array, ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Embeddings of pictures [B,size] and words about them, ids [B,T] → the text encoder's embeddings [B,size].

        The picture's word stands before the words, behind `before` and whatever opens a text of the vocabulary.
        """
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        tokenizer, encoder = model.tokenizers[self.text_tokenizer], self.texts.opened
        opened = 0 if self.texts.encoder == "bytes" else len(encoder.around.before)
        told = jnp.asarray(encoder.encode(self.before), jnp.int32)[None].repeat(len(ids), axis=0)
        gap = jnp.full((len(ids), 1), self.texts.pad, jnp.int32)  # where the picture's word comes
        row = jnp.concatenate([ids[:, :opened], told, gap, ids[:, opened:]], axis=1)
        place = opened + told.shape[1]
        word = model.heads[self.name]["word"](picture)
        x = tokenizer.table(row).at[:, place].set(word)
        lengths = lengths_of(ids, self.texts.pad) + told.shape[1] + 1
        tokens = tokenizer(row, rows=x, causal=self.causal, lengths=lengths, key=keys[0])
        hidden, _ = model.backbones[self.text_backbone](tokens, key=keys[1])
        return model.heads[self.name]["text"](hidden, tokens.segment, ids=row)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        keys = jax.random.split(key)
        picture = jax.lax.stop_gradient(self.embed_one(model, "image", batch, keys[0]))
        scale = model.heads[self.name]["temperature"].scale
        nothing = jnp.asarray(self.texts.row(self.texts.opened, ""))[None].repeat(len(picture), axis=0)
        return whole_batch(clip, self.said(model, picture, nothing, keys[1]), picture, scale), {"scale": scale}

    def predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        many = batch["ids"].shape[1]
        ids, changed = (batch[name].reshape(-1, *batch[name].shape[2:]) for name in ("ids", "changed"))
        picture, target = (self.embed_one(model, "image", {"image": x}) for x in (batch["image"], changed))
        found = {"query": self.said(model, picture.repeat(many, axis=0), ids), "target": target}
        found["words"] = self.embed_one(model, "text", {"ids": ids})
        found = {name: x.reshape(-1, many, x.shape[-1]) for name, x in found.items()}
        return {**found, "picture": picture, "looks": batch["looks"], "before": batch["before"]}

    def evaluations(self) -> dict[str, Evaluation]:
        return compositions(self, self.triplets)

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        seen = lambda m, b: self.embed_one(m, "image", b)  # noqa: E731
        words = lambda m, b: self.embed_one(m, "text", b)  # noqa: E731
        return composed_answers(self, model, seen, words, lambda m, b: self.said(m, seen(m, b), b["ids"]))
