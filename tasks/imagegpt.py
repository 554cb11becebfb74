"""ImageGPT: predict the next pixel's colour, in the order of reading (Chen 2020)."""

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

from unimodal.answers import IMAGE, Answer, Asked, picture_answer, read_any, sampling_of
from unimodal.data.blocks import Inputs, Pixels, columns
from unimodal.errors import UsageError
from unimodal.evaluation.colours import completed, nats_per_pixel, unigram
from unimodal.evaluation.evaluation import Batch, Evaluation, Shown, on_own_data
from unimodal.evaluation.samples import Sample
from unimodal.evaluation.summed import Summed
from unimodal.generate import Sampling, generate
from unimodal.heads import LanguageModel
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, Metrics, TaskMetrics, cross_entropy, position_cross_entropy, shifted_right


@dataclass(frozen=True)
class Imagegpt:
    """Causal modelling of pixels: a picture is a row of colours, and one more token begins each."""

    name: str = "imagegpt"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    pixels: Pixels = Pixels()  # the pictures, and the palette
    size: tuple[int, int] = (32, 32)  # height and width in pixels, each of which is a token
    batch_size: int = 16  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "text"  # one of the config's, of kind text: tables of colours and of places
    backbone: str = "shared"  # one of the config's backbones, by name

    def inputs(self, model: Model) -> Inputs:
        return columns(self.source, self.pixels.row(self.source, self.size))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        c = model.tokenizers[self.tokenizer].config
        if c.vocabulary <= self.pixels.count:
            raise UsageError(
                f"tokenizers.{self.tokenizer}.vocabulary must be {self.pixels.count + 1}: colours and a start"
            )
        width = model.backbones[self.backbone].config.width
        return {"colours": LanguageModel(width, self.pixels.count, tied=False, rngs=rngs)}

    def logits(self, model: Model, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """[B,T,colours]: at each pixel, what is thought of it before it is seen."""
        tokenizer, inner = model.tokenizers[self.tokenizer], None if key is None else jax.random.fold_in(key, 1)
        tokens = tokenizer(shifted_right(batch["ids"], self.pixels.count), causal=True, key=inner)
        return model.heads[self.name]["colours"](model.backbones[self.backbone](tokens, key=key)[0], tokenizer.table)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        losses, sums = cross_entropy(self.logits(model, batch, key), batch["ids"])
        return losses.mean(), {"accuracy": Mean(sums["correct"], sums["tokens"])}

    def evaluations(self) -> dict[str, Evaluation]:
        found = Summed(
            metric="nats per pixel",
            higher_is_better=False,
            **on_own_data(self),
            finish=partial(nats_per_pixel, pixels=math.prod(self.size)),
            against=unigram(columns(self.source, self.pixels.row(self.source, self.size)), self.pixels.count),
            show=self.samples,
        )
        return {self.name: found}

    def predict(self, model: Model, batch: Batch) -> Metrics:
        positions = position_cross_entropy(self.logits(model, batch), batch["ids"])
        return {"nats": positions.nats.sum(axis=1), "correct": positions.correct.sum(axis=1)}

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        """The picture with its lower half written anew."""
        half = math.prod(self.size) // 2
        sampling = Sampling(**sampling_of(asked))

        def row(record: Mapping[str, Any]) -> dict[str, Any]:
            part = read_any(self.pixels, record).row(self.source, self.size)
            return part.make(part.read(record), np.random.default_rng(0), False)

        def completed(m: Model, batch: Batch) -> jax.Array:
            parts = (m.backbones[self.backbone], m.tokenizers[self.tokenizer], m.heads[self.name]["colours"])
            start = jnp.full((len(batch["ids"]), 1), self.pixels.count, jnp.int32)
            given = jnp.concatenate([start, batch["ids"][:, :half]], axis=1)
            lengths, rest = jnp.full((len(given),), half + 1, jnp.int32), math.prod(self.size) - half
            new = generate(*parts, given, lengths, jax.random.key(asked.seed), steps=rest, sampling=sampling)
            return jnp.concatenate([given[:, 1:], new], axis=1)

        as_picture = partial(self.pixels.picture, self.source, size=self.size)
        return [picture_answer(IMAGE, row, completed, as_picture)]

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        parts = (model.backbones[self.backbone], model.tokenizers[self.tokenizer], model.heads[self.name]["colours"])
        as_picture = partial(self.pixels.picture, self.source, size=self.size)
        return [*completed(partial(generate, *parts), shown.batch["ids"][:4], self.pixels.count, as_picture)]
