"""A caption and a picture's codes as one causal row: how they are read, and how a picture is drawn from a caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.data.blocks import Images, Inputs, Texts, columns
from unimodal.decoding import Decoder, Sampling, decode
from unimodal.errors import UsageError
from unimodal.heads import LanguageModel
from unimodal.layers import Embedding
from unimodal.model import Model
from unimodal.tokenizers import codebook
from unimodal.tokens import Tokens, concat, tokens


@dataclass(frozen=True)
class TextToPicture:
    """Writes a picture's codes after its caption; each has its own vocabulary."""

    name: str = "text_to_picture"  # logged under it; the heads are `model.heads[name]`
    source: str = "embedded:emoji"  # a data source, see `data.sources`
    images: Images = Images(mean=(0.0,), std=(1.0,))  # the pictures, in [0, 1]
    texts: Texts = Texts(length=32)  # the captions; longer ones are cut
    batch_size: int = 32  # examples of one global batch
    text_tokenizer: str = "text"  # one of the config's tokenizers, by name
    image_tokenizer: str = "codes"  # one of the config's tokenizers, of kind codebook, by name
    backbone: str = "shared"  # one of the config's backbones, by name
    guidance: float = 2.0  # scale of classifier-free guidance in samples; 1: none
    temperature: float = 1.0  # of samples
    shown: int = 4  # samples for each caption in the report

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
