"""Predictions of a whole split, gathered on the host, and the score and baseline a task makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unimodal.sharding import from_local_rows
from unimodal.task import Task


@dataclass(frozen=True)
class Result:
    """What a task reached: the value of its metric, the baseline it is to beat, and further numbers."""

    metric: str
    value: float
    baseline: float
    baseline_is: str
    higher_is_better: bool
    details: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Evaluator:
    """Evaluates one task on a mesh. `predict` is compiled once, however often the model changes."""

    def __init__(self, task: Task, mesh: Mesh, batches: Iterable[Mapping[str, np.ndarray]]):
        self.task, self.mesh, self._batches = task, mesh, batches
        self._predict = jax.jit(task.predict)

    def predictions(self, model: Any, *, limit: int | None = None) -> dict[str, np.ndarray]:
        """`task.predict` over the split (or `limit` batches of it), without the rows that only fill the last batch."""
        rows: dict[str, list[np.ndarray]] = {}
        with jax.set_mesh(self.mesh):
            for i, batch in enumerate(self._batches):
                if i == limit:
                    break
                arrays = from_local_rows(batch, self.mesh)
                weight = arrays.pop("example_weight")
                made = self._predict(model, arrays)
                found = {name: _gather(value) for name, value in {**made, "example_weight": weight}.items()}
                real = found.pop("example_weight") > 0
                for name, value in found.items():
                    rows.setdefault(name, []).append(value[real])
        return {name: np.concatenate(values) for name, values in rows.items()}

    def first_batch(self) -> dict[str, np.ndarray]:
        """The first batch as the host has it, for samples."""
        return {name: value for name, value in next(iter(self._batches)).items() if name != "example_weight"}

    def score(self, model: Any, *, limit: int | None = None) -> dict[str, float]:
        """The task's numbers on the split."""
        return {name: float(value) for name, value in self.task.score(self.predictions(model, limit=limit)).items()}

    def result(self, score: Mapping[str, float], untrained: Mapping[str, float]) -> Result:
        """The score against its baseline."""
        baseline, what = self.task.baseline(untrained)
        details = {name: value for name, value in score.items() if name != "value"}
        details["untrained"] = untrained["value"]
        return Result(self.task.metric, score["value"], baseline, what, self.task.higher_is_better, details)


def _gather(value: jax.Array) -> np.ndarray:
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    return np.asarray(value)
