"""VirTex: learn to see by writing captions, forward and backward (Desai & Johnson 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.answers import Answer, Asked, caption_answer, picture_features, picture_row
from unimodal.data.blocks import Captions, Images, Inputs, columns
from unimodal.decoding import beam_decode
from unimodal.evaluation.captioning import caption_evaluations, foreseen
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.generate import text_decoder
from unimodal.heads import LanguageModel
from unimodal.layers import Embedding
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, caption_targets, cross_entropy
from unimodal.tokens import Tokens, concat, tokens

DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Virtex:
    """Captions after their picture in one backbone: the picture sees itself, a word the picture and the words before it."""

    name: str = "virtex"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images()  # the pictures
    texts: Captions = Captions(length=32)  # the captions; longer ones are cut
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    image_tokenizer: str = "image"  # one of the config's tokenizers, by name
    text_tokenizer: str = "text"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    backward: bool = True  # captions are also written from their end, with a start token of its own (§3)
    tied: bool = True  # the embedding table serves as output weights, too
    beams: int = 5  # of the captions that are written for evaluation

    def inputs(self, model: Model) -> Inputs:
        c, words = (model.tokenizers[name].config for name in (self.image_tokenizer, self.text_tokenizer))
        return columns(self.source, self.images.part(c.image_size, c.channels), self.texts.part(words.vocabulary))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        words = model.tokenizers[self.text_tokenizer].config.vocabulary
        return {
            "start": Embedding(len(DIRECTIONS), width, axes=("place", "embed"), rngs=rngs),
            "language": LanguageModel(width, words, tied=self.tied, rngs=rngs),
        }

    def prefix(self, model: Model, image: jax.Array, direction: str, key: jax.Array | None = None) -> Tokens:
        """A picture [B,H,W,C], then the start token of a direction."""
        table = model.heads[self.name]["start"](jnp.full((image.shape[0], 1), DIRECTIONS.index(direction), jnp.int32))
        pixels = model.tokenizers[self.image_tokenizer](image, key=key)
        return concat(pixels, tokens(table.astype(pixels.x.dtype), causal=True, modality="text"))

    def logits(
        self, model: Model, image: jax.Array, ids: jax.Array, direction: str, key: jax.Array | None = None
    ) -> jax.Array:
        """Pictures [B,H,W,C] and their captions' ids [B,T] in the order they are written → [B,T,V] for each of them."""
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        tokenizer = model.tokenizers[self.text_tokenizer]
        row = concat(self.prefix(model, image, direction, keys[0]), tokenizer(ids[:, :-1], causal=True, key=keys[1]))
        hidden, _ = model.backbones[self.backbone](row, key=keys[2])
        return model.heads[self.name]["language"](hidden[:, -ids.shape[1] :], tokenizer.table)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        losses, metrics = [], {}
        for number, direction in enumerate(DIRECTIONS if self.backward else DIRECTIONS[:1]):
            targets, weights = caption_targets(batch["ids"], self.texts.pad, backward=direction == "backward")
            logits = self.logits(model, batch["image"], targets, direction, jax.random.fold_in(key, number))
            _, sums = cross_entropy(logits, targets, weights)
            losses.append(Mean(sums["objective"], sums["tokens"]))
            metrics[f"{direction}_accuracy"] = Mean(sums["correct"], sums["tokens"])
        return tuple(losses), metrics

    def write(self, model: Model, image: jax.Array, direction: str = "forward") -> tuple[jax.Array, jax.Array]:
        """Captions by beam search: ids [B,beams,T] in the order they are written, best first, and their log-probabilities."""
        tokenizer, language = model.tokenizers[self.text_tokenizer], model.heads[self.name]["language"]
        decoder = text_decoder(model.backbones[self.backbone], tokenizer, language)
        ends: dict[str, Any] = dict(steps=self.texts.length, stop=(self.texts.end,), fill=self.texts.pad)
        return beam_decode(decoder, self.prefix(model, image, direction), beams=self.beams, place=0, **ends)

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        picture = picture_row(self.images, model.tokenizers[self.image_tokenizer].config)
        words = model.tokenizers[self.text_tokenizer].config.vocabulary
        return [caption_answer(self.texts, words, picture, self.write), *picture_features(self, model)]

    def evaluations(self) -> dict[str, Evaluation]:
        about = (self.name, self.source, self.images, self.texts, self.foresee, self.write)
        return caption_evaluations(*about, inputs=self.inputs, batch_size=self.batch_size)

    def foresee(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        """Measure how well a caption's tokens are foreseen after its picture, and after another example's."""
        targets, weights = caption_targets(batch["ids"], self.texts.pad)
        logits = [self.logits(model, jnp.roll(batch["image"], n, axis=0), targets, "forward") for n in (0, 1)]
        own, other = (foreseen(each, targets, weights) for each in logits)
        return {**own, "other_correct": other["correct"]}
