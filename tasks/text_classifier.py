"""Text classification, of one text or of a pair, with a BERT-like encoder (Devlin 2019, §4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from unimodal.answers import TEXT, Answer, Asked, class_answer, pair_text_row, text_features
from unimodal.data.blocks import Inputs, Labels, Texts
from unimodal.data.blocks.pairs import labelled_texts
from unimodal.evaluation.classification import classification
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.evaluation.show.texts import classified_texts
from unimodal.heads import PooledClassifier
from unimodal.layers import split_key
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, classification_loss
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
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        return labelled_texts(self.source, self.texts, self.labels, vocabulary, second=self.second, limit=self.limit)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        options: dict[str, Any] = dict(pooling=self.pooling, dropout=self.dropout, rngs=rngs)
        return {"classify": PooledClassifier(width, self.labels.size(self.source), **options)}

    def logits(self, model: Model, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """[B,classes]."""
        inner, outer, last = split_key(key, 3)
        lengths = lengths_of(batch["ids"], self.texts.pad)
        types = batch["types"] if self.second and model.tokenizers[self.tokenizer].config.types else None
        text: dict[str, Any] = dict(lengths=lengths, types=types)
        hidden, tokens = model.hidden(self.tokenizer, self.backbone, batch["ids"], key=(inner, outer), **text)
        return model.heads[self.name]["classify"](hidden, tokens.segment, key=last)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        logits = self.logits(model, batch, key)
        return classification_loss(logits, batch["label"], label_smoothing=self.label_smoothing)

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        row = pair_text_row(self.texts, model.tokenizers[self.tokenizer].config.vocabulary, self.second)
        real = lambda b: lengths_of(b["ids"], self.texts.pad)  # noqa: E731
        read = lambda m, b: m.hidden(self.tokenizer, self.backbone, b["ids"], lengths=real(b))[0]  # noqa: E731
        classes = class_answer(TEXT, self.labels.given_names(self.source), row, self.logits, top=asked.top)
        return [classes, text_features(self, row, read)]

    def evaluations(self) -> dict[str, Evaluation]:
        shown = classified_texts(self.source, self.texts, self.labels)
        return {self.name: classification(self, self.logits, show=shown)}
