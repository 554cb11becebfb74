"""DALL·E: write a picture's codes after its caption (Ramesh 2021, §2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from unimodal import text_to_picture
from unimodal.answers import drawn_from_words
from unimodal.data.blocks import Captions, Images
from unimodal.errors import UsageError
from unimodal.evaluation.codes import CodeLikelihood
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, caption_targets, cross_entropy


@dataclass(frozen=True)
class Dalle:
    """One causal row of a caption's ids and a picture's codes. The codes are those of a codebook that was trained before
    (`init_from` a workdir of the dvae task) and stays as it is (`optimizer.freeze`)."""

    name: str = "dalle"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images(mean=(0.0,), std=(1.0,))  # the pictures, in [0, 1]
    texts: Captions = Captions(length=32)  # the captions; longer ones are cut
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    text_tokenizer: str = "text"  # one of the config's tokenizers, by name
    image_tokenizer: str = "codes"  # one of the config's tokenizers, of kind codebook, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    text_weight: float = 1 / 8  # of the captions' loss; the rest to 1 is the codes' (§2.2)
    unconditional: float = 0.1  # share of examples that are trained without their caption, for guidance (Ho 2022)
    guidance: float = 2.0  # scale of classifier-free guidance in samples; 1: none
    temperature: float = 1.0  # of samples
    shown: int = 4  # samples for each caption in the report

    inputs = text_to_picture.inputs
    heads = text_to_picture.heads
    logits = text_to_picture.logits
    draw = text_to_picture.draw
    answers = drawn_from_words

    def __post_init__(self) -> None:
        if not 0 <= self.unconditional < 1 or not 0 <= self.text_weight < 1:
            raise UsageError(f"{self.name}.unconditional and {self.name}.text_weight must be at least 0 and below 1")

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        dropped = jax.random.bernoulli(jax.random.fold_in(key, 1), self.unconditional, batch["ids"].shape[:1])
        ids = jnp.where(dropped[:, None], self.texts.pad, batch["ids"])
        codes = model.tokenizers[self.image_tokenizer].codes(batch["image"])
        words, places = self.logits(model, ids, codes, key)
        targets, weights = caption_targets(ids, self.texts.pad)
        _, said = cross_entropy(words, targets, jnp.where(dropped[:, None], 0.0, weights))
        _, seen = cross_entropy(places, codes)
        text, image = self.text_weight, 1 - self.text_weight
        metrics = {
            "text_nats": Mean(said["nats"], said["tokens"]),
            "image_nats": Mean(seen["nats"], seen["tokens"]),
            "code_accuracy": Mean(seen["correct"], seen["tokens"]),
        }
        losses = (Mean(text * said["objective"], said["tokens"]), Mean(image * seen["objective"], seen["tokens"]))
        return losses, metrics

    def evaluations(self) -> dict[str, Evaluation]:
        return {self.name: CodeLikelihood(task=self, inputs=self.inputs, batch_size=self.batch_size, shown=self.shown)}
