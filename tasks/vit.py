"""ViT: classify images (Dosovitskiy 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import data, packed
from unimodal.answers import IMAGE, Answer, Asked, class_answer, picture_features, picture_row
from unimodal.data.blocks import Images, Inputs, Labels, columns
from unimodal.data.filling import Packing
from unimodal.errors import UsageError
from unimodal.evaluation.classification import classification
from unimodal.evaluation.evaluation import Batch, Evaluation
from unimodal.evaluation.show.pictures import classified_pictures
from unimodal.heads import Classifier
from unimodal.model import Model, check_shared_head
from unimodal.objectives import Loss, TaskMetrics, classification_loss, mixed, visible_first


@dataclass(frozen=True)
class Vit:
    """Image classification."""

    name: str = "vit"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images()  # the pictures
    labels: Labels = Labels()  # the classes
    labelled: int = 0  # use so many training examples only, to see what few labels do; 0: all
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    tokenizer: str = "image"  # one of the config's tokenizers, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    # an earlier task whose head it uses, as tasks do that differ in their data alone; "": one of its own
    head: str = ""
    pooling: str = "mean"  # of the tokens: first (the class token), mean, last or attention (a learned query's)
    label_smoothing: float = 0.1  # share of the target that is spread over all classes
    mixup: float = 0.0  # α of Beta(α, α), by which two pictures of a batch are blended (Zhang 2018); 0: never
    cutmix: float = 0.0  # the same for the area of a rectangle of another picture (Yun 2019); both: either, by chance
    patch_dropout: float = 0.0  # share of the patches that training leaves out (Liu 2023)
    # Several pictures in one row of patches, each in its own proportions (Dehghani 2023); row: its tokens, 0: one of the
    # tokenizer's size a row. A picture has no more patches than the tokenizer's image_size.
    pack: Packing = Packing()
    size: tuple[int, ...] = ()  # height and width of pictures, for a tokenizer with resize=True; (): the tokenizer's

    def __post_init__(self) -> None:
        if len(self.size) not in (0, 2):
            raise UsageError(f"tasks.{self.name}.size must be height and width, but is {self.size}")
        if not 0 <= self.patch_dropout < 1:
            raise UsageError(f"tasks.{self.name}.patch_dropout must be below 1, but is {self.patch_dropout}")
        packed.check_pictures(self)

    def inputs(self, model: Model) -> Inputs:
        if self.pack.row:
            return packed.picture_rows(self, model).inputs()
        c = model.tokenizers[self.tokenizer].config
        size = c.tiled(self.size or c.image_size, f"tasks.{self.name}.size")
        parts = self.images.part(size, c.channels), self.labels.part(self.source)
        return columns(self.source, *parts, open_split=self.open_split)

    def open_split(self, split: str) -> data.Source:
        """The records of a split, or `labelled` of them to train on."""
        source = data.open_source(self.source, split)
        return data.evenly(source, self.labelled) if self.labelled and split == "train" else source

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        c, classes = model.backbones[self.backbone].config, self.labels.size(self.source)
        if self.head:
            check_shared_head(model, self.name, self.head, "classify", classes)
            return {}
        return {"classify": Classifier(c.width, classes, pooling=self.pooling, backbone=c, rngs=rngs)}

    def logits(self, model: Model, image: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B,H,W,C] → [B,classes]."""
        keep = None
        if key is not None and self.patch_dropout:
            grid = model.tokenizers[self.tokenizer].config.grid_of(*image.shape[1:3])
            keep = self._kept(jax.random.fold_in(key, 2), len(image), math.prod(grid))
        hidden, _ = model.hidden(self.tokenizer, self.backbone, image, key=key, keep=keep)
        return model.heads[self.head or self.name]["classify"](hidden)

    def judged(self, model: Model, batch: Batch) -> jax.Array:
        """What evaluations and answers compare: [B,classes]."""
        return packed.picture_logits(self, model, batch)[:, 0] if self.pack.row else self.logits(model, batch["image"])

    def own_classes(self) -> tuple[int, ...]:
        """The numbers of the classes that training has examples of, for heads that know more."""
        return self.labels.present(self.source)

    def loss(self, model: Model, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple[Loss, TaskMetrics]:
        if self.pack.row:
            return packed.picture_loss(self, model, batch, key)
        image, label = batch["image"], batch["label"]
        if self.mixup or self.cutmix:
            classes, inner = self.labels.size(self.source), jax.random.fold_in(key, 3)
            image, label = mixed(image, label, inner, classes=classes, mixup=self.mixup, cutmix=self.cutmix)
        logits = self.logits(model, image, key)
        return classification_loss(logits, label, label_smoothing=self.label_smoothing)

    def _kept(self, key: jax.Array, examples: int, patches: int) -> jax.Array:
        """Patches that stay, [B,K]."""
        count = max(1, round(patches * (1 - self.patch_dropout)))
        return visible_first(jax.random.uniform(key, (examples, patches), jnp.float32), count)[0]

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        row: Any = picture_row(self.images, model.tokenizers[self.tokenizer].config)
        if self.pack.row:
            row = packed.picture_rows(self, model).alone
        names = self.labels.given_names(self.source)
        return [class_answer(IMAGE, names, row, self.judged, top=asked.top), *picture_features(self, model)]

    def evaluations(self) -> dict[str, Evaluation]:
        found = classification(
            self,
            self.judged,
            inputs=(lambda model: packed.picture_rows(self, model).inputs(single=True))
            if self.pack.row
            else self.inputs,
            show=classified_pictures(self.source, self.images, self.labels, self.tokenizer, self.backbone),
        )
        return {self.name: found}
