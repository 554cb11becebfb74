"""ViT: classify images (Dosovitskiy 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.evaluation.baselines import majority_accuracy
from unimodal.evaluation.samples import AttentionMap, ImageSample, Sample
from unimodal.heads import Classifier
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, softmax_classification
from unimodal.task import Predictions


@dataclass(frozen=True)
class Vit:
    """Image classification. `crop`: range of areas of the random crop; `flip`: probability; `shift` in pixels;
    `jitter` of brightness, contrast and saturation."""

    name: str = "vit"
    source: str = "embedded:emoji"
    classes: tuple[str, ...] = data.EMOJI_GROUPS
    batch_size: int = 32
    weight: float = 1.0
    tokenizer: str = "image"
    backbone: str = "shared"
    pooling: str = "mean"
    label_smoothing: float = 0.1
    crop: tuple[float, float] = (0.6, 1.0)
    flip: float = 0.5
    shift: int = 2
    jitter: tuple[float, float, float] = (0.2, 0.2, 0.2)
    metric = "accuracy"
    higher_is_better = True

    def spec(self, model: Model) -> dict[str, data.ArraySpec]:
        c = model.tokenizers[self.tokenizer].config
        return {
            "image": data.ArraySpec((*c.image_size, c.channels), np.float32, -1, 1),
            "label": data.ArraySpec((), np.int32, 0, len(self.classes)),
        }

    def tokens(self, model: Model) -> int:
        return model.tokenizers[self.tokenizer].config.tokens

    def dataset(self, model: Model, split: str) -> data.Dataset:
        size = model.tokenizers[self.tokenizer].config.image_size
        augment = data.Augmentation(size, scale=self.crop, flip=self.flip, shift=self.shift, jitter=self.jitter)

        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            image = augment(record["image"], rng) if split == "train" else data.resize(record["image"], *size)
            return {"image": data.to_float(image), "label": np.int32(record["label"])}

        return data.Dataset(data.cached(data.open_source(self.source, split), data.decode_picture), example)

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"classify": Classifier(width, len(self.classes), pooling=self.pooling, rngs=rngs)}

    def logits(self, model: Model, image: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,H,W,C] → [B,classes]."""
        hidden, _ = model.backbones[self.backbone](model.tokenizers[self.tokenizer](image), key=key)
        return model.heads[self.name]["classify"](hidden)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        logits = self.logits(model, batch["image"], key)
        losses, sums = softmax_classification(logits, batch["label"], label_smoothing=self.label_smoothing)
        return losses.mean(), {"accuracy": Mean(sums["correct"], sums["examples"])}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        probabilities = jax.nn.softmax(self.logits(model, batch["image"]).astype(jnp.float32))
        return {"probabilities": probabilities, "label": batch["label"]}

    def score(self, predictions: Predictions) -> dict[str, float]:
        right = predictions["probabilities"].argmax(axis=1) == predictions["label"]
        return {"value": right.mean()}

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        train, valid = (_labels(self.source, split) for split in ("train", "validation"))
        return majority_accuracy(train, valid), "majority class"

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> list[Sample]:
        chosen = np.linspace(0, len(predictions["label"]) - 1, 8).astype(int)
        source = data.open_source(self.source, "validation")
        shown: list[Sample] = []
        for i in chosen:
            p, record = predictions["probabilities"][i], source[int(i)]
            best = tuple((self.classes[k], float(p[k])) for k in p.argsort()[::-1][:3])
            truth = self.classes[int(predictions["label"][i])]
            picture = data.decode_image(record["image"])
            shown.append(ImageSample(picture, best, truth, note=str(record.get("name", ""))))
        return [*shown, self._attention(model, batch["image"][:1])]

    def _attention(self, model: Model, image: np.ndarray) -> AttentionMap:
        """Where the last layer looks, averaged over queries, per head."""
        tokenizer, backbone = model.tokenizers[self.tokenizer], model.backbones[self.backbone]
        _, out = jax.jit(lambda b, t, x: b(t(x), capture=("attention",)))(backbone, tokenizer, jnp.asarray(image))
        c = tokenizer.config
        weights = np.asarray(out["attention"][-1, 0], np.float32)[:, :, c.registers :]
        return AttentionMap("last layer", data.to_uint8(image[0]), None, weights, grid=c.grid)


def _labels(uri: str, split: str) -> np.ndarray:
    source = data.open_source(uri, split)
    return np.array([source[i]["label"] for i in range(len(source))])
