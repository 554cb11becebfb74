"""BERT: recover hidden tokens, and tell whether two stretches of text follow each other (Devlin 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import bigram_bits
from unimodal.evaluation.samples import FilledText, Sample
from unimodal.heads import MaskedLanguageModel, PooledClassifier
from unimodal.model import Model
from unimodal.objectives import (
    Loss,
    Mean,
    TaskMetrics,
    chunked_cross_entropy,
    example_sum,
    in_chunks,
    masked_lm,
    position_cross_entropy,
    softmax_classification,
)
from unimodal.task import Predictions
from unimodal.tokens import lengths_of


@dataclass(frozen=True)
class Bert:
    """Masked language modelling on rows of `length` ids; `rate` of them are predicted, 80/10/10.

    encoder: "bytes", or the path of a vocabulary. fields: of a record, that make up its text. whole_words: all of a
    word's ids are hidden, or none. next_sentence: rows are `[CLS] a [SEP] b [SEP]`, b following a in half of them, and
    telling which is a second loss; the tokenizer should have two `types`. chunk: positions of a row whose logits exist at
    a time, for large vocabularies and long rows; 0: all.
    """

    name: str = "bert"
    source: str = "embedded:book"
    fields: tuple[str, ...] = ("text",)
    encoder: str = "bytes"
    batch_size: int = 16
    length: int = 128
    rate: float = 0.15
    whole_words: bool = False
    next_sentence: bool = False
    weight: float = 1.0
    tokenizer: str = "text"
    backbone: str = "shared"
    chunk: int = 0
    metric = "bits per masked byte"
    higher_is_better = False

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise UsageError(f"tasks.{self.name}.chunk must be 0 (all logits at once) or more, but is {self.chunk}")

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        ids = data.ids_spec(self.encoder, self.length, self._vocabulary(model))
        spec = {"inputs": ids, "targets": ids, "weights": data.ArraySpec((self.length,), np.float32)}
        if self.next_sentence:
            spec["types"] = data.ArraySpec((self.length,), np.int32, 0, 2)
            spec["next"] = data.ArraySpec((), np.int32, 0, 2)
        return spec

    def tokens(self, model: Model) -> int:
        return self.length

    def dataset(self, model: Model, split: str) -> data.Dataset:
        encoder = data.encoder_for(self.encoder, self._vocabulary(model), "MASK")

        def hide(example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
            ids = example.pop("ids")
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

        documents, random = data.with_text(data.open_source(self.source, split), self.fields), split == "train"
        if self.next_sentence:
            return data.next_sentence_rows(documents, encoder, self.length, random=random).map(hide)
        windows = data.text_windows(documents, encoder.encode, self.length, random=random, pad_id=encoder.PAD)
        return windows.map(hide)

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
        lengths = lengths_of(inputs, data.pad_id(self.encoder))
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

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        targets, weights = batch["targets"], batch["weights"]
        hidden, heads = self.hidden(model, batch), model.heads[self.name]
        x, kernel, bias = heads["language"].factors(hidden, model.tokenizers[self.tokenizer].table)

        def read(logits: jax.Array, targets: jax.Array) -> Any:
            return position_cross_entropy(logits, targets), jnp.argmax(logits, axis=-1).astype(jnp.int32)

        chunk = self.chunk or self.length
        positions, guesses = in_chunks(read, x, kernel, targets, chunk=chunk, bias_V=bias)
        lengths = jnp.asarray(data.open_encoder(self.encoder).byte_lengths)[targets]
        counted = {
            "nats": positions.nats,
            "correct": positions.correct,
            "bytes": lengths,
            "tokens": jnp.ones_like(weights),
        }
        found = {name: example_sum(values, weights) for name, values in counted.items()} | {"guesses": guesses}
        if self.next_sentence:
            following = heads["next_sentence"](hidden)
            found["next"] = (jnp.argmax(following, axis=-1) == batch["next"]).astype(jnp.float32)
        return found

    def score(self, predictions: Predictions) -> dict[str, float]:
        found = {
            "value": predictions["nats"].sum() / predictions["bytes"].sum() / math.log(2),
            "accuracy": predictions["correct"].sum() / predictions["tokens"].sum(),
        }
        return found | ({"next_accuracy": predictions["next"].mean()} if "next" in predictions else {})

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        encoder = data.open_encoder(self.encoder)
        train, valid = (
            data.all_ids(data.with_text(data.open_source(self.source, split), self.fields), encoder.encode)
            for split in ("train", "validation")
        )
        bits = bigram_bits(train, valid[:-1], valid[1:], encoder.vocab_size)
        return bits / float(encoder.byte_lengths[valid[1:]].mean()), "bigram"

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        return [
            self._filled(batch["targets"][i], batch["weights"][i], predictions["guesses"][i])
            for i in range(min(3, len(batch["targets"])))
        ]

    def _filled(self, targets: np.ndarray, weights: np.ndarray, guesses: np.ndarray) -> FilledText:
        encoder = data.open_encoder(self.encoder)
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
