"""CLIP: match images with their words (Radford 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal import data
from unimodal.answers import (
    IMAGE,
    TEXT,
    Answer,
    Asked,
    embedding_answer,
    picture_row,
    text_row,
    zero_shot_answer,
)
from unimodal.data.blocks import Images, Inputs, Texts, columns
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.evaluation import Evaluation, Shown
from unimodal.evaluation.retrieval import Retrieval
from unimodal.evaluation.samples import ImageSample, Sample
from unimodal.heads import Embed, LogitScale, Projection
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, row_codes, siglip, whole_batch
from unimodal.tokens import lengths_of

Keys = tuple[jax.Array | None, jax.Array | None]


@dataclass(frozen=True)
class Clip:
    """Images and their captions over the global batch: InfoNCE, or a sigmoid for each pair (SigLIP, Zhai 2023). Equal
    captions are not each other's negatives."""

    name: str = "clip"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images()  # the pictures
    texts: Texts = Texts(length=32)  # the captions
    batch_size: int = 32  # examples of one global batch
    size: int = 64  # of the embeddings
    weight: float = 1.0  # of the loss among the tasks'
    objective: str = "softmax"  # or sigmoid
    temperature: float = 0.07  # to start from; it is learned
    bias: float = -10.0  # of the sigmoid's logits, to start from; it is learned
    image_head: Embed = Embed()  # from the hidden states of a picture to its embedding
    text_head: Embed = Embed()  # from the hidden states of a text to its embedding
    causal: bool = False  # whether a word sees only those before it
    fill: int | None = None  # the id that texts are filled up with, where their padding is seen; None: it is hidden
    image_tokenizer: str = "image"  # one of the config's tokenizers, by name
    text_tokenizer: str = "text"  # one of the config's tokenizers, by name
    image_backbone: str = "shared"  # one of the config's backbones, by name
    text_backbone: str = "shared"  # one of the config's backbones, by name

    def __post_init__(self) -> None:
        if self.objective not in ("softmax", "sigmoid"):
            raise UsageError(f"{self.name}.objective must be softmax or sigmoid, but is {self.objective!r}")

    def inputs(self, model: Model) -> Inputs:
        c, vocabulary = model.tokenizers[self.image_tokenizer].config, model.tokenizers[self.text_tokenizer].config
        return columns(self.source, self.images.part(c.image_size, c.channels), self.texts.part(vocabulary.vocabulary))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        configs = [model.backbones[name].config for name in (self.image_backbone, self.text_backbone)]
        # Radford 2021, §2.5 keeps the scale from going beyond 100; each pair by itself needs no such bound.
        options = dict(most=100.0) if self.objective == "softmax" else dict(bias=self.bias)
        scale = LogitScale(1 / self.temperature, **options)
        return {
            "image": Projection(configs[0].width, self.size, self.image_head, configs[0], rngs=rngs),
            "text": Projection(configs[1].width, self.size, self.text_head, configs[1], rngs=rngs),
            "temperature": scale,
        }

    def embed(
        self, model: Model, batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Unit embeddings [B,size] of the images and of the captions."""
        inner = (None, None) if key is None else tuple(jax.random.split(jax.random.fold_in(key, 1)))
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        image = self.embed_images(model, batch["image"], (inner[0], keys[0]))
        return image, self.embed_texts(model, batch["ids"], (inner[1], keys[1]))

    def embed_images(self, model: Model, image: jax.Array, keys: Keys = (None, None)) -> jax.Array:
        """[B,H,W,C] → unit embeddings [B,size]. keys: of the tokenizer's dropout and of the backbone's."""
        pixels = model.tokenizers[self.image_tokenizer](image, key=keys[0])
        hidden, _ = model.backbones[self.image_backbone](pixels, key=keys[1])
        return model.heads[self.name]["image"](hidden)

    def embed_texts(self, model: Model, ids: jax.Array, keys: Keys = (None, None)) -> jax.Array:
        """ids [B,T] → unit embeddings [B,size]."""
        lengths = lengths_of(ids, self.texts.pad) if self.fill is None else None
        ids = ids if self.fill is None else jnp.where(ids == self.texts.pad, self.fill, ids)
        words = model.tokenizers[self.text_tokenizer](ids, causal=self.causal, lengths=lengths, key=keys[0])
        hidden, _ = model.backbones[self.text_backbone](words, key=keys[1])
        return model.heads[self.name]["text"](hidden, words.segment, ids=ids)

    def answers(self, model: Model, asked: Asked) -> list[Answer]:
        vocabulary = model.tokenizers[self.text_tokenizer].config.vocabulary
        see = picture_row(self.images, model.tokenizers[self.image_tokenizer].config)
        read = text_row(self.texts, vocabulary)
        images = lambda m, batch: self.embed_images(m, batch["image"])  # noqa: E731
        texts = lambda m, batch: self.embed_texts(m, batch["ids"])  # noqa: E731
        found = [embedding_answer(IMAGE, see, images), embedding_answer(TEXT, read, texts)]
        if not asked.classes:
            return found
        rows = [read({"id": name, "text": asked.template.replace("{}", name)}) for name in asked.classes]
        zero_shot = zero_shot_answer(
            asked.classes,
            rows,
            see,
            embed_texts=texts,
            embed_images=images,
            logits=lambda m, similarity: m.heads[self.name]["temperature"](similarity),
            each=self.objective == "sigmoid",
            top=asked.top,
        )
        return [zero_shot, *found]

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        image, text = self.embed(model, batch, key)
        scale, judge = model.heads[self.name]["temperature"], clip if self.objective == "softmax" else siglip
        return whole_batch(judge, image, text, *scale.shared, ids_B=row_codes(batch["ids"])), {"scale": scale.scale}

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
        scale = model.heads[self.name]["temperature"]
        found: list[Sample] = []
        for i, image in zip(shown.index, shown.rows["first"], strict=True):
            logits = scale(image @ texts.T)
            p = np.asarray(jax.nn.softmax(logits) if self.objective == "softmax" else jax.nn.sigmoid(logits))
            best = tuple((self.texts.text(source[int(places[k])]), float(p[k])) for k in p.argsort()[::-1][:4])
            found.append(ImageSample(self.images.read(source[int(i)]), best, self.texts.text(source[int(i)])))
        return found
