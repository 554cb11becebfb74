"""R[i,j], the score of task j after task i has been learned, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def metrics(matrix: np.ndarray, untrained: Sequence[float], higher_is_better: Sequence[bool]) -> dict[str, float]:
    """R [T,T], and the scores before training [T] → numbers in the metric's unit, counted so that more is better but for
    `forgetting`.

    average_accuracy, backward_transfer and forward_transfer: Lopez-Paz & Ranzato 2017, equations 2-4. forgetting:
    Chaudhry 2018, §3.1, the mean over earlier tasks of the best score before the last task less the last one. Signs are
    turned where lower is better, except in the average.
    """
    sign = np.where(np.asarray(higher_is_better), 1.0, -1.0)
    gains, before = matrix * sign, np.asarray(untrained) * sign
    last, count = gains[-1], len(gains)
    earlier = range(count - 1)
    return {
        "average": float(matrix[-1].mean()),
        "backward_transfer": float(np.mean([last[i] - gains[i, i] for i in earlier])),
        "forward_transfer": float(np.mean([gains[i - 1, i] - before[i] for i in range(1, count)])),
        "forgetting": float(np.mean([gains[:-1, i].max() - last[i] for i in earlier])),
    }


def matrix_of(
    rows: Sequence[Mapping[str, float]], names: Sequence[str], untrained: Mapping[str, float], ways: Mapping[str, bool]
) -> dict[str, Any]:
    """Scores by task after each task, in their order, as plain values for results.json."""
    table = np.asarray([[row[name] for name in names] for row in rows], np.float64)
    before = [untrained[name] for name in names]
    return {
        "tasks": list(names),
        "matrix": table.tolist(),
        "untrained": before,
        **metrics(table, before, [ways[name] for name in names]),
    }
