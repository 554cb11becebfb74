"""Sentence embeddings: texts that belong together lie together (Reimers 2019; contrastive as in Gao 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.answers import TEXT, Answer, Asked, embedding_answer, spoken
from unimodal.data.blocks import Inputs, Texts
from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.evaluation import Evaluation, Shown
from unimodal.evaluation.retrieval import Retrieval
from unimodal.evaluation.samples import Sample, TextSample
from unimodal.heads import Embed, Projection
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, row_codes, whole_batch
from unimodal.tokens import lengths_of

SIDES = ("first", "second")


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
    size: int = 128  # of the embeddings, projected without bias
    weight: float = 1.0  # of the loss among the tasks'
    temperature: float = 0.05  # fixed (Gao 2021, §3)
    tokenizer: str = "text"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    pooling: str = "mean"  # of the tokens: mean, first or last

    def inputs(self, model: Model) -> Inputs:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        ids = self.texts.spec(vocabulary)

        def dataset(split: str) -> data.Dataset:
            encoder = data.encoder_for(self.texts.encoder, vocabulary)

            def example(row: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
                return {side: self._ids(encoder, row[side], rng if split == "train" else None) for side in SIDES}

            return data.Dataset(self._pairs(split), example)

        return Inputs({side: ids for side in SIDES}, dataset)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"embed": Projection(width, self.size, Embed(self.pooling), rngs=rngs)}

    def embed(self, model: Model, ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """ids [B,T] → unit embeddings [B,size]."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        lengths = lengths_of(ids, self.texts.pad)
        tokens = model.tokenizers[self.tokenizer](ids, lengths=lengths, key=keys[0])
        hidden, _ = model.backbones[self.backbone](tokens, key=keys[1])
        return model.heads[self.name]["embed"](hidden, tokens.segment)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        first, second = (self.embed(model, batch[side], jax.random.fold_in(key, i)) for i, side in enumerate(SIDES))
        return whole_batch(clip, first, second, 1 / self.temperature, ids_B=row_codes(batch["second"])), {}

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary

        def row(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return {
                "ids": self._ids(data.encoder_for(self.texts.encoder, vocabulary), [spoken(self.texts, record)], None)
            }

        return [embedding_answer(TEXT, row, lambda m, batch: self.embed(m, batch["ids"]))]

    def evaluations(self) -> dict[str, Evaluation]:
        retrieval = Retrieval(
            inputs=self.inputs,
            predict=self.predict,
            batch_size=self.batch_size,
            against=self._against,
            show=self.samples,
        )
        return {self.name: retrieval}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        embedded = {side: self.embed(model, batch[side]) for side in SIDES}
        return {**embedded, "same": row_codes(batch["second"])}

    def _against(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        # Before the first step, texts that share letters already lie closer together than by chance.
        chance = chance_recall(len(self._pairs("validation")), 5)
        return max((chance, "chance"), (untrained["value"], "the untrained model"))

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        rows, places, second = self._pairs("validation").records, shown.tally.all("index"), shown.tally.all("second")
        found: list[Sample] = []
        for i, embedding in zip(shown.index, shown.rows["first"], strict=True):
            near = [rows[int(places[k])] for k in (second @ embedding).argsort()[::-1][:3]]
            asked, truth = (", ".join(rows[int(i)][side]) for side in SIDES)
            found.append(TextSample(asked, " | ".join(", ".join(row["second"]) for row in near), truth))
        return found

    def _pairs(self, split: str) -> data.Rows:
        source = data.open_source(self.source, split)
        what = f"{self.source} {split}"
        return data.text_pairs(
            source, self.texts.column.split("+"), self.second.split("+"), distinct=self.distinct, what=what
        )

    def _ids(self, encoder: data.Encoder, texts: list[str], rng: np.random.Generator | None) -> np.ndarray:
        kept = texts if rng is None else data.some_phrases(texts, rng, self.keep)
        return data.pair_row(encoder, self.texts.length, encoder.encode(", ".join(kept)))[0]
