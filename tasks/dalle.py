"""DALL·E: write a picture's codes after its caption (Ramesh 2021, §2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.data.blocks import Images, Inputs, Texts, columns
from unimodal.decoding import Decoder, Sampling, decode
from unimodal.errors import UsageError
from unimodal.evaluation.codes import CodeLikelihood
from unimodal.evaluation.evaluation import Evaluation
from unimodal.heads import LanguageModel
from unimodal.layers import Embedding
from unimodal.model import Model
from unimodal.objectives import Loss, Mean, TaskMetrics, caption_targets, cross_entropy
from unimodal.tokenizers import codebook
from unimodal.tokens import Tokens, concat, tokens


@dataclass(frozen=True)
class Dalle:
    """One causal row of a caption's ids and a picture's codes, each of its own vocabulary. The codes are those of a codebook
    that was trained before (`init_from` a workdir of the dvae task) and stays as it is (`optimizer.freeze`)."""

    name: str = "dalle"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images(mean=(0.0,), std=(1.0,))  # the pictures, in [0, 1]
    texts: Texts = Texts(length=32)  # the captions; longer ones are cut
    batch_size: int = 32  # examples of one global batch
    weight: float = 1.0  # of the loss among the tasks'
    text_weight: float = 1 / 8  # of the captions' loss; the rest to 1 is the codes' (§2.2)
    unconditional: float = 0.1  # share of examples that are trained without their caption, for guidance (Ho 2022)
    text_tokenizer: str = "text"  # one of the config's tokenizers, by name
    image_tokenizer: str = "codes"  # one of the config's tokenizers, of kind codebook, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    guidance: float = 2.0  # scale of classifier-free guidance in samples; 1: none
    temperature: float = 1.0  # of samples
    shown: int = 4  # samples for each caption in the report

    def __post_init__(self) -> None:
        if not 0 <= self.unconditional < 1 or not 0 <= self.text_weight < 1:
            raise UsageError(f"{self.name}.unconditional and {self.name}.text_weight must be at least 0 and below 1")

    def inputs(self, model: Model) -> Inputs:
        c, words = model.tokenizers[self.image_tokenizer].config, model.tokenizers[self.text_tokenizer].config
        if not isinstance(c, codebook.Config):
            raise UsageError(f"{self.name}.image_tokenizer={self.image_tokenizer!r} must be of kind codebook")
        return columns(self.source, self.images.part(c.image_size, c.channels), self.texts.part(words.vocabulary))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        width = model.backbones[self.backbone].config.width
        words, codes = (model.tokenizers[n].config.vocabulary for n in (self.text_tokenizer, self.image_tokenizer))
        return {
            "start": Embedding(1, width, axes=("place", "embed"), rngs=rngs),
            "words": LanguageModel(width, words, tied=False, rngs=rngs),
            "codes": LanguageModel(width, codes, tied=False, rngs=rngs),
        }

    def caption(self, model: Model, ids: jax.Array, key: jax.Array | None = None) -> Tokens:
        """The start token, then a caption's ids [B,T]. Padding is seen, as tokens that say no more (§2.2)."""
        words = model.tokenizers[self.text_tokenizer](ids, causal=True, key=key)
        start = model.heads[self.name]["start"](jnp.zeros((ids.shape[0], 1), jnp.int32))
        return concat(tokens(start.astype(words.x.dtype), causal=True), words)

    def logits(
        self, model: Model, ids: jax.Array, codes: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Captions [B,T] and codes [B,P] → logits of the one [B,T,words] and of the other [B,P,codes]."""
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        heads = model.heads[self.name]
        row = concat(self.caption(model, ids, keys[0]), self.picture(model, codes[:, :-1], keys[1]))
        hidden, _ = model.backbones[self.backbone](row, key=keys[2])
        length, none = ids.shape[1], model.tokenizers[self.text_tokenizer].table
        return heads["words"](hidden[:, :length], none), heads["codes"](hidden[:, length:], none)

    def picture(self, model: Model, codes: jax.Array, key: jax.Array | None = None) -> Tokens:
        """The first codes [B,P] of a picture, rows first."""
        place = jnp.broadcast_to(jnp.arange(codes.shape[1], dtype=jnp.int32)[None], codes.shape)
        return tokens(model.tokenizers[self.image_tokenizer].embed(codes, place, key), causal=True)

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
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

    def draw(
        self, model: Model, ids: jax.Array, key: jax.Array, given: jax.Array | None = None, **options: Any
    ) -> jax.Array:
        """Pictures [B,H,W,C] in [0, 1] after captions [B,T].

        given: the first codes [B,p] of pictures that are to be completed. options: of `decoding.Sampling`, in place of
        the task's temperature and guidance.
        """
        tokenizer, head = model.tokenizers[self.image_tokenizer], model.heads[self.name]["codes"]
        how = Sampling(**{**dict(temperature=self.temperature, guidance=self.guidance), **options})
        prefixes = [self.caption(model, ids), self.caption(model, jnp.full_like(ids, self.texts.pad))]
        first = 0 if given is None else given.shape[1]
        if given is not None:
            prefixes = [concat(prefix, self.picture(model, given)) for prefix in prefixes]
        table = model.tokenizers[self.text_tokenizer].table
        decoder = Decoder(model.backbones[self.backbone], tokenizer.embed, lambda hidden, _: head(hidden, table))
        other = prefixes[1] if how.guidance is not None else None
        made = decode(
            decoder,
            prefixes[0],
            key,
            steps=tokenizer.config.tokens - first,
            sampling=how,
            place=first,
            unconditional=other,
        )
        return tokenizer.pixels(made if given is None else jnp.concatenate([given, made], axis=1))

    def evaluations(self) -> dict[str, Evaluation]:
        return {self.name: CodeLikelihood(task=self, inputs=self.inputs, batch_size=self.batch_size)}
