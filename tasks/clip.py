"""CLIP: match images with their words (Radford 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import data
from unimodal.data.blocks import Images, Inputs, Texts, columns
from unimodal.errors import UsageError
from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.evaluation import Evaluation
from unimodal.evaluation.retrieval import Retrieval
from unimodal.evaluation.show.pictures import found_texts
from unimodal.heads import Embed, LogitScale, Projection
from unimodal.layers import split_key
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics, clip, row_codes, siglip, whole_batch
from unimodal.tokens import lengths_of


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
        outer, inner = split_key(key, 2), split_key(None if key is None else jax.random.fold_in(key, 1), 2)
        ids, heads = batch["ids"], model.heads[self.name]
        lengths = lengths_of(ids, self.texts.pad) if self.fill is None else None
        ids = ids if self.fill is None else jnp.where(ids == self.texts.pad, self.fill, ids)
        pictures, words = zip(inner, outer, strict=True)
        image, _ = model.hidden(self.image_tokenizer, self.image_backbone, batch["image"], key=pictures)
        text, tokens = model.hidden(
            self.text_tokenizer, self.text_backbone, ids, key=words, causal=self.causal, lengths=lengths
        )
        return heads["image"](image), heads["text"](text, tokens.segment, ids=ids)

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
            show=found_texts(self.source, self.images, self.texts, self.chances),
        )
        return {self.name: retrieval}

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        image, text = self.embed(model, batch)
        return {"first": image, "second": text, "same": row_codes(batch["ids"])}

    def chances(self, model: Model, cosines: jax.Array) -> jax.Array:
        """Of a picture's cosines with texts [N], the probability of each text."""
        logits = model.heads[self.name]["temperature"](cosines)
        return jax.nn.softmax(logits) if self.objective == "softmax" else jax.nn.sigmoid(logits)
