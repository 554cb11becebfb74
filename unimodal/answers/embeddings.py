"""A vector of unit length, by which inputs are compared and searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.answers.answer import IMAGE, SOUND, TEXT, Answer, Asked, Row, both_rows, picture_row, sound_row, text_row
from unimodal.data.blocks import Images, Views
from unimodal.errors import UsageError
from unimodal.heads import pool


def embedding_answer(reads: str, row: Callable[..., Row], embed: Callable[..., jax.Array]) -> Answer:
    """Embeddings [B,size], brought to length one: what is near belongs together, by the inner product."""

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        x = embed(model, batch).astype(jnp.float32)
        return {"embedding": x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)}

    return Answer("embedding", reads, row, predict, _say)


def composed_answers(
    task: Any,
    model: Any,
    picture: Callable[..., jax.Array],
    words: Callable[..., jax.Array],
    both: Callable[..., jax.Array],
) -> list[Answer]:
    """Answers of a task that embeds pictures, words, and both together. It has `pictures`, `texts` and a tokenizer for each.

    picture, words, both: (model, batch with `image`, `ids` or both) → embeddings [B,size].
    """
    seen = picture_row(task.pictures, model.tokenizers[task.image_tokenizer].config)
    said = text_row(task.texts, model.tokenizers[task.text_tokenizer].config.vocabulary)
    return [
        embedding_answer(IMAGE, seen, picture),
        embedding_answer(TEXT, said, words),
        embedding_answer(f"{IMAGE}+{TEXT}", both_rows(seen, said), both),
    ]


def picture_features(task: Any, model: Any) -> list[Answer]:
    """Answers of a task that names none: the mean of its backbone's hidden states of a picture.

    [] for a task without a block of pictures (`images` or `views`), an image tokenizer and a backbone.
    """
    block = getattr(task, "images", None) or getattr(task, "views", None)
    tokenizer = getattr(task, "tokenizer", "") or getattr(task, "image_tokenizer", "")
    backbone = getattr(task, "backbone", "")
    if not isinstance(block, Images | Views) or tokenizer not in model.tokenizers or backbone not in model.backbones:
        return []
    config = model.tokenizers[tokenizer].config
    if not hasattr(config, "image_size"):
        return []
    images = block if isinstance(block, Images) else Images(column=block.column, mean=block.mean, std=block.std)
    embed = lambda m, batch: m.hidden(tokenizer, backbone, batch["image"])[0].mean(axis=1)  # noqa: E731
    return [embedding_answer(IMAGE, picture_row(images, config), embed)]


def offered(task: Any, model: Any, asked: Asked = Asked()) -> Sequence[Answer]:
    """What a task can be asked: what it says itself, else the features of pictures; [] for neither."""
    answers = getattr(task, "answers", None)
    return picture_features(task, model) if answers is None else answers(model, asked)


def sound_features(task: Any, hidden: Callable[..., jax.Array] | None = None) -> Answer:
    """The mean of the hidden states of a recording's own frames, for a task with `sounds`, a tokenizer and a backbone.

    hidden: (model, batch) → [B,T,D], for a task that makes them in a way of its own.
    """

    def mean(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        read, length = model.tokenizers[task.tokenizer], batch["length"]
        if hidden is None:
            found, _ = model.hidden(task.tokenizer, task.backbone, batch["audio"], lengths=length)
        else:
            found = hidden(model, batch)
        place = jnp.arange(found.shape[1], dtype=jnp.int32)[None]
        return pool(found, "mean", (place < read.config.frames(length)[:, None]).astype(jnp.int32))

    return embedding_answer(SOUND, sound_row(task.sounds), mean)


def text_features(task: Any, row: Callable[..., Row], hidden: Callable[..., jax.Array], ids: str = "ids") -> Answer:
    """The mean of the hidden states of a text's own ids, for a task with `texts`. hidden: (model, batch) → [B,T,D]; ids: what the
    batch calls them."""

    def mean(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        return pool(hidden(model, batch), "mean", (batch[ids] != task.texts.pad).astype(jnp.int32))

    return embedding_answer(TEXT, row, mean)


def _say(found: Row) -> dict[str, Any]:
    vector = np.asarray(found["embedding"], np.float32)
    if not np.isfinite(vector).all():
        raise UsageError("the model gave no number for it (NaN)")
    return {"embedding": vector.tolist()}
