"""What the loop and the evaluation ask of a task. Tasks need not import this: having the methods is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
from flax import nnx

from unimodal.data.pipeline import ArraySpec, Examples
from unimodal.evaluation.samples import Sample
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics

Predictions = Mapping[str, np.ndarray]


class Task(Protocol):
    """Binds data, tokenizers, heads, an objective and an evaluation. It knows no mesh, optimizer, checkpoint or logger."""

    @property
    def name(self) -> str:
        """Under which it is logged and its heads live: `model.heads[name]`."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples of one global batch."""
        ...

    @property
    def weight(self) -> float:
        """Factor on the loss, where tasks are summed or alternate."""
        ...

    @property
    def metric(self) -> str:
        """The name, with its unit, of what `score` calls "value"."""
        ...

    @property
    def higher_is_better(self) -> bool: ...

    def spec(self, model: Model) -> Mapping[str, ArraySpec]:
        """The arrays of one example. `model` may be abstract (shapes only)."""
        ...

    def tokens(self, model: Model) -> int:
        """Tokens that backbones see of one example, for the meters."""
        ...

    def dataset(self, model: Model, split: str) -> Examples:
        """Examples of "train" or "validation", as `spec` says."""
        ...

    def heads(self, model: Model, rngs: nnx.Rngs) -> Mapping[str, nnx.Module]:
        """New heads, for a model whose tokenizers and backbones are there already."""
        ...

    def loss(
        self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array
    ) -> tuple[Loss, TaskMetrics]:
        """The float32 loss of a batch, and metrics. Variables that are not `nnx.Param` may be updated.

        A plain scalar is a mean over equally weighted examples. A loss that divides by anything else (tokens, frames), or
        judges examples by one another, says so by the terms of `objectives`: a batch may be taken in parts.
        """
        ...

    def predict(self, model: Model, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """What evaluation needs, one row per example. Compiled once; no randomness of its own."""
        ...

    def score(self, predictions: Predictions) -> Mapping[str, float]:
        """From the predictions of a whole split: "value" (of `metric`), and what else is worth a word."""
        ...

    def baseline(self, untrained: Mapping[str, float]) -> tuple[float, str]:
        """A number to beat, and what it is. `untrained` is the score of the model before the first step."""
        ...

    def samples(self, model: Model, batch: Mapping[str, np.ndarray], predictions: Predictions) -> Sequence[Sample]:
        """A few examples for the report, from one validation batch (and, for some, the predictions of all)."""
        ...
