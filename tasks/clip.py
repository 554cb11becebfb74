"""CLIP: match images with their words (Radford 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.data.blocks import Images, Inputs, Texts, columns
from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.evaluation import Evaluation, Shown
from unimodal.evaluation.retrieval import Retrieval
from unimodal.evaluation.samples import ImageSample, Sample
from unimodal.heads import Projection
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, row_codes, whole_batch
from unimodal.tokens import lengths_of


class Temperature(nnx.Module):
    """The learned logit scale, kept as its logarithm. Updates do not lead beyond a scale of 100 (§2.5)."""

    def __init__(self, start: float):
        bounds = (None, math.log(100.0))
        first = jnp.full((), math.log(1 / start), jnp.float32)
        self.log_scale = nnx.Param(first, axes=(), kind="vector", bounds=bounds)

    def __call__(self) -> jax.Array:
        return jnp.exp(self.log_scale.get_value())


@dataclass(frozen=True)
class Clip:
    """InfoNCE between images and their captions over the global batch. Equal captions are not each other's negatives."""

    name: str = "clip"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images()  # the pictures
    texts: Texts = Texts(length=32)  # the captions
    batch_size: int = 32  # examples of one global batch
    size: int = 64  # of the embeddings
    weight: float = 1.0  # of the loss among the tasks'
    temperature: float = 0.07  # to start from; it is learned
    image_tokenizer: str = "image"  # one of the config's tokenizers, by name
    text_tokenizer: str = "text"  # one of the config's tokenizers, by name
    image_backbone: str = "shared"  # one of the config's backbones, by name
    text_backbone: str = "shared"  # one of the config's backbones, by name

    def inputs(self, model: Model) -> Inputs:
        c, vocabulary = model.tokenizers[self.image_tokenizer].config, model.tokenizers[self.text_tokenizer].config
        return columns(self.source, self.images.part(c.image_size, c.channels), self.texts.part(vocabulary.vocabulary))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        widths = [model.backbones[name].config.width for name in (self.image_backbone, self.text_backbone)]
        return {
            "image": Projection(widths[0], self.size, pooling="mean", rngs=rngs),
            "text": Projection(widths[1], self.size, pooling="mean", rngs=rngs),
            "temperature": Temperature(self.temperature),
        }

    def embed(
        self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Unit embeddings [B,size] of the images and of the captions."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        heads, lengths = model.heads[self.name], lengths_of(batch["ids"], self.texts.pad)
        inner = (None, None) if key is None else tuple(jax.random.split(jax.random.fold_in(key, 1)))
        pixels = model.tokenizers[self.image_tokenizer](batch["image"], key=inner[0])
        words = model.tokenizers[self.text_tokenizer](batch["ids"], lengths=lengths, key=inner[1])
        image, _ = model.backbones[self.image_backbone](pixels, key=keys[0])
        text, _ = model.backbones[self.text_backbone](words, key=keys[1])
        return heads["image"](image), heads["text"](text, words.segment)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        image, text = self.embed(model, batch, key)
        scale = model.heads[self.name]["temperature"]()
        return whole_batch(clip, image, text, scale, ids_B=row_codes(batch["ids"])), {"scale": scale}

    def evaluations(self) -> dict[str, Evaluation]:
        retrieval = Retrieval(
            inputs=self.inputs,
            predict=self.predict,
            batch_size=self.batch_size,
            against=lambda _: (chance_recall(len(data.open_source(self.source, "validation")), 5), "chance"),
            show=self.samples,
        )
        return {self.name: retrieval}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        image, text = self.embed(model, batch)
        return {"first": image, "second": text, "same": row_codes(batch["ids"])}

    def samples(self, model: Model, shown: Shown) -> list[Sample]:
        source = data.open_source(self.source, "validation")
        texts, places = shown.tally.all("second"), shown.tally.all("index")
        scale = float(model.heads[self.name]["temperature"]())
        found: list[Sample] = []
        for i, image in zip(shown.index, shown.rows["first"], strict=True):
            logits = scale * image @ texts.T
            p = np.exp(logits - logits.max())
            p /= p.sum()
            best = tuple((self.texts.text(source[int(places[k])]), float(p[k])) for k in p.argsort()[::-1][:4])
            found.append(ImageSample(self.images.read(source[int(i)]), best, self.texts.text(source[int(i)])))
        return found
