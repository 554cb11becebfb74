"""A picture as an answer: drawn from words, or made anew of another picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from unimodal.answers.answer import Answer, Asked, Row
from unimodal.errors import UsageError

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
