"""Sentence embeddings: texts that belong together lie together (Reimers 2019; contrastive as in Gao 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.retrieval import mean_reciprocal_rank, recall
from unimodal.evaluation.samples import Sample, TextSample
from unimodal.heads import Projection
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, whole_batch
from unimodal.task import Predictions
from unimodal.tokens import lengths_of

SIDES = ("first", "second")


@dataclass(frozen=True)
class Sentence:
    """InfoNCE between two texts of each record over the global batch, the others' texts being the negatives.

    first, second: the fields that make each text. distinct: phrases of the second that share a word with the first are
    left out, so that spelling alone does not give a pair away. keep: in training, lists of phrases are shuffled and
    each phrase is kept with this probability. pooling: mean, first or last. size: of the embeddings, projected without
    bias. temperature: fixed (Gao 2021, §3: 0.05).
    """

    name: str = "sentence"
    source: str = "embedded:emoji"
    first: tuple[str, ...] = ("name",)
    second: tuple[str, ...] = ("keywords",)
    distinct: bool = True
    keep: float = 0.7
    encoder: str = "bytes"
    batch_size: int = 64
    length: int = 64
    size: int = 128
    weight: float = 1.0
    temperature: float = 0.05
    tokenizer: str = "text"
    backbone: str = "shared"
    pooling: str = "mean"
    metric = "recall@5"
    higher_is_better = True

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        ids = data.ids_spec(self.encoder, self.length, model.tokenizers[self.tokenizer].config.vocabulary)
        return {"first": ids, "second": ids}

    def tokens(self, model: Model) -> int:
        return 2 * self.length

    def dataset(self, model: Model, split: str) -> data.Dataset:
        encoder = data.encoder_for(self.encoder, model.tokenizers[self.tokenizer].config.vocabulary)

        def example(row: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
            return {name: self._ids(encoder, row[name], rng if split == "train" else None) for name in SIDES}

        return data.Dataset(self._pairs(split), example)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"embed": Projection(width, self.size, pooling=self.pooling, rngs=rngs)}

    def embed(self, model: Model, ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """ids [B,T] → unit embeddings [B,size]."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        lengths = lengths_of(ids, data.pad_id(self.encoder))
        tokens = model.tokenizers[self.tokenizer](ids, lengths=lengths, key=keys[0])
        hidden, _ = model.backbones[self.backbone](tokens, key=keys[1])
        return model.heads[self.name]["embed"](hidden, tokens.segment)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        first, second = (self.embed(model, batch[side], jax.random.fold_in(key, i)) for i, side in enumerate(SIDES))
        return whole_batch(clip, first, second, 1 / self.temperature), {}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: self.embed(model, batch[name]) for name in SIDES}

    def score(self, predictions: Predictions) -> dict[str, float]:
        found = recall(predictions["first"], predictions["second"])
        return {
            "value": found["recall@5"],
            **found,
            "reciprocal_rank": mean_reciprocal_rank(predictions["first"], predictions["second"]),
        }

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        # Before the first step, texts that share letters already lie closer together than by chance.
        chance = chance_recall(len(self._pairs("validation")), 5)
        return max((chance, "chance"), (untrained["value"], "the untrained model"))

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        rows = self._pairs("validation").records
        first, second = ([", ".join(row[side]) for row in rows] for side in SIDES)
        shown: list[Sample] = []
        for i in np.linspace(0, len(rows) - 1, 8).astype(int):
            near = (predictions["second"] @ predictions["first"][i]).argsort()[::-1][:3]
            shown.append(TextSample(first[i], " | ".join(second[k] for k in near), second[i]))
        return shown

    def _pairs(self, split: str) -> data.Rows:
        source = data.open_source(self.source, split)
        what = f"{self.source} {split}"
        return data.text_pairs(source, self.first, self.second, distinct=self.distinct, what=what)

    def _ids(self, encoder: data.Encoder, texts: list[str], rng: np.random.Generator | None) -> np.ndarray:
        kept = texts if rng is None else data.some_phrases(texts, rng, self.keep)
        return data.pair_row(encoder, self.length, encoder.encode(", ".join(kept)))[0]
