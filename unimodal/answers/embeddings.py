"""A vector of unit length, by which inputs are compared and searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.answers.answer import Answer, Row
from unimodal.errors import UsageError


def embedding_answer(reads: str, row: Callable[..., Row], embed: Callable[..., jax.Array]) -> Answer:
    """Embeddings [B,size], brought to length one: what is near belongs together, by the inner product."""

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        x = embed(model, batch).astype(jnp.float32)
        return {"embedding": x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)}

    return Answer("embedding", reads, row, predict, _say)


def _say(found: Row) -> dict[str, Any]:
    vector = np.asarray(found["embedding"], np.float32)
    if not np.isfinite(vector).all():
        raise UsageError("the model gave no number for it (NaN)")
    return {"embedding": vector.tolist()}
