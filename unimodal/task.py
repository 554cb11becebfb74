"""What the loop and the experiment ask of a task. Tasks need not import this: having the methods is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax
from flax import nnx

from unimodal.data.blocks import Inputs
from unimodal.evaluation.evaluation import Evaluation
from unimodal.model import Model
from unimodal.objectives import Loss, TaskMetrics


class Task(Protocol):
    """Binds data, tokenizers, heads, an objective and evaluations. It knows no mesh, optimizer, checkpoint or logger.

    A task that keeps something between steps, such as a momentum encoder or a queue, has one more method,
    `state(model) -> Mapping[str, TaskState]`, for a model that has all its parts. See `unimodal.state`.
    """

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

    def inputs(self, model: Model) -> Inputs:
        """The arrays of one example, and where examples come from. `model` may be abstract (shapes only)."""
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

    def evaluations(self) -> Mapping[str, Evaluation]:
        """What is asked of the model after training, and now and then during it. The first bears the task's name."""
        ...
