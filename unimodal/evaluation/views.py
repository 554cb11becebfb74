"""Evaluation of features of views without labels: does a view find the other view of its picture?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.data.blocks import Inputs
from unimodal.evaluation.evaluation import untrained_value
from unimodal.evaluation.retrieval import Pairs, Retrieval
from unimodal.evaluation.spread import deviation, effective_rank
from unimodal.model import Model


@dataclass
class ViewPairs(Pairs):
    """Pairs of views, and how far their features are spread."""

    def score(self) -> dict[str, float]:
        first = self.all("first")
        return super().score() | {"feature_deviation": deviation(first), "effective_rank": effective_rank(first)}


@dataclass(frozen=True, kw_only=True)
class ViewRetrieval(Retrieval):
    """Recall at 1 of the other view among one view of every picture of the split. Ties count against it, so features
    that have collapsed score 0."""

    at: int = 1  # the nearest alone counts

    def tally(self) -> ViewPairs:
        return ViewPairs(self.at)


def view_retrieval(
    features: Callable[[Model, Mapping[str, jax.Array]], jax.Array],
    inputs: Callable[[Model], Inputs],
    batch_size: int,
) -> ViewRetrieval:
    """The evaluation of a task by `features(model, batch)` [B,V,D], of which the first two views are taken.

    The baseline is the untrained model: random features find many views by their colours.
    """

    def predict(model: Model, batch: Any) -> dict[str, jax.Array]:
        x = features(model, batch)[:, :2].astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))
        return {"first": x[:, 0], "second": x[:, 1]}

    return ViewRetrieval(inputs=inputs, predict=predict, batch_size=batch_size, against=untrained_value)
