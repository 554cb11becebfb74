"""BERT: recover hidden tokens, and tell whether two stretches of text follow each other (Devlin 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal.answers import Answer, Asked, masked_answer, text_features, text_row
from unimodal.data.blocks import Inputs, Texts
from unimodal.data.blocks.documents import masked_rows
from unimodal.errors import UsageError
from unimodal.evaluation.classification import among_the_likeliest
from unimodal.evaluation.evaluation import Batch, Evaluation, on_own_data
from unimodal.evaluation.likelihood import bigram, bits_per_byte, likelihood_rows
from unimodal.evaluation.show.texts import filled_gaps
from unimodal.evaluation.summed import Summed
from unimodal.heads import MaskedLanguageModel, PooledClassifier
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, chunked_cross_entropy, classification_loss, masked_lm
from unimodal.tokens import lengths_of


@dataclass(frozen=True)
class Bert:
    """Masked language modelling on windows of text, and, if asked, next-sentence prediction on pairs of stretches."""

    name: str = "bert"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:book"  # a data source, see `data.sources`
    texts: Texts = Texts()  # the texts
    rate: float = 0.15  # of the ids are predicted: 80 % hidden, 10 % replaced, 10 % as they are
    whole_words: bool = False  # all of a word's ids are hidden, or none
    next_sentence: bool = False  # rows are `[CLS] a [SEP] b [SEP]`; whether b follows a is a second loss
    batch_size: int = 16  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "text"  # for next sentences, one with two `types`
    backbone: str = "shared"  # one of the config's backbones, by name
    tied: bool = True  # the embedding table serves as output weights, too
    chunk: int = 0  # positions of a row whose logits exist at a time, for large vocabularies and long rows; 0: all

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise UsageError(f"tasks.{self.name}.chunk must be 0 (all logits at once) or more, but is {self.chunk}")

    def inputs(self, model: Model) -> Inputs:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        how: dict[str, Any] = dict(rate=self.rate, whole_words=self.whole_words, next_sentence=self.next_sentence)
        return masked_rows(self.source, self.texts, vocabulary, **how)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width, text = model.backbones[self.backbone].config.width, model.tokenizers[self.tokenizer].config
        language = MaskedLanguageModel(width, text.vocabulary, tied=self.tied, rngs=rngs)
        heads: dict[str, nnx.Module] = {"language": language}
        if self.next_sentence:
            heads["next_sentence"] = PooledClassifier(width, 2, rngs=rngs)
        return heads

    def hidden(self, model: Model, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """[B,T,D]."""
        lengths = lengths_of(batch["inputs"], self.texts.pad)
        types = batch.get("types") if self.next_sentence and model.tokenizers[self.tokenizer].config.types else None
        return model.hidden(self.tokenizer, self.backbone, batch["inputs"], key=key, lengths=lengths, types=types)[0]

    def logits(self, model: Model, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
        """Logits of the hidden ids [B,T,V], and of whether the second stretch follows [B,2]."""
        hidden, heads = self.hidden(model, batch, key), model.heads[self.name]
        language = heads["language"](hidden, model.tokenizers[self.tokenizer].table)
        return language, heads["next_sentence"](hidden) if self.next_sentence else None

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        targets, weights = batch["targets"], batch["weights"]
        if self.chunk:
            hidden = self.hidden(model, batch, key)
            x, kernel, bias = self.factors(model, hidden)
            _, sums = chunked_cross_entropy(x, kernel, targets, weights, chunk=self.chunk, bias_V=bias)
            following = model.heads[self.name]["next_sentence"](hidden) if self.next_sentence else None
        else:
            language, following = self.logits(model, batch, key)
            _, sums = masked_lm(language, targets, weights)
        loss = Mean(sums["objective"], sums["tokens"])
        metrics = {"accuracy": Mean(sums["correct"], sums["tokens"])}
        if following is None:
            return loss, metrics
        second, found = classification_loss(following, batch["next"])
        return (loss, second), {**metrics, "next_accuracy": found["accuracy"]}

    def factors(self, model: Model, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The factors of the hidden ids' logits (see `heads.LanguageModel.factors`)."""
        return model.heads[self.name]["language"].factors(hidden, model.tokenizers[self.tokenizer].table)

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        logits = lambda m, batch: self.logits(m, batch)[0]  # noqa: E731
        words = masked_answer(self.texts, vocabulary, logits, asked, specials=self.next_sentence)
        return [words, text_features(self, text_row(self.texts, vocabulary, "inputs"), self.hidden, "inputs")]

    def evaluations(self) -> dict[str, Evaluation]:
        likelihood = Summed(
            metric="bits per masked byte",
            higher_is_better=False,
            **on_own_data(self),
            finish=self._score,
            against=bigram(self.source, self.texts),
            show=filled_gaps(self.texts),
        )
        return {self.name: likelihood}

    def predict(self, model: Model, batch: Batch) -> dict[str, jax.Array]:
        hidden, chunk = self.hidden(model, batch), self.chunk or self.texts.length
        counted = batch["targets"], batch["weights"], batch["bytes"]
        found = likelihood_rows(self.factors(model, hidden), *counted, chunk=chunk)
        if self.next_sentence:
            logits = model.heads[self.name]["next_sentence"](hidden).astype(jnp.float32)
            found["next"] = among_the_likeliest(logits, batch["next"]) + 0.0 * logits.sum(axis=-1)  # NaN stays
        return found

    def _score(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        found = bits_per_byte(sums)
        return found | ({"next_accuracy": float(sums["next"] / sums["examples"])} if "next" in sums else {})
