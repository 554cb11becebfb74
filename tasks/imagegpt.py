"""ImageGPT: predict the next pixel's colour, in the order of reading (Chen 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx

from unimodal.answers import with_its_half_anew
from unimodal.data.blocks import Inputs, Pixels, columns
from unimodal.errors import UsageError
from unimodal.evaluation.colours import completed, nats_per_pixel, unigram
from unimodal.evaluation.evaluation import Batch, Evaluation, Shown, on_own_data
from unimodal.evaluation.samples import Sample
from unimodal.evaluation.summed import Summed
from unimodal.generate import generate
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

    answers = with_its_half_anew

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

    def writer(self, model: Model) -> tuple[Any, Any, Any]:
        """What writes a picture: the backbone, its tokenizer and its head."""
        return model.backbones[self.backbone], model.tokenizers[self.tokenizer], model.heads[self.name]["colours"]

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        as_picture = partial(self.pixels.picture, self.source, size=self.size)
        return [
            *completed(partial(generate, *self.writer(model)), shown.batch["ids"][:4], self.pixels.count, as_picture)
        ]
