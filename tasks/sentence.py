"""Sentence embeddings: texts that belong together lie together (Reimers 2019; contrastive as in Gao 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from flax import nnx

from unimodal.answers import TEXT, Answer, Asked, embedding_answer, pair_text_row
from unimodal.data.blocks import Inputs, Texts
from unimodal.data.blocks.pairs import TextPairs
from unimodal.evaluation.evaluation import Batch, Evaluation, on_own_data
from unimodal.evaluation.retrieval import Retrieval
from unimodal.evaluation.show.texts import near_texts
from unimodal.heads import Embed, Projection
from unimodal.layers import split_key
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, row_codes, whole_batch
from unimodal.tokens import lengths_of

SIDES = TextPairs.SIDES


@dataclass(frozen=True)
class Sentence:
    """InfoNCE between two texts of each record over the global batch, the others' texts being the negatives."""

    name: str = "sentence"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    texts: Texts = Texts(column="name", length=64)  # the first text, and how both are encoded
    second: str = "keywords"  # the column of the other text, or of a list of phrases; "a+b" joins several
    distinct: bool = True  # leave out phrases of the second that share a word with the first: spelling gives them away
    keep: float = 0.7  # in training, lists of phrases are shuffled, and each phrase is kept with this probability
    batch_size: int = 64  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "text"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    size: int = 128  # of the embeddings, projected without bias
    temperature: float = 0.05  # fixed (Gao 2021, §3)
    pooling: str = "mean"  # of the tokens: mean, first or last

    @property
    def pairs(self) -> TextPairs:
        """The data."""
        return TextPairs(self.source, self.texts, self.second, self.distinct, self.keep)

    def inputs(self, model: Model) -> Inputs:
        return self.pairs.inputs(model.tokenizers[self.tokenizer].config.vocabulary)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"embed": Projection(width, self.size, Embed(self.pooling), rngs=rngs)}

    def embed(self, model: Model, ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """ids [B,T] → unit embeddings [B,size]."""
        keys, lengths = split_key(key, 2), lengths_of(ids, self.texts.pad)
        hidden, tokens = model.hidden(self.tokenizer, self.backbone, ids, key=(keys[0], keys[1]), lengths=lengths)
        return model.heads[self.name]["embed"](hidden, tokens.segment)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        first, second = (self.embed(model, batch[side], jax.random.fold_in(key, i)) for i, side in enumerate(SIDES))
        return whole_batch(clip, first, second, 1 / self.temperature, ids_B=row_codes(batch["second"])), {}

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        row = pair_text_row(self.texts, model.tokenizers[self.tokenizer].config.vocabulary)
        return [embedding_answer(TEXT, row, lambda m, batch: self.embed(m, batch["ids"]))]

    def evaluations(self) -> dict[str, Evaluation]:
        retrieval = Retrieval(
            **on_own_data(self),
            against=self._against,
            show=near_texts(self.pairs.rows),
        )
        return {self.name: retrieval}

    def predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        embedded = {side: self.embed(model, batch[side]) for side in SIDES}
        return {**embedded, "same": row_codes(batch["second"])}

    def _against(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        # Before the first step, texts that share letters already lie closer together than by chance.
        return max((untrained["chance"], "chance"), (untrained["value"], "the untrained model"))
