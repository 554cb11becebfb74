"""Text classification, of one text or of a pair, with a BERT-like encoder (Devlin 2019, §4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.answers import TEXT, Answer, Asked, class_answer, embedding_answer, spoken
from unimodal.data.blocks import Inputs, Labels, Texts
from unimodal.errors import UsageError
from unimodal.evaluation.classification import classification
from unimodal.evaluation.evaluation import Evaluation, Shown
from unimodal.evaluation.samples import Sample, TextSample
from unimodal.heads import PooledClassifier, pool
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, softmax_classification
from unimodal.tokens import lengths_of


@dataclass(frozen=True)
class TextClassifier:
    """One class for each text, or pair of texts."""

    name: str = "text_classifier"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    texts: Texts = Texts(length=96)  # the first text, and how both are encoded
    second: str = ""  # the column of the other text, where pairs are classified; "a+b" joins several
    labels: Labels = Labels()  # the classes
    limit: int = 0  # train on so many records, to see what few labels do; 0: all
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "text"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    pooling: str = "mean"  # of the tokens: first, mean or last
    dropout: float = 0.1  # before the last layer
    label_smoothing: float = 0.0  # share of the target that is spread over all classes

    def inputs(self, model: Model) -> Inputs:
        vocabulary, length = model.tokenizers[self.tokenizer].config.vocabulary, self.texts.length
        spec = {
            "ids": self.texts.spec(vocabulary),
            "label": data.ArraySpec((), np.int32, 0, self.labels.size(self.source)),
        }
        if self.second:
            spec["types"] = data.ArraySpec((length,), np.int32, 0, 2)

        def dataset(split: str) -> data.Dataset:
            if split == "train":
                self.labels.check(self.source)
            encoder = data.encoder_for(self.texts.encoder, vocabulary)
            rows, names = self._rows(encoder, split), ("ids", "types") if self.second else ("ids",)
            if split == "train" and self.labels.size(self.source) > len(rows):
                classes = self.labels.size(self.source)
                raise UsageError(f"{classes} classes, but {self.source} has only {len(rows)} examples to train on")

            def example(row: Any, _rng: np.random.Generator) -> dict[str, Any]:
                return {**{name: row[name] for name in names}, "label": np.int32(row["label"])}

            return data.Dataset(rows, example)

        return Inputs(spec, dataset)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        options: dict[str, Any] = dict(pooling=self.pooling, dropout=self.dropout, rngs=rngs)
        return {"classify": PooledClassifier(width, self.labels.size(self.source), **options)}

    def logits(self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """[B,classes]."""
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        hidden, segment = self.hidden(model, batch, keys)
        return model.heads[self.name]["classify"](hidden, segment, key=keys[2])

    def hidden(
        self, model: Model, batch: Mapping[str, jax.Array], keys: tuple[jax.Array | None, ...] = (None, None)
    ) -> tuple[jax.Array, jax.Array | None]:
        """[B,T,D], and which of the tokens are real."""
        tokenizer = model.tokenizers[self.tokenizer]
        lengths = lengths_of(batch["ids"], self.texts.pad)
        types = batch["types"] if self.second and tokenizer.config.types else None
        tokens = tokenizer(batch["ids"], lengths=lengths, types=types, key=keys[0])
        return model.backbones[self.backbone](tokens, key=keys[1])[0], tokens.segment

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        logits = self.logits(model, batch, key)
        losses, sums = softmax_classification(logits, batch["label"], label_smoothing=self.label_smoothing)
        return losses.mean(), {"accuracy": Mean(sums["correct"], sums["examples"])}

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary

        def row(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
            encoder, (first, second) = data.encoder_for(self.texts.encoder, vocabulary), self._pair(record)
            other = None if second is None else encoder.encode(second)
            ids, types = data.pair_row(encoder, self.texts.length, encoder.encode(first), other)
            return {"ids": ids, "types": types} if self.second else {"ids": ids}

        def mean(model: Model, batch: Mapping[str, jax.Array]) -> jax.Array:
            hidden, segment = self.hidden(model, batch)
            return pool(hidden, "mean", segment)

        classes = class_answer(TEXT, self.labels.given_names(self.source), row, self.logits, top=asked.top)
        return [classes, embedding_answer(TEXT, row, mean)]

    def _pair(self, record: Mapping[str, Any]) -> tuple[str, str | None]:
        """One text, or two: from their columns, or from one text with a tab between them."""
        text = spoken(self.texts, record)
        if not self.second:
            return text, None
        columns = self.second.split("+")
        if all(name in record for name in columns):
            return text, data.text_of(dict(record), columns)
        first, tab, second = text.partition("\t")
        if not tab:
            raise UsageError(f"it compares two texts: give {self.second!r} too, or both with a tab between them")
        return first, second

    def evaluations(self) -> dict[str, Evaluation]:
        found = classification(
            self.labels,
            self.source,
            self.logits,
            inputs=self.inputs,
            batch_size=self.batch_size,
            show=self.samples,
        )
        return {self.name: found}

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        encoder, names = self.texts.opened, self.labels.names(self.source)
        found: list[Sample] = []
        for ids, label, best, chance in zip(
            shown.batch["ids"], shown.rows["label"], shown.rows["best"], shown.rows["chance"], strict=True
        ):
            guess = ", ".join(f"{names[int(k)]} {p:.0%}" for k, p in zip(best[:2], chance[:2], strict=True))
            found.append(TextSample(encoder.decode(ids), guess, names[int(label)]))
        return found

    def _rows(self, encoder: data.Encoder, split: str) -> data.Rows:
        source, what = data.open_source(self.source, split), f"{self.source} {split}"
        if split == "train" and self.limit:
            source = data.some_records(source, self.limit)
        fields = self.texts.fields(source[0])
        second = tuple(self.second.split("+")) if self.second else ()
        number = partial(self.labels.number, self.source)
        return data.text_rows(source, encoder, self.texts.length, fields, second, keep={"label": number}, what=what)
