"""BERT: recover hidden tokens (Devlin 2019)."""

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
from unimodal.evaluation.baselines import bigram_bits
from unimodal.evaluation.samples import FilledText, Sample
from unimodal.heads import MaskedLanguageModel
from unimodal.model import Model
from unimodal.objectives import masked_lm, ratio
from unimodal.task import Predictions


@dataclass(frozen=True)
class Bert:
    """Masked language modelling on windows of `length` bytes; `rate` of them are predicted, 80/10/10."""

    name: str = "bert"
    source: str = "embedded:book"
    batch_size: int = 16
    length: int = 128
    rate: float = 0.15
    weight: float = 1.0
    tokenizer: str = "text"
    backbone: str = "shared"
    metric = "bits per masked byte"
    higher_is_better = False

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        encoder = data.ByteEncoder()
        ids = data.ArraySpec((self.length,), np.int32, encoder.first_ordinary_id, encoder.vocab_size)
        return {"inputs": ids, "targets": ids, "weights": data.ArraySpec((self.length,), np.float32)}

    def tokens(self, model: Model) -> int:
        return self.length

    def dataset(self, model: Model, split: str) -> data.Dataset:
        encoder = data.ByteEncoder()

        def hide(example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
            inputs, targets, weights = data.mask_tokens(
                example["ids"],
                rng,
                rate=self.rate,
                vocab_size=encoder.vocab_size,
                mask_id=encoder.MASK,
                first_ordinary_id=encoder.first_ordinary_id,
            )
            return {"inputs": inputs, "targets": targets, "weights": weights}

        documents = data.open_source(self.source, split)
        return data.text_windows(documents, encoder.encode, self.length, random=split == "train").map(hide)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        return {"language": MaskedLanguageModel(model.backbones[self.backbone].config.width, vocabulary, rngs=rngs)}

    def logits(self, model: Model, inputs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,T] with gaps → [B,T,V]."""
        tokenizer = model.tokenizers[self.tokenizer]
        segment = (inputs != data.ByteEncoder.PAD).astype(jnp.int32)
        hidden, _ = model.backbones[self.backbone](tokenizer(inputs, segment=segment), key=key)
        return model.heads[self.name]["language"](hidden, tokenizer.table)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, sums = masked_lm(self.logits(model, batch["inputs"], key), batch["targets"], batch["weights"])
        accuracy = ratio(sums["correct"], sums["tokens"])
        return ratio(sums["objective"], sums["tokens"]), {"accuracy": accuracy}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        logits = self.logits(model, batch["inputs"])
        _, sums = jax.vmap(lambda logits, t, w: masked_lm(logits[None], t[None], w[None]))(
            logits, batch["targets"], batch["weights"]
        )
        guesses = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return {"nats": sums["nats"], "bytes": sums["tokens"], "correct": sums["correct"], "guesses": guesses}

    def score(self, predictions: Predictions) -> dict[str, float]:
        count = predictions["bytes"].sum()
        return {
            "value": predictions["nats"].sum() / count / math.log(2),
            "accuracy": predictions["correct"].sum() / count,
        }

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        encoder = data.ByteEncoder()
        train, valid = (
            data.all_ids(data.open_source(self.source, split), encoder.encode) for split in ("train", "validation")
        )
        return bigram_bits(train, valid[:-1], valid[1:], encoder.vocab_size), "bigram"

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        return [
            self._filled(batch["targets"][i], batch["weights"][i], predictions["guesses"][i])
            for i in range(min(3, len(batch["targets"])))
        ]

    def _filled(self, targets: np.ndarray, weights: np.ndarray, guesses: np.ndarray) -> FilledText:
        # Latin-1 keeps one character per byte, so that offsets agree.
        def text(ids: np.ndarray) -> str:
            return "".join(_letter(int(i)) for i in ids)

        real = int((targets != data.ByteEncoder.PAD).sum())
        places = np.flatnonzero(weights[:real])
        spans = tuple((int(i), int(i) + 1, _letter(int(guesses[i])), _letter(int(targets[i]))) for i in places)
        return FilledText(text(targets[:real]), spans)


def _letter(identity: int) -> str:
    byte = identity - data.ByteEncoder.first_ordinary_id
    return chr(byte) if 32 <= byte < 127 else ("\n" if byte == 10 else "·")
