"""GPT: predict the next token (Radford 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.evaluation.baselines import bigram_bits
from unimodal.evaluation.samples import Sample, TextSample
from unimodal.generate import Sampling, generate
from unimodal.heads import LanguageModel
from unimodal.model import Model
from unimodal.objectives import causal_lm, ratio
from unimodal.task import Predictions


@dataclass(frozen=True)
class Gpt:
    """Causal language modelling on windows of `length` bytes, the embedding table serving as output weights."""

    name: str = "gpt"
    source: str = "embedded:book"
    batch_size: int = 16
    length: int = 128
    weight: float = 1.0
    tokenizer: str = "text"
    backbone: str = "shared"
    z_loss: float = 0.0
    metric = "bits per byte"
    higher_is_better = False

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        encoder = data.ByteEncoder()
        return {"ids": data.ArraySpec((self.length,), np.int32, encoder.first_ordinary_id, encoder.vocab_size)}

    def tokens(self, model: Model) -> int:
        return self.length

    def dataset(self, model: Model, split: str) -> data.Dataset:
        documents = data.open_source(self.source, split)
        return data.text_windows(documents, data.ByteEncoder().encode, self.length, random=split == "train")

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        vocabulary = model.tokenizers[self.tokenizer].config.vocabulary
        return {"language": LanguageModel(model.backbones[self.backbone].config.width, vocabulary, rngs=rngs)}

    def logits(self, model: Model, ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,T] → [B,T,V]. Windows are padded at their end only, which causal attention never looks at."""
        tokenizer = model.tokenizers[self.tokenizer]
        hidden, _ = model.backbones[self.backbone](tokenizer(ids, causal=True), key=key)
        return model.heads[self.name]["language"](hidden, tokenizer.table)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        ids = batch["ids"]
        _, sums = causal_lm(self.logits(model, ids, key), ids, _real(ids), z_loss=self.z_loss)
        accuracy = ratio(sums["correct"], sums["tokens"])
        return ratio(sums["objective"], sums["tokens"]), {"accuracy": accuracy}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        nats, sums = jax.vmap(lambda logits, ids: causal_lm(logits[None], ids[None], _real(ids)[None]))(
            self.logits(model, batch["ids"]), batch["ids"]
        )
        return {"nats": sums["nats"], "bytes": sums["tokens"], "correct": sums["correct"]}

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
        half, encoder = self.length // 2, data.ByteEncoder()
        ids = batch["ids"][(batch["ids"] != encoder.PAD).all(axis=1)][:4]
        if not len(ids):
            return []
        made = continue_text(
            model, self.backbone, self.tokenizer, self.name, ids[:, :half], half, Sampling(temperature=0.7, top_p=0.95)
        )
        return [
            TextSample(encoder.decode(row[:half]), encoder.decode(new), truth=encoder.decode(row[half:]))
            for row, new in zip(ids, made, strict=True)
        ]


def continue_text(
    model: Model, backbone: str, tokenizer: str, head: str, prompt: np.ndarray, steps: int, sampling: Sampling
) -> np.ndarray:
    """Ids [B,steps] that the model writes after prompts [B,T] of equal length."""
    run = jax.jit(partial(generate, steps=steps, sampling=sampling))
    lengths = jnp.full(len(prompt), prompt.shape[1], jnp.int32)
    parts: tuple[Any, ...] = (model.backbones[backbone], model.tokenizers[tokenizer], model.heads[head]["language"])
    return np.asarray(run(*parts, jnp.asarray(prompt), lengths, jax.random.key(0)))


def _real(ids: jax.Array) -> jax.Array:
    return (ids != data.ByteEncoder.PAD).astype(jnp.int32)
