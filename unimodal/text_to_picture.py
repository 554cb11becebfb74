"""A caption and a picture's codes as one causal row: how they are read, and how a picture is drawn from a caption.

All functions but those that make rows of tokens are methods of a task, which has the fields `source`, `images`, `texts`,
`text_tokenizer`, `image_tokenizer`, `backbone`, `guidance` and `temperature`: it takes them by
`draw = text_to_picture.draw`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal.data.blocks import Inputs, columns
from unimodal.decoding import Decoder, Sampling, decode
from unimodal.errors import UsageError
from unimodal.heads import LanguageModel
from unimodal.layers import Embedding
from unimodal.model import Model
from unimodal.tokenizers import codebook
from unimodal.tokens import Tokens, concat, tokens


def inputs(task: Any, model: Model) -> Inputs:
    """Pictures as the codebook takes them, and the ids of their captions. Raises UsageError for another tokenizer."""
    c, words = model.tokenizers[task.image_tokenizer].config, model.tokenizers[task.text_tokenizer].config
    if not isinstance(c, codebook.Config):
        raise UsageError(f"{task.name}.image_tokenizer={task.image_tokenizer!r} must be of kind codebook")
    return columns(task.source, task.images.part(c.image_size, c.channels), task.texts.part(words.vocabulary))


def heads(task: Any, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    """The start token's embedding, and logits over words and over codes."""
    width = model.backbones[task.backbone].config.width
    words, codes = (model.tokenizers[n].config.vocabulary for n in (task.text_tokenizer, task.image_tokenizer))
    return {
        "start": Embedding(1, width, axes=("place", "embed"), rngs=rngs),
        "words": LanguageModel(width, words, tied=False, rngs=rngs),
        "codes": LanguageModel(width, codes, tied=False, rngs=rngs),
    }


def caption(task: Any, model: Model, ids: jax.Array, key: jax.Array | None = None) -> Tokens:
    """The start token, then a caption's ids [B,T]. Padding is seen, as tokens that say no more (Ramesh 2021, §2.2)."""
    words = model.tokenizers[task.text_tokenizer](ids, causal=True, key=key)
    start = model.heads[task.name]["start"](jnp.zeros((ids.shape[0], 1), jnp.int32)).astype(words.x.dtype)
    # -1 pads rows of a vocabulary, and would look up its last piece. Put the start token there, which is no piece.
    words = words.with_x(jnp.where((ids < 0)[..., None], start, words.x))
    return concat(tokens(start, causal=True, modality="text"), words)


def logits(
    task: Any, model: Model, ids: jax.Array, codes: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Captions [B,T] and codes [B,P] → logits of the one [B,T,words] and of the other [B,P,codes]."""
    keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
    heads = model.heads[task.name]
    row = concat(caption(task, model, ids, keys[0]), picture(task, model, codes[:, :-1], keys[1]))
    hidden, _ = model.backbones[task.backbone](row, key=keys[2])
    length, none = ids.shape[1], model.tokenizers[task.text_tokenizer].table
    return heads["words"](hidden[:, :length], none), heads["codes"](hidden[:, length:], none)


def picture(task: Any, model: Model, codes: jax.Array, key: jax.Array | None = None) -> Tokens:
    """The first codes [B,P] of a picture, rows first."""
    place = jnp.broadcast_to(jnp.arange(codes.shape[1], dtype=jnp.int32)[None], codes.shape)
    return tokens(model.tokenizers[task.image_tokenizer].embed(codes, place, key), causal=True, modality="image")


def draw(
    task: Any, model: Model, ids: jax.Array, key: jax.Array, given: jax.Array | None = None, **options: Any
) -> jax.Array:
    """Pictures [B,H,W,C] in [0, 1] after captions [B,T].

    given: the first codes [B,p] of pictures that are to be completed. options: of `decoding.Sampling`, in place of
    the task's temperature and guidance.
    """
    tokenizer, head = model.tokenizers[task.image_tokenizer], model.heads[task.name]["codes"]
    how = Sampling(**{**dict(temperature=task.temperature, guidance=task.guidance), **options})
    prefixes = [caption(task, model, ids), caption(task, model, jnp.full_like(ids, task.texts.pad))]
    first = 0 if given is None else given.shape[1]
    if given is not None:
        prefixes = [concat(prefix, picture(task, model, given)) for prefix in prefixes]
    table = model.tokenizers[task.text_tokenizer].table
    backbone = model.backbones[task.backbone]
    decoder = Decoder(backbone, tokenizer.embed, lambda hidden, _: head(hidden, table), modality=tokenizer.modality)
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
