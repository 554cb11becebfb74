"""A picture as an answer: drawn from words, or made anew of another picture.

The functions at the end are what tasks take as their method `answers`: they take the task, which has the fields that they read.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from unimodal.answers.answer import IMAGE, TEXT, Answer, Asked, Row, picture_row, read_any, text_row
from unimodal.answers.embeddings import picture_features
from unimodal.errors import UsageError
from unimodal.evaluation.reconstruction import rebuilt, unpatchify
from unimodal.generate import Sampling, generate

START = "data:image/png;base64,"
"""How a picture begins in an answer: a data URI, which a page shows and JSON can hold."""


def picture_answer(
    reads: str, row: Callable[..., Row], make: Callable[..., jax.Array], to_uint8: Callable[[np.ndarray], np.ndarray]
) -> Answer:
    """A picture of every row. make(model, batch) → arrays [B,…], each of which `to_uint8` turns into uint8 [H,W,3]."""

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return {"made": make(model, batch)}

    def say(found: Row) -> dict[str, Any]:
        made = found["made"]
        if np.issubdtype(made.dtype, np.floating) and not np.isfinite(made).all():
            raise UsageError("the model gave no number for it (NaN)")
        stream = io.BytesIO()
        Image.fromarray(to_uint8(made)).save(stream, "PNG")
        return {"picture": START + base64.b64encode(stream.getvalue()).decode()}

    return Answer("picture", reads, row, predict, say)


def sampling_of(asked: Asked) -> dict[str, Any]:
    """Options of `decoding.Sampling` that the question names; a task has its own for the others."""
    found = {"temperature": asked.temperature} if asked.temperature else {}
    return found if asked.top_p == 1 else {**found, "top_p": asked.top_p}


def drawn_from_words(task: Any, model: Any, asked: Asked) -> list[Answer]:
    """A picture of a text, by `task.draw`."""
    row = text_row(task.texts, model.tokenizers[task.text_tokenizer].config.vocabulary)
    draw = lambda m, b: task.draw(m, b["ids"], asked.keys(b["ids"]), **sampling_of(asked))  # noqa: E731
    return [picture_answer(TEXT, row, draw, task.images.to_uint8)]


def from_its_codes(task: Any, model: Any, asked: Asked) -> list[Answer]:
    """The picture as its codes keep it."""

    def decoded(m: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        tokenizer = m.tokenizers[task.tokenizer]
        return tokenizer.pixels(tokenizer.codes(batch["image"]))

    row = picture_row(task.images, model.tokenizers[task.tokenizer].config)
    return [picture_answer(IMAGE, row, decoded, task.images.to_uint8)]


def with_gaps_filled(task: Any, model: Any, asked: Asked) -> list[Answer]:
    """The picture with patches hidden and rebuilt by `task.predict`, others for every seed; and its features."""
    config = model.tokenizers[task.tokenizer].config
    seen, patches = picture_row(task.images, config), math.prod(config.grid)

    def row(record: Mapping[str, Any]) -> Row:
        return {**seen(record), "noise": np.random.default_rng(asked.seed).random(patches, np.float32)}

    fill = lambda m, batch: rebuilt(**task.predict(m, batch), normalise=task.normalise)  # noqa: E731
    whole = lambda patches: task.images.to_uint8(unpatchify(patches[None], config.grid)[0])  # noqa: E731
    return [picture_answer(IMAGE, row, fill, whole), *picture_features(task, model)]


def with_its_half_anew(task: Any, model: Any, asked: Asked) -> list[Answer]:
    """The picture with its lower half written anew, colour by colour, by the parts that `task.writer` names."""
    size, start = math.prod(task.size), task.pixels.count
    half, sampling = size // 2, Sampling(**sampling_of(asked))

    def row(record: Mapping[str, Any]) -> Row:
        part = read_any(task.pixels, record).row(task.source, task.size)
        return part.make(part.read(record), np.random.default_rng(0), False)

    def completed(m: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        given = jnp.pad(batch["ids"][:, :half], ((0, 0), (1, 0)), constant_values=start)
        lengths = jnp.full(given.shape[:1], half + 1, jnp.int32)
        backbone, tokenizer, head = task.writer(m)
        new = generate(
            backbone, tokenizer, head, given, lengths, asked.keys(given), steps=size - half, sampling=sampling
        )
        return jnp.concatenate([given[:, 1:], new], axis=1)

    return [picture_answer(IMAGE, row, completed, partial(task.pixels.picture, task.source, size=task.size))]
