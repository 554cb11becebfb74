"""Text classification, of one text or of a pair, with a BERT-like encoder (Devlin 2019, §4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import majority_accuracy
from unimodal.evaluation.samples import Sample, TextSample
from unimodal.heads import PooledClassifier
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, softmax_classification
from unimodal.task import Predictions
from unimodal.tokens import lengths_of


@dataclass(frozen=True)
class TextClassifier:
    """One of `classes` for each text; `label` of a record is the number of its class.

    fields: of a record, that make up its text; second: those of the other text, where pairs are classified. Training
    reads `limit` records (0: all): fewer labels than there are. pooling: first, mean or last.
    """

    name: str = "text_classifier"
    source: str = "embedded:emoji"
    fields: tuple[str, ...] = ("name", "keywords")
    second: tuple[str, ...] = ()
    classes: tuple[str, ...] = data.EMOJI_GROUPS
    label: str = "label"
    limit: int = 0
    encoder: str = "bytes"
    batch_size: int = 32
    length: int = 96
    weight: float = 1.0
    tokenizer: str = "text"
    backbone: str = "shared"
    pooling: str = "mean"
    dropout: float = 0.1
    label_smoothing: float = 0.0
    metric = "accuracy"
    higher_is_better = True

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        spec = {
            "ids": data.ids_spec(self.encoder, self.length, vocabulary),
            "label": data.ArraySpec((), np.int32, 0, len(self.classes)),
        }
        return spec | ({"types": data.ArraySpec((self.length,), np.int32, 0, 2)} if self.second else {})

    def tokens(self, model: Model) -> int:
        return self.length

    def dataset(self, model: Model, split: str) -> data.Dataset:
        encoder = data.encoder_for(self.encoder, model.tokenizers[self.tokenizer].config.vocabulary)
        rows = self._rows(encoder, split)
        if split == "train" and len(self.classes) > len(rows):
            raise UsageError(
                f"{len(self.classes)} classes, but {self.source} has only {len(rows)} examples to train on"
            )
        names = ("ids", "types") if self.second else ("ids",)
        return data.Dataset(
            rows, lambda row, rng: {**{name: row[name] for name in names}, "label": np.int32(row[self.label])}
        )

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        options: dict[str, Any] = dict(pooling=self.pooling, dropout=self.dropout, rngs=rngs)
        return {"classify": PooledClassifier(width, len(self.classes), **options)}

    def logits(self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """[B,classes]."""
        keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        tokenizer = model.tokenizers[self.tokenizer]
        lengths = lengths_of(batch["ids"], data.pad_id(self.encoder))
        types = batch["types"] if self.second and tokenizer.config.types else None
        tokens = tokenizer(batch["ids"], lengths=lengths, types=types, key=keys[0])
        hidden, _ = model.backbones[self.backbone](tokens, key=keys[1])
        return model.heads[self.name]["classify"](hidden, tokens.segment, key=keys[2])

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        logits = self.logits(model, batch, key)
        losses, sums = softmax_classification(logits, batch["label"], label_smoothing=self.label_smoothing)
        return losses.mean(), {"accuracy": Mean(sums["correct"], sums["examples"])}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        probabilities = jax.nn.softmax(self.logits(model, batch).astype(jnp.float32))
        return {"probabilities": probabilities, "label": batch["label"]}

    def score(self, predictions: Predictions) -> dict[str, float]:
        guesses, labels = predictions["probabilities"].argmax(axis=1), predictions["label"]
        # Recall of each class, averaged over those that occur: blind to how common they are.
        recalls = [(guesses[labels == k] == k).mean() for k in np.unique(labels)]
        return {"value": (guesses == labels).mean(), "balanced_accuracy": float(np.mean(recalls))}

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        encoder = data.open_encoder(self.encoder)
        train, valid = (
            np.array([row[self.label] for row in self._rows(encoder, split).records])
            for split in ("train", "validation")
        )
        return majority_accuracy(train, valid), "majority class"

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        encoder = data.open_encoder(self.encoder)
        shown: list[Sample] = []
        for i in range(min(8, len(batch["ids"]))):
            p = predictions["probabilities"][i]
            guess = ", ".join(f"{self.classes[k]} {p[k]:.0%}" for k in p.argsort()[::-1][:2])
            shown.append(TextSample(encoder.decode(batch["ids"][i]), guess, self.classes[int(batch["label"][i])]))
        return shown

    def _rows(self, encoder: data.Encoder, split: str) -> data.Rows:
        source, what = data.open_source(self.source, split), f"{self.source} {split}"
        if split == "train" and self.limit:
            source = data.some_records(source, self.limit)
        rows = data.text_rows(source, encoder, self.length, self.fields, self.second, keep=(self.label,), what=what)
        for row in rows.records:
            label = row[self.label]
            if not isinstance(label, int) or not 0 <= label < len(self.classes):
                raise UsageError(
                    f"record {row['id']!r} of {what} has {self.label}={label!r}, "
                    f"but there are {len(self.classes)} classes, 0 … {len(self.classes) - 1}"
                )
        return rows
