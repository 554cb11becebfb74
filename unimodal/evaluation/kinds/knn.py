"""k nearest neighbours: do examples of a class lie together in the space of features? (Wu 2018, §3.4, without weights)"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.errors import UsageError
from unimodal.evaluation.features import Features, told, unknown

CHUNK = 1024  # queries at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knn(Features):
    """The commonest class among the `k` training examples whose features are nearest; of equals, the lowest number."""

    k: int = 5  # neighbours that vote
    cosine: bool = False  # nearness by angle instead of Euclidean distance

    def check(self) -> None:
        """Raises UsageError before training for what cannot be scored after it."""
        super().check()
        self._check_k(len(self.labels.known(self.source, "train")))

    def _check_k(self, rows: int) -> None:
        if not 1 <= self.k <= rows:
            raise UsageError(f"evaluations.{self.name}.k must be 1 … {rows} (the training rows), but is {self.k}")

    def score(self, train: np.ndarray, labels: np.ndarray, valid: np.ndarray, truth: np.ndarray) -> Mapping[str, Any]:
        self._check_k(len(train))
        if not (np.isfinite(train).all() and np.isfinite(valid).all()):
            return unknown(truth)
        move = unit if self.cosine else partial(centred, mean=train.mean(axis=0, dtype=np.float64))
        train, valid = move(train), move(valid)
        how: Any = dict(k=self.k, classes=self.labels.size(self.source), cosine=self.cosine)
        seen, known = jax.device_put((train, labels))
        chunks = [valid[i : i + CHUNK] for i in range(0, len(valid), CHUNK)]
        guesses = np.concatenate([vote(seen, known, chunk, **how) for chunk in chunks])
        return told(guesses, truth)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows [N,D] at unit length. A row of zeros stays, where NaN would be the nearest of all queries."""
    size = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(size > 0, size, 1)


def centred(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Rows [N,D] less a mean: `vote` would lose the distances in float32 where all rows lie far from 0."""
    return (x - mean).astype(np.float32)


@partial(jax.jit, static_argnames=("k", "classes", "cosine"))
def vote(train: Any, labels: Any, queries: Any, *, k: int, classes: int, cosine: bool = False) -> jax.Array:
    """The class [N] that most of the k nearest of `train` [M,D] have, for each of `queries` [N,D]. cosine: nearest by angle,
    of rows at unit length."""
    product = jnp.matmul(queries, train.T, precision=jax.lax.Precision.HIGHEST)
    # Leave out |query|², which all have.
    distance = -product if cosine else jnp.square(train).sum(axis=1)[None] - 2 * product
    _, nearest = jax.lax.top_k(-distance, k)
    return jnp.argmax(jax.nn.one_hot(labels[nearest], classes).sum(axis=1), axis=-1)
