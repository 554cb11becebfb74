"""ViT: classify images (Dosovitskiy 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from flax import nnx

from unimodal.data.blocks import Images, Inputs, Labels, columns
from unimodal.evaluation.classification import classification
from unimodal.evaluation.evaluation import Evaluation
from unimodal.evaluation.show.pictures import classified_pictures
from unimodal.heads import Classifier
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, classification_loss


@dataclass(frozen=True)
class Vit:
    """Image classification."""

    name: str = "vit"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images()  # the pictures
    labels: Labels = Labels()  # the classes
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "image"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    pooling: str = "mean"  # of the tokens: first, mean or last
    label_smoothing: float = 0.1  # share of the target that is spread over all classes

    def inputs(self, model: Model) -> Inputs:
        c = model.tokenizers[self.tokenizer].config
        return columns(self.source, self.images.part(c.image_size, c.channels), self.labels.part(self.source))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        return {"classify": Classifier(width, self.labels.size(self.source), pooling=self.pooling, rngs=rngs)}

    def logits(self, model: Model, image: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,H,W,C] → [B,classes]."""
        hidden, _ = model.hidden(self.tokenizer, self.backbone, image, key=key)
        return model.heads[self.name]["classify"](hidden)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        logits = self.logits(model, batch["image"], key)
        return classification_loss(logits, batch["label"], label_smoothing=self.label_smoothing)

    def evaluations(self) -> dict[str, Evaluation]:
        found = classification(
            self.labels,
            self.source,
            lambda model, batch: self.logits(model, batch["image"]),
            inputs=self.inputs,
            batch_size=self.batch_size,
            show=classified_pictures(self.source, self.images, self.labels, self.tokenizer, self.backbone),
        )
        return {self.name: found}
