"""BERT: recover hidden tokens, and tell whether two stretches of text follow each other (Devlin 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.data.blocks import Inputs, Texts
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation, Shown
from unimodal.evaluation.likelihood import bigram, bits_per_byte, likelihood_rows
from unimodal.evaluation.samples import FilledText, Sample
from unimodal.evaluation.summed import Summed
from unimodal.heads import MaskedLanguageModel, PooledClassifier
from unimodal.model import Model
from unimodal.objectives import (
    Loss,
    Mean,
    TaskMetrics,
    chunked_cross_entropy,
    masked_lm,
    softmax_classification,
)
from unimodal.tokens import lengths_of


@dataclass(frozen=True)
class Bert:
    """Masked language modelling on windows of text, and, if asked, next-sentence prediction on pairs of stretches."""

    name: str = "bert"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:book"  # a data source, see `data.sources`
    texts: Texts = Texts()  # the texts
    batch_size: int = 16  # examples of one global batch
    rate: float = 0.15  # of the ids are predicted: 80 % hidden, 10 % replaced, 10 % as they are
    whole_words: bool = False  # all of a word's ids are hidden, or none
    next_sentence: bool = False  # rows are `[CLS] a [SEP] b [SEP]`; whether b follows a is a second loss
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "text"  # for next sentences, one with two `types`
    backbone: str = "shared"  # one of the config's backbones, by name
    chunk: int = 0  # positions of a row whose logits exist at a time, for large vocabularies and long rows; 0: all

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise UsageError(f"tasks.{self.name}.chunk must be 0 (all logits at once) or more, but is {self.chunk}")

    def inputs(self, model: Model) -> Inputs:
        vocabulary, length = self._vocabulary(model), self.texts.length
        ids = self.texts.spec(vocabulary)
        spec = {"inputs": ids, "targets": ids, "weights": data.ArraySpec((length,), np.float32)}
        spec["bytes"] = data.ArraySpec((length,), np.int32, 0, 8)
        if self.next_sentence:
            spec["types"] = data.ArraySpec((length,), np.int32, 0, 2)
            spec["next"] = data.ArraySpec((), np.int32, 0, 2)

        def hide(example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
            encoder, ids = data.encoder_for(self.texts.encoder, vocabulary, "MASK"), example.pop("ids")
            inputs, targets, weights = data.mask_tokens(
                ids,
                rng,
                rate=self.rate,
                vocab_size=encoder.vocab_size,
                mask_id=encoder.MASK,
                first_ordinary_id=encoder.first_ordinary_id,
                maskable=encoder.ordinary(ids),
                words=encoder.words(ids) if self.whole_words else None,
            )
            return {"inputs": inputs, "targets": targets, "weights": weights, **example}

        def dataset(split: str) -> data.Dataset:
            encoder = data.encoder_for(self.texts.encoder, vocabulary, "MASK")
            documents, random = self.texts.open(self.source, split), split == "train"
            if self.next_sentence:
                return data.next_sentence_rows(documents, encoder, length, random=random, count=True).map(hide)
            row: dict[str, Any] = dict(random=random, pad_id=encoder.PAD, count=encoder.byte_counts)
            return data.text_windows(documents, encoder.encode, length, **row).map(hide)

        return Inputs(spec, dataset)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        heads: dict[str, nnx.Module] = {"language": MaskedLanguageModel(width, self._vocabulary(model), rngs=rngs)}
        if self.next_sentence:
            heads["next_sentence"] = PooledClassifier(width, 2, rngs=rngs)
        return heads

    def logits(
        self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Of the hidden ids [B,T,V], and of whether the second stretch follows [B,2]."""
        hidden, heads = self.hidden(model, batch, key), model.heads[self.name]
        language = heads["language"](hidden, model.tokenizers[self.tokenizer].table)
        return language, heads["next_sentence"](hidden) if self.next_sentence else None

    def hidden(self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """[B,T,D]."""
        tokenizer, inputs = model.tokenizers[self.tokenizer], batch["inputs"]
        lengths = lengths_of(inputs, self.texts.pad)
        types = batch["types"] if self.next_sentence and tokenizer.config.types else None
        inner = None if key is None else jax.random.fold_in(key, 1)
        return model.backbones[self.backbone](tokenizer(inputs, lengths=lengths, types=types, key=inner), key=key)[0]

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        targets, weights = batch["targets"], batch["weights"]
        if self.chunk:
            hidden, heads = self.hidden(model, batch, key), model.heads[self.name]
            x, kernel, bias = heads["language"].factors(hidden, model.tokenizers[self.tokenizer].table)
            _, sums = chunked_cross_entropy(x, kernel, targets, weights, chunk=self.chunk, bias_V=bias)
            following = heads["next_sentence"](hidden) if self.next_sentence else None
        else:
            language, following = self.logits(model, batch, key)
            _, sums = masked_lm(language, targets, weights)
        loss = Mean(sums["objective"], sums["tokens"])
        metrics = {"accuracy": Mean(sums["correct"], sums["tokens"])}
        if following is None:
            return loss, metrics
        losses, sums = softmax_classification(following, batch["next"])
        return (loss, losses.mean()), {**metrics, "next_accuracy": Mean(sums["correct"], sums["examples"])}

    def evaluations(self) -> dict[str, Evaluation]:
        likelihood = Summed(
            metric="bits per masked byte",
            higher_is_better=False,
            inputs=self.inputs,
            predict=self.predict,
            finish=self._score,
            batch_size=self.batch_size,
            against=bigram(self.source, self.texts, self.texts.opened.encode, self.texts.opened.byte_counts),
            show=self.samples,
        )
        return {self.name: likelihood}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        hidden, heads = self.hidden(model, batch), model.heads[self.name]
        factors = heads["language"].factors(hidden, model.tokenizers[self.tokenizer].table)
        chunk = self.chunk or self.texts.length
        found = likelihood_rows(factors, batch["targets"], batch["weights"], batch["bytes"], chunk=chunk)
        if self.next_sentence:
            following = heads["next_sentence"](hidden)
            found["next"] = (jnp.argmax(following, axis=-1) == batch["next"]).astype(jnp.float32)
        return found

    def _score(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        found = bits_per_byte(sums)
        return found | ({"next_accuracy": float(sums["next"] / sums["examples"])} if "next" in sums else {})

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        batch, guesses = shown.batch, shown.rows["guesses"]
        return [self._filled(batch["targets"][i], batch["weights"][i], guesses[i]) for i in range(min(3, len(guesses)))]

    def _filled(self, targets: np.ndarray, weights: np.ndarray, guesses: np.ndarray) -> FilledText:
        encoder = self.texts.opened
        real = int((targets != encoder.PAD).sum())
        pieces = [encoder.surface(int(i)) for i in targets[:real]]
        ends = np.cumsum([len(piece) for piece in pieces])
        spans = tuple(
            (int(ends[i]) - len(pieces[i]), int(ends[i]), encoder.surface(int(guesses[i])), pieces[i])
            for i in np.flatnonzero(weights[:real])
        )
        return FilledText("".join(pieces), spans)

    def _vocabulary(self, model: Model) -> int:
        return model.tokenizers[self.tokenizer].config.vocabulary
