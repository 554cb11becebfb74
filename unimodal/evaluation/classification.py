"""Classification: is the likeliest class the right one?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data.blocks import Inputs
from unimodal.evaluation.baselines import majority_accuracy
from unimodal.evaluation.evaluation import Batch, Rows, Shown, Streamed
from unimodal.evaluation.samples import Sample
from unimodal.model import Model

BEST = 3  # guesses kept of each example


@dataclass
class ByClass:
    """Counts, for every class, its examples and those that were right."""

    classes: int  # how many there are
    right: np.ndarray = field(init=False)  # [classes]
    seen: np.ndarray = field(init=False)  # [classes]

    def __post_init__(self) -> None:
        self.right, self.seen = np.zeros(self.classes), np.zeros(self.classes)

    def add(self, rows: Rows) -> None:
        np.add.at(self.right, rows["label"], rows["correct"])  # NaN stays
        np.add.at(self.seen, rows["label"], 1.0)

    def score(self) -> dict[str, float]:
        there = self.seen > 0
        recall = self.right[there] / self.seen[there]
        return {"value": float(self.right.sum() / self.seen.sum()), "balanced_accuracy": float(recall.mean())}


@dataclass(frozen=True, kw_only=True)
class Classification(Streamed):
    """Accuracy, and recall averaged over the classes that occur, which is blind to how common they are.

    `predict` gives what `guesses` makes of logits and labels.
    """

    classes: Callable[[], int]  # how many there are
    metric: str = "accuracy"  # share of examples whose likeliest class is right
    higher_is_better: bool = True  # direction

    def tally(self) -> ByClass:
        return ByClass(self.classes())

    def columns(self, rows: Rows) -> dict[str, np.ndarray]:
        return {"correct": rows["correct"]}

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        return share_right(sums)


def share_right(sums: Mapping[str, np.ndarray]) -> float:
    """The accuracy of the sum `correct` over `examples`."""
    return float(sums["correct"] / sums["examples"])


def guesses(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Logits [B,classes] and labels [B] → `correct` float32 [B] (NaN where a logit is), and the `best` few classes with
    their `chance`."""
    chances = jax.nn.softmax(logits.astype(jnp.float32))
    chance, best = jax.lax.top_k(chances, min(BEST, logits.shape[-1]))
    has_nan = jnp.isnan(chances).any(axis=-1)
    right = jnp.where(has_nan, jnp.nan, among_the_likeliest(logits, labels))
    return {"correct": right, "label": labels, "best": best, "chance": chance}


def among_the_likeliest(logits: jax.Array, labels: jax.Array, k: int = 1) -> jax.Array:
    """Whether the label is among the k likeliest classes, float32 [B] of logits [B,classes] and labels [B].

    Between 0 and 1 where other classes are as likely as the label: the chance of it if they are put in an order by lot. So a
    model that says the same of every class has the accuracy of chance, and not the share of class 0; and logits in bfloat16, of
    which many are equal, favour no class.
    """
    logits = logits.astype(jnp.float32)
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1) == labels[:, None]
    own = jnp.where(is_label, logits, -jnp.inf).max(axis=-1, keepdims=True)
    before, level = (x.sum(axis=-1).astype(jnp.float32) for x in (logits > own, logits == own))
    return jnp.where(is_label.any(axis=-1), jnp.clip((k - before) / jnp.maximum(level, 1.0), 0.0, 1.0), 0.0)


def classification(
    task: Any,
    logits: Callable[[Model, Batch], jax.Array],
    *,
    show: Callable[[Model, Shown], Sequence[Sample]],
    inputs: Callable[[Model], Inputs] | None = None,
    segments: str = "",
) -> Classification:
    """Classify the validation split of a task that has `source`, `labels`, `inputs` and `batch_size`.

    `logits` gives [B,classes] for a batch with `label` [B]. The baseline is always answering training's commonest class.
    inputs: those of the evaluation, where they are not the task's own. segments: which segments of recordings have a class;
    "" where recordings have none.
    """

    def against(_untrained: Mapping[str, float]) -> tuple[float, str]:
        train, valid = (task.labels.known(task.source, split, segments) for split in ("train", "validation"))
        return majority_accuracy(train, valid), "majority class"

    return Classification(
        inputs=inputs or task.inputs,
        predict=lambda model, batch: guesses(logits(model, batch), batch["label"]),
        batch_size=task.batch_size,
        classes=lambda: task.labels.size(task.source, segments),
        against=against,
        show=show,
    )
