"""CLIP: match images with their words (Radford 2021)."""

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
from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.retrieval import recall
from unimodal.evaluation.samples import ImageSample, Sample
from unimodal.heads import Projection
from unimodal.model import Model
from unimodal.objectives import clip, ratio
from unimodal.task import Predictions
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
    """InfoNCE between images and captions over the global batch. In training a caption is the name or a shuffled few
    of the keywords; in validation it is the name."""

    name: str = "clip"
    source: str = "embedded:emoji"
    batch_size: int = 32
    length: int = 32
    size: int = 64
    weight: float = 1.0
    temperature: float = 0.07
    image_tokenizer: str = "image"
    text_tokenizer: str = "text"
    image_backbone: str = "shared"
    text_backbone: str = "shared"
    crop: tuple[float, float] = (0.6, 1.0)
    shift: int = 2
    jitter: tuple[float, float, float] = (0.2, 0.2, 0.2)
    metric = "recall@5"
    higher_is_better = True

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        c, encoder = model.tokenizers[self.image_tokenizer].config, data.ByteEncoder()
        return {
            "image": data.ArraySpec((*c.image_size, c.channels), np.float32, -1, 1),
            "ids": data.ArraySpec((self.length,), np.int32, encoder.first_ordinary_id, encoder.vocab_size),
        }

    def tokens(self, model: Model) -> int:
        return model.tokenizers[self.image_tokenizer].config.tokens + self.length

    def dataset(self, model: Model, split: str) -> data.Dataset:
        size, encoder = model.tokenizers[self.image_tokenizer].config.image_size, data.ByteEncoder()
        # No mirror images: "left arrow" and "right arrow" are different words.
        augment = data.Augmentation(size, scale=self.crop, flip=0.0, shift=self.shift, jitter=self.jitter)

        def example(record: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
            if split == "train":
                image, caption = augment(record["image"], rng), _caption(record, rng)
            else:
                image, caption = data.resize(record["image"], *size), record["name"]
            return {"image": data.to_float(image), "ids": data.fit_length(encoder.encode(caption), self.length)}

        return data.Dataset(data.cached(data.open_source(self.source, split), data.decode_picture), example)

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
        heads, lengths = model.heads[self.name], lengths_of(batch["ids"], data.ByteEncoder.PAD)
        pixels = model.tokenizers[self.image_tokenizer](batch["image"])
        words = model.tokenizers[self.text_tokenizer](batch["ids"], lengths=lengths)
        image, _ = model.backbones[self.image_backbone](pixels, key=keys[0])
        text, _ = model.backbones[self.text_backbone](words, key=keys[1])
        return heads["image"](image), heads["text"](text, words.segment)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        image, text = self.embed(model, batch, key)
        scale = model.heads[self.name]["temperature"]()
        losses, sums = clip(image, text, scale)
        accuracy = ratio(0.5 * (sums["correct_a_to_b"] + sums["correct_b_to_a"]), sums["examples"])
        return losses.mean(), {"accuracy": accuracy, "scale": scale}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        image, text = self.embed(model, batch)
        return {"image": image, "text": text}

    def score(self, predictions: Predictions) -> dict[str, float]:
        found = recall(predictions["image"], predictions["text"])
        return {"value": found["recall@5"], **found}

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        return chance_recall(len(data.open_source(self.source, "validation")), 5), "chance"

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        source = data.open_source(self.source, "validation")
        names = [str(source[i]["name"]) for i in range(len(source))]
        scale = float(model.heads[self.name]["temperature"]())
        shown: list[Sample] = []
        for i in np.linspace(0, len(names) - 1, 8).astype(int):
            logits = scale * predictions["image"][i] @ predictions["text"].T
            p = np.exp(logits - logits.max())
            p /= p.sum()
            best = tuple((names[k], float(p[k])) for k in p.argsort()[::-1][:4])
            shown.append(ImageSample(data.decode_image(source[int(i)]["image"]), best, names[i]))
        return shown


def _caption(record: Any, rng: np.random.Generator) -> str:
    words = list(record["keywords"])
    if not words or rng.random() < 0.5:
        return record["name"]
    rng.shuffle(words)
    return " ".join([record["name"], *words[:2]]) if rng.random() < 0.5 else " ".join(words[:4])
